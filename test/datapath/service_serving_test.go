//go:build integration

package datapath

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

// keptSocket is a UDP client's socket, and the endpoint that it had at first.
type keptSocket struct {
	what string
	conn *net.UDPConn
	had  string
}

// servingService is a Service whose endpoints on node2 take no new connections of node1 any more, but serve.
type servingService struct {
	name, kind, app string
	later           string // what its specification gets
}

var servingServices = []servingService{
	{name: "terminating", kind: "NodePort", app: "term"},
	{name: "near", kind: "NodePort", app: "stay", later: "\n  trafficDistribution: PreferSameNode"},
	{name: "local", kind: "ClusterIP", app: "stay", later: "\n  internalTrafficPolicy: Local"},
}

// TestServiceUDPServingEndpoint: a UDP client stays with its endpoint for as long as that one serves: while it
// terminates, when hints give it to another node, when a traffic policy leaves it out. New connections go elsewhere
// at once. When it is gone, its clients go elsewhere, too.
func TestServiceUDPServingEndpoint(t *testing.T) {
	manifest := func(changed, gone bool) string {
		var b strings.Builder
		b.WriteString(podManifest("client", "client", "node1", 9, ""))
		for _, app := range []string{"term", "stay"} {
			b.WriteString(podManifest(app+"-1", app, "node1", 8080, ""))
			far := podManifest(app+"-2", app, "node2", 8080, "")
			if changed && app == "term" {
				far = strings.Replace(far, "metadata: {", `metadata: {deletionTimestamp: "2030-01-02T03:04:05Z", `, 1)
			}
			if !gone {
				b.WriteString(far)
			}
		}
		for _, s := range servingServices {
			later := ""
			if changed {
				later = s.later
			}
			fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  type: %s
  ipFamilyPolicy: RequireDualStack
  selector: {app: %s}%s
  ports: [{name: udp, port: 80, targetPort: udp, protocol: UDP}]
`, s.name, s.kind, s.app, later)
		}
		return b.String()
	}
	file := filepath.Join(labtest.Write(t, map[string]string{"f.yaml": manifest(false, false)}), "f.yaml")
	l := labtest.Up(t, "svcserve", "-f", file, "--nodes=2", "--ip-family=dual")
	status := l.Status()
	clients := []*client{openClient(t, status, "client", "node1", "pod"), openClient(t, status, "outside", "", "outside")}
	type way struct {
		service servingService
		from    *client
		to      netip.AddrPort
		sockets []*keptSocket
	}
	var ways []*way
	for _, service := range servingServices {
		for _, s := range status.Services {
			if s.Name != service.name {
				continue
			}
			var port, nodePort uint16
			if _, err := fmt.Sscanf(s.Ports[0], "%d:%d/UDP", &port, &nodePort); err != nil {
				if _, err := fmt.Sscanf(s.Ports[0], "%d/UDP", &port); err != nil {
					t.Fatalf("port of Service %s: %q", s.Name, s.Ports[0])
				}
			}
			for _, text := range s.IPs {
				ip := netip.MustParseAddr(text)
				ways = append(ways, &way{service: service, from: clients[0], to: netip.AddrPortFrom(ip, port)})
				if nodePort != 0 {
					ways = append(ways, &way{service: service, from: clients[1], to: netip.AddrPortFrom(of(status.Nodes[0].Addrs,
						ip.Is4()), nodePort)})
				}
			}
		}
	}
	if len(ways) != 10 {
		t.Fatalf("%d ways to Services, want 10: %+v", len(ways), status.Services)
	}
	for _, w := range ways {
		seen := map[string]int{}
		// Of 40 sockets, one in a million million goes to one endpoint only.
		for n := 0; n < 40 && (seen[w.service.app+"-1"] < 2 || seen[w.service.app+"-2"] < 2); n++ {
			s := &keptSocket{what: fmt.Sprintf("%s from %s to %s", w.service.name, w.from.name, w.to)}
			if err := w.from.ns.Do(func() (err error) {
				s.conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(w.to))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.conn.Close() })
			testenv.Eventually(t, 10*time.Second, func() (err error) { s.had, err = askAgain(s.conn); return err })
			seen[strings.TrimPrefix(s.had, "default/")]++
			w.sockets = append(w.sockets, s)
		}
		if len(seen) != 2 {
			t.Fatalf("%s from %s: endpoints %v, want two", w.service.name, w.from.name, seen)
		}
	}
	become := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	onlyNear := func(when string) {
		t.Helper()
		for _, w := range ways {
			testenv.Eventually(t, 20*time.Second, func() error {
				for range 10 {
					if a, err := w.from.ns.Dial(podns.UDP, w.to, 5*time.Second); err != nil ||
						a.Name != "default/"+w.service.app+"-1" {
						return fmt.Errorf("%s: a new connection to %s reaches %s %s, %w", when, w.service.name, a.Name, a.Detail, err)
					}
				}
				return nil
			})
		}
	}
	become(manifest(true, false))
	onlyNear("while the other endpoint serves")
	for range 5 {
		for _, w := range ways {
			for _, s := range w.sockets {
				if got, err := askAgain(s.conn); err != nil || got != s.had {
					t.Errorf("%s: a socket reaches %s (%v), and reached %s before", s.what, got, err, s.had)
				}
			}
		}
	}
	become(manifest(true, true))
	onlyNear("when the other endpoint is gone")
	for _, w := range ways {
		for _, s := range w.sockets {
			testenv.Eventually(t, 10*time.Second, func() error {
				got, err := askAgain(s.conn)
				if err == nil && got != "default/"+w.service.app+"-1" {
					err = fmt.Errorf("%s: a socket reaches %s, which is gone", s.what, got)
				}
				return err
			})
		}
	}
}
