//go:build integration

package datapath

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/test/lab/labtest"
)

const livePods = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, image: x, ports: [{containerPort: 8080}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 1}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop}
spec: {nodeName: node2, containers: [{name: c, image: x, ports: [{containerPort: 1}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
`

// TestTraceLive: in both families, a packet that is really sent does as the trace says, whether it is delivered on
// another node, translated, refused by the receiver's kernel or denied by a policy; where a tunnel or the receiver's
// link is cut without the switch knowing, the trace disagrees and says where the packet was last seen. The pods' own
// connections go on, and nothing of the captures and flows remains.
func TestTraceLive(t *testing.T) {
	l := labtest.Up(t, "live", "-f", labtest.Write(t, map[string]string{"all.yaml": livePods}), "--nodes=2", "--ip-family=dual")
	// trace gives the traces of both families, and the program's exit code.
	trace := func(from, to string) (list []walk.Trace, text string, code int) {
		t.Helper()
		cmd := labtest.Command(t, "trace", "--name", l.Name, from, to, "--live", "-o", "json")
		out, err := cmd.Output()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			code, text = exit.ExitCode(), string(exit.Stderr)
		} else if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &list); err != nil {
			t.Fatalf("%v: %s%s", err, out, text)
		}
		return list, string(out), code
	}
	flows := func() string {
		return l.Run("node/node1", "ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "--no-stats", "weft")
	}
	testenv.Eventually(t, testenv.Patience(60*time.Second), func() error { // the nodes have found each other
		if list, text, _ := trace("shop/client", "pod/shop/web:8080"); !list[0].Live.Established || !list[1].Live.Established {
			return errors.New(text)
		}
		return nil
	})
	before := flows()
	for _, tc := range []struct {
		name, from, to string
		code           int
		verdict        walk.Outcome
		agrees         bool
		text           string // of Live
	}{
		{"delivered", "shop/client", "pod/shop/web:8080", 0, walk.Reaches, true, "it reached shop/web, which answered with TCP SYN,ACK, back after "},
		{"Service", "shop/client", "service/shop/web:80", 0, walk.Reaches, true, "it reached shop/web, which answered with TCP SYN,ACK, back after "},
		{"datagram", "shop/client", "service/shop/web:53/UDP", 0, walk.Reaches, true, "it reached shop/web"},
		{"ping", "shop/client", "pod/shop/other", 0, walk.Reaches, true, "it reached shop/other, which answered with ICMP echo reply, back after "},
		{"same node", "pod/shop/web", "shop/other:1", 0, walk.Reaches, true, "it reached shop/other, which answered with TCP SYN,ACK"},
		{"node", "shop/client", "node/node1:9", 1, walk.Reaches, true, "it reached node1, which refused it with TCP RST,ACK"},
		{"other node", "shop/client", "node/node2:9", 1, walk.Reaches, true, "it reached node2, which refused it with TCP RST,ACK, back after "},
		{"closed port", "shop/client", "shop/other:2", 1, walk.Reaches, true, "it reached shop/other, which refused it with TCP RST,ACK, back after "},
		{"denied", "shop/other", "service/shop/web:80", 1, walk.Dropped, true, "it was dropped: policy-ingress"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list, text, code := trace(tc.from, tc.to)
			if code != tc.code || len(list) != 2 {
				t.Fatalf("code %d, want %d; %d traces: %s", code, tc.code, len(list), text)
			}
			for _, one := range list {
				if one.Verdict != tc.verdict || one.Live.Agrees != tc.agrees || !strings.HasPrefix(one.Live.Text, tc.text) {
					t.Errorf("%s: %s, %s\nwant %s, %q", one.Query.Src, one.Verdict, one.Live, tc.verdict, tc.text)
				}
				if err := allCounted(one); err != nil {
					t.Errorf("%s: %v", one.Query.Src, err)
				}
			}
		})
	}
	for _, cut := range []struct{ name, do, undo, text string }{
		{"tunnel", "ip link set eth0 down", "ip link set eth0 up",
			"it was last seen leaving node node1 for the underlay, and not arriving at node node2 from the underlay"},
	} {
		t.Run(cut.name, func(t *testing.T) {
			l.Run("node/node2", strings.Fields(cut.do)...)
			list, text, code := trace("shop/client", "pod/shop/web:8080")
			l.Run("node/node2", strings.Fields(cut.undo)...)
			if code != 1 || len(list) == 0 {
				t.Fatalf("code %d: %s", code, text)
			}
			for _, one := range list {
				if one.Verdict != walk.Reaches || one.Live.Agrees || one.Live.Sent != 3 || one.Live.Text != cut.text {
					t.Errorf("%s: %s, %s\nwant %q", one.Query.Src, one.Verdict, one.Live, cut.text)
				}
			}
		})
	}
	if after := flows(); after != before {
		t.Errorf("flows before\n%s\nafter\n%s", before, after)
	}
}

// allCounted: each flow of the path that the packet took has counted it.
func allCounted(one walk.Trace) error {
	for _, h := range one.Paths[one.Live.Path].Hops {
		if h.Live == nil || h.Live.Missed != "" || !h.Kernel && len(h.Live.Counted) == 0 {
			return fmt.Errorf("%s on %s: %+v", h.In, h.Node, h.Live)
		}
	}
	return nil
}
