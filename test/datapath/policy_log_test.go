//go:build integration

package datapath

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
)

const loggedPods = `
apiVersion: v1
kind: Namespace
metadata: {name: logs}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: logs, labels: {app: server}}
spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 8080, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: logs}
spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 1}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: logs, annotations: {weft.dev/log-policy: "true"}}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{ports: [{port: 8080, protocol: UDP}]}]
`

// TestPolicyLog: the agent writes down what a policy with the annotation allows and denies, and a flood makes it write
// no more than the meter lets through, while every packet is counted.
func TestPolicyLog(t *testing.T) {
	const flood = 5 * time.Second
	l := labtest.Up(t, "plog", "-f", labtest.Write(t, map[string]string{"all.yaml": loggedPods}), "--nodes=1",
		"--ip-family=dual")
	client, server := openClient(t, l.Status(), "logs/client", "node1", "pod"), openClient(t, l.Status(), "logs/server",
		"node1", "pod")
	log := func() string {
		text, err := os.ReadFile(filepath.Join(lab.Root, l.Name, "logs", "node1-weft-agent.log"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	dial := func(v4 bool, port uint16) net.Conn {
		var conn net.Conn
		if err := client.ns.Do(func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(t.Context(), "udp", netip.AddrPortFrom(server.addr(v4), port).String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	send := func(conn net.Conn) {
		_, _ = conn.Write([]byte("hello")) // who is refused before hears of it here
	}
	for _, v4 := range []bool{true, false} {
		for port, want := range map[uint16]string{
			8080: "verdict=allowed tier=NetworkPolicy policy=logs/server direction=Ingress rule=0 pod=logs/server",
			9999: "verdict=denied tier=NetworkPolicy policy=logs/server direction=Ingress pod=logs/server"} {
			want = fmt.Sprintf("src=%s dst=%s port=%d proto=udp %s\n", client.addr(v4), server.addr(v4), port, want)
			testenv.Eventually(t, 20*time.Second, func() error {
				send(dial(v4, port)) // a connection of its own each time: only the first packet of what is allowed is logged
				if !strings.Contains(log(), want) {
					return fmt.Errorf("the agent has not written %q", want)
				}
				return nil
			})
		}
	}

	count := func() int { return strings.Count(log(), "port=7777 proto=udp verdict=denied") }
	conn, sent, begun := dial(true, 7777), uint64(0), time.Now()
	for time.Since(begun) < flood {
		send(conn)
		sent++
	}
	seconds := int(time.Since(begun).Seconds()) + 1
	var denied uint64
	testenv.Eventually(t, 20*time.Second, func() error {
		var policies []report.Policy
		if err := json.Unmarshal([]byte(l.Run("node/node1", labtest.Program(t, "weftctl"), "policy", "logs/server", "-o",
			"json")), &policies); err != nil {
			return err
		}
		before := denied
		for _, r := range policies[0].Rules {
			if r.Rule == report.RuleDenied {
				denied = r.Packets
			}
		}
		if denied != before {
			return fmt.Errorf("%d packets are counted, and not all of them yet", denied)
		}
		return nil
	})
	most := int(flows.MeterDenied.Burst) + int(flows.MeterDenied.Rate)*seconds
	got := count()
	t.Logf("%d packets sent in %v, %d denied and counted, %d logged (at most %d)", sent, flood, denied, got, most)
	if got > most || got < most/3 {
		t.Errorf("%d of %d packets are in the log; the meter lets %d a second through", got, denied, flows.MeterDenied.Rate)
	}
	if denied < 2*uint64(most) { // an emulated machine sends 600 a second
		t.Errorf("only %d packets were denied, no flood: this test tests nothing", denied)
	}
}
