//go:build integration

package datapath

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/lab/labtest"
)

const (
	// reuseAfter is in the middle between the 30 seconds for which Open vSwitch would remember a closed connection
	// and the 60 of TIME_WAIT.
	reuseAfter = 40 * time.Second
	// reusePorts is how many connections one case makes. Without the switch's memory about a third of them fail.
	reusePorts = 40
)

// TestServicePortAgain: a client's port that is used again for the same endpoint by another way connects at once,
// while the endpoint still has the last connection in TIME_WAIT: the endpoint's answer to the first packet belongs to
// a connection that the switch must remember.
func TestServicePortAgain(t *testing.T) {
	text := podManifest("client", "client", "node1", 9, "") + podManifest("web", "web", "node2", 8080, "")
	for _, name := range []string{"a", "b"} {
		text += fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{name: tcp, port: 80, targetPort: tcp}]
`, name)
	}
	l := labtest.Up(t, "svcreuse", "-f", labtest.Write(t, map[string]string{"f.yaml": text}), "--nodes=2",
		"--ip-family=dual")
	status := l.Status()
	addrs := map[string][]netip.Addr{"web": openClient(t, status, "web", "node2", "pod").ips}
	for _, s := range status.Services {
		for _, ip := range s.IPs {
			addrs[s.Name] = append(addrs[s.Name], netip.MustParseAddr(ip))
		}
	}
	at := func(name string, v4 bool) netip.AddrPort {
		port := uint16(80)
		if name == "web" {
			port = 8080
		}
		return netip.AddrPortFrom(of(addrs[name], v4), port)
	}
	from := openClient(t, status, "client", "node1", "pod")
	type reuse struct {
		first, then string
		v4          bool
		base        int
	}
	var cases []reuse
	for _, v4 := range []bool{true, false} {
		for _, c := range [][2]string{{"a", "a"}, {"a", "b"}, {"web", "b"}, {"a", "web"}} {
			cases = append(cases, reuse{c[0], c[1], v4, 20000 + len(cases)*reusePorts})
		}
	}
	var wg sync.WaitGroup
	for _, c := range cases {
		for n := range reusePorts {
			if err := from.connectFrom(c.base+n, at(c.first, c.v4)); err != nil {
				t.Fatalf("first connection to %s: %v", at(c.first, c.v4), err)
			}
		}
	}
	time.Sleep(reuseAfter) // not a wait for a condition: the test is about what is remembered after this time
	for _, c := range cases {
		wg.Go(func() {
			failed, last := 0, error(nil)
			for n := range reusePorts {
				if err := from.connectFrom(c.base+n, at(c.then, c.v4)); err != nil {
					failed, last = failed+1, err
				}
			}
			if failed > 0 {
				t.Errorf("%s, then %s (%s): %d of %d failed: %v", c.first, c.then, familyName(c.v4), failed, reusePorts, last)
			}
		})
	}
	wg.Wait()
}
