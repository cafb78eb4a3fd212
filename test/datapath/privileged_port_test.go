//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

// talk opens a connection from a port and returns what the responder there says. The connection stays open until the
// test ends.
func (c *client) talkFrom(t *testing.T, proto podns.Proto, port int, to netip.AddrPort) (answer podns.Answer,
	err error) {
	t.Helper()
	patience := testenv.Patience(5 * time.Second)
	dialer := net.Dialer{Timeout: patience, Control: reuseAddr, LocalAddr: &net.TCPAddr{Port: port}}
	if proto == podns.UDP {
		dialer.LocalAddr = &net.UDPAddr{Port: port}
	}
	var conn net.Conn
	if err := c.ns.Do(func() (err error) {
		conn, err = dialer.DialContext(t.Context(), strings.ToLower(string(proto)), to.String())
		return err
	}); err != nil {
		return answer, err
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return answer, err
	}
	if proto == podns.UDP {
		if _, err := conn.Write([]byte("?")); err != nil {
			return answer, err
		}
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	if err != nil {
		return answer, err
	}
	return podns.ParseAnswer(strings.TrimSpace(string(buf[:n])))
}

var decidedByPort = regexp.MustCompile(`udp\(src=(\d+(?:/0x[0-9a-f]+)?)[,)]`)

// A client with a port below 1024 keeps a port below 1024, and one with a higher port a higher one, from every source
// and on every path. Two clients that have one port stay two, also where both are seen as the same
// node.
func TestPrivilegedSourcePort(t *testing.T) {
	manifest := podManifest("web-1", "web-1", "node1", 8080, "") + podManifest("web-2", "web-2", "node2", 8080,
		"") + podManifest("web-host", "web-host", "node2", 8081, hostNetwork) +
		podManifest("client", "client", "node1", 9, "") + podManifest("host-1", "client", "node1", 9, hostNetwork) +
		podManifest("host-2", "client", "node2", 9, hostNetwork)
	nodePorts := map[string]uint16{"web-1": 30081, "web-2": 30082, "web-host": 30083}
	for app, port := range nodePorts {
		manifest += fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: %[1]s}
  ports: [{name: tcp, port: 80, targetPort: tcp, nodePort: %[2]d}, {name: udp, port: 80, targetPort: udp, protocol: UDP, nodePort: %[2]d}]
`, app, port)
	}
	l := labtest.Up(t, "privport", "-f", labtest.Write(t, map[string]string{"f.yaml": manifest}), "--nodes=2",
		"--ip-family=dual")
	s := l.Status()
	var clients []*client
	for _, one := range []struct{ name, node, kind string }{{"client", "node1", "pod"}, {"host-1", "node1", "node"},
		{"host-2", "node2", "node"}, {"outside", "", "outside"}} {
		clients = append(clients, openClient(t, s, one.name, one.node, one.kind))
	}
	outside := clients[3]
	world := podns.NewResponder(outside.ns, "default/world")
	t.Cleanup(world.Close)
	if _, err := world.Listen([]podns.Port{{Proto: podns.TCP, Number: 9999},
		{Proto: podns.UDP, Number: 9999}}); err != nil {
		t.Fatal(err)
	}
	type way struct {
		what, name string
		to         netip.AddrPort
		inside     bool // not for clients outside
	}
	ways := map[bool][]way{}
	for _, v4 := range []bool{true, false} {
		for _, pod := range []string{"web-1", "web-2"} {
			ways[v4] = append(ways[v4], way{"pod " + pod, "default/" + pod, netip.AddrPortFrom(of(l.Pod(pod).IPs, v4), 8080),
				true})
		}
		for _, service := range s.Services {
			var ips []netip.Addr
			for _, text := range service.IPs {
				ips = append(ips, netip.MustParseAddr(text))
			}
			name := "default/" + service.Name
			ways[v4] = append(ways[v4], way{"Service " + service.Name, name, netip.AddrPortFrom(of(ips, v4), 80), true})
			for _, n := range s.Nodes {
				ways[v4] = append(ways[v4], way{n.Name + "'s port of " + service.Name, name, netip.AddrPortFrom(of(n.Addrs, v4),
					nodePorts[service.Name]), false})
			}
		}
		ways[v4] = append(ways[v4], way{"world", "default/world", netip.AddrPortFrom(of(outside.ips, v4), 9999), true})
	}
	// Twice the same ports: all of these are in ranges of the node's own, or of others' connections (model.OwnPorts).
	for _, port := range []int{100, 700, 900, 2000, 40000} {
		for _, v4 := range []bool{true, false} {
			for _, proto := range []podns.Proto{podns.TCP, podns.UDP} {
				for i, w := range ways[v4] {
					for _, c := range clients {
						if w.inside && c == outside {
							continue
						}
						what := fmt.Sprintf("from %s port %d to %s, %s, %s", c.name, port+i, w.what, proto, familyName(v4))
						answer, err := c.talkFrom(t, proto, port+i, w.to)
						switch {
						case err != nil || answer.Name != w.name:
							t.Errorf("%s: answered by %q: %v", what, answer.Name, err)
						case (answer.Source.Port() < 1024) != (port < 1024):
							t.Errorf("%s: seen with port %d", what, answer.Source.Port())
						}
					}
				}
			}
		}
	}
	// The datapath keeps as many decisions for clients of all ports as there are ways to tell a port from those below
	// 1024. Those of the traffic before are forgotten: the kernel draws ports for connections of the node, and one that
	// is drawn twice for one endpoint is decided about by itself.
	l.Run("node/node1", "ovs-appctl", "revalidator/purge")
	for port := 500; port < 1<<16; port += 500 {
		if answer, err := outside.talkFrom(t, podns.UDP, port, netip.AddrPortFrom(of(s.Nodes[0].Addrs, true),
			nodePorts["web-2"])); err != nil || answer.Name != "default/web-2" {
			t.Errorf("from outside port %d: answered by %q: %v", port, answer.Name, err)
		}
	}
	ports := map[string]bool{}
	for line := range strings.Lines(l.Run("node/node1", "ovs-appctl", "dpctl/dump-flows")) {
		match, _, _ := strings.Cut(line, "actions:")
		if m := decidedByPort.FindStringSubmatch(match); m != nil {
			ports[m[1]] = true
		}
	}
	t.Logf("node1 tells apart the source ports %v", slices.Sorted(maps.Keys(ports)))
	if len(ports) > 7 {
		t.Errorf("node1 keeps decisions for %d ranges of source ports, want 7 at most", len(ports))
	}
	for _, n := range l.Status().Nodes {
		if n.Problem != "" {
			t.Error(errors.New(n.Name + ": " + n.Problem))
		}
	}
}
