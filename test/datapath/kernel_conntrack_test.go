//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

// early are UDP sockets that have sent to an address without a server, and never pause.
type early struct {
	*labtest.Lab
	file    string
	pods    string
	clients []*client
	sockets []*earlySocket
}

type earlySocket struct {
	what string
	conn *net.UDPConn
}

// upEarly brings up a lab of two nodes with endpoints on both, and clients that are pods, nodes and outside.
func upEarly(t *testing.T, name string) *early {
	t.Helper()
	e := &early{pods: podManifest("web-1", "web", "node1", 8080, "") + podManifest("web-2", "web", "node2", 8080,
		"") + podManifest("other", "other", "node2", 8080, "") +
		podManifest("client", "client", "node1", 9, "") + podManifest("host-1", "client", "node1", 9, hostNetwork) +
		podManifest("host-2", "client", "node2", 9, hostNetwork)}
	e.file = filepath.Join(labtest.Write(t, map[string]string{"f.yaml": e.pods}), "f.yaml")
	e.Lab = labtest.Up(t, name, "-f", e.file, "--nodes=2", "--ip-family=dual")
	s := e.Status()
	for _, one := range []struct{ name, node, kind string }{{"client", "node1", "pod"}, {"host-1", "node1", "node"},
		{"host-2", "node2", "node"}, {"outside", "", "outside"}} {
		e.clients = append(e.clients, openClient(t, s, one.name, one.node, one.kind))
	}
	return e
}

func (e *early) node(name string) lab.NodeStatus {
	for _, n := range e.Status().Nodes {
		if n.Name == name {
			return n
		}
	}
	return lab.NodeStatus{}
}

// open makes a client's socket send to a destination, for the first time.
func (e *early) open(t *testing.T, from *client, to netip.AddrPort) {
	t.Helper()
	s := &earlySocket{what: fmt.Sprintf("from %s to %s", from.name, to)}
	if err := from.ns.Do(func() (err error) {
		s.conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	e.sockets = append(e.sockets, s)
}

// ask sends from every socket, all at once, and returns who answered each.
func (e *early) ask() []string {
	names := make([]string, len(e.sockets))
	var all sync.WaitGroup
	for i, s := range e.sockets {
		all.Go(func() {
			name, err := askAgain(s.conn)
			if err != nil {
				name = err.Error()
			}
			names[i] = name
		})
	}
	all.Wait()
	return names
}

// unserved waits until no socket is answered by a pod. Each has sent then.
func (e *early) unserved(t *testing.T, when string) {
	t.Helper()
	testenv.Eventually(t, 20*time.Second, func() error {
		var errs []error
		for i, name := range e.ask() {
			if strings.HasPrefix(name, "default/") {
				errs = append(errs, fmt.Errorf("%s: %s, answered by %q", when, e.sockets[i].what, name))
			}
		}
		return errors.Join(errs...)
	})
}

// served waits until every socket is answered by a pod of an app.
func (e *early) served(t *testing.T, when, app string) {
	t.Helper()
	start := time.Now()
	testenv.Eventually(t, 20*time.Second, func() error {
		var errs []error
		for i, name := range e.ask() {
			if !strings.HasPrefix(name, "default/"+app) {
				errs = append(errs, fmt.Errorf("%s: %s, answered by %q", when, e.sockets[i].what, name))
			}
		}
		return errors.Join(errs...)
	})
	t.Logf("%s: all %d sockets are served after %s", when, len(e.sockets), time.Since(start).Round(time.Millisecond))
}

func (e *early) write(t *testing.T, services ...string) {
	t.Helper()
	if err := os.WriteFile(e.file, []byte(e.pods+strings.Join(services, "")), 0o644); err != nil {
		t.Fatal(err)
	}
}

// udpService is a Service over UDP of an app.
func udpService(name, app, more string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: %s}%s
  ports: [{port: 53, protocol: UDP, targetPort: udp, nodePort: 30053}]
`, name, app, more)
}

// A socket that sends to a node port since before there is one is served within seconds, without a pause; by its next
// Service, too, after the agents were away.
func TestUDPBeforeNodePort(t *testing.T) {
	e := upEarly(t, "kctnp")
	for _, from := range e.clients {
		for _, node := range []string{"node1", "node2"} {
			for _, v4 := range []bool{true, false} {
				e.open(t, from, netip.AddrPortFrom(of(e.node(node).Addrs, v4), 30053))
			}
		}
	}
	e.unserved(t, "before the Service")
	e.write(t, udpService("np", "web", ""))
	e.served(t, "the Service came", "web")
	e.write(t, udpService("next", "other", ""))
	e.served(t, "another Service has the node port", "other")

	e.write(t)
	e.unserved(t, "there is no Service")
	// The switches forget a moment later what the Service has translated; an agent that ends before that does not
	// know of it.
	testenv.Eventually(t, 20*time.Second, func() error {
		for _, node := range []string{"node1", "node2"} {
			for _, is4 := range []bool{true, false} {
				if addr := model.NodePortAddr(is4).String(); strings.Contains(e.Run("node/"+node, "ovs-appctl",
					"dpctl/dump-conntrack", fmt.Sprintf("zone=%d", flows.Zone)), "dst="+addr+",") {
					return fmt.Errorf("%s has connections to %s", node, addr)
				}
			}
		}
		return nil
	})
	(&changing{Lab: e.Lab}).restartAgents(t, func() { e.write(t, udpService("np", "web", "")); e.ask() })
	e.served(t, "the Service came while the agents were away", "web")
}

// An external address that comes to the node after clients have sent to it.
func TestUDPBeforeExternalAddress(t *testing.T) {
	e := upEarly(t, "kctext")
	addrs := []netip.Addr{netip.MustParseAddr("172.31.0.50"), netip.MustParseAddr("fd57:6566:7461::50")}
	node1 := e.node("node1").Addrs
	for _, a := range addrs {
		e.Run("outside", "ip", "route", "replace", a.String(), "via", of(node1, a.Is4()).String())
		for _, from := range []*client{e.clients[1], e.clients[3]} { // node1 and outside
			e.open(t, from, netip.AddrPortFrom(a, 53))
		}
	}
	external := fmt.Sprintf("\n  externalIPs: [%q, %q]", addrs[0], addrs[1])
	e.write(t, udpService("ext", "web", external))
	e.served(t, "the address is not the node's", "web")
	for _, a := range addrs {
		e.Run("node/node1", "ip", "addr", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "lo", "nodad")
	}
	e.served(t, "the address has come to the node", "web")
	for _, a := range addrs {
		e.Run("node/node1", "ip", "addr", "del", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "lo")
	}
	e.served(t, "the address has left the node", "web")
}

// A socket that began while Weft's nftables table was absent is masqueraded as soon as the table is repaired, although
// foreign rules had its connection tracked.
func TestUDPAfterFlush(t *testing.T) {
	e := upEarly(t, "kctflush")
	client, outside := e.clients[0], e.clients[3]
	echo := podns.NewResponder(outside.ns, "default/outside")
	t.Cleanup(echo.Close)
	if _, err := echo.Listen([]podns.Port{{Proto: podns.UDP, Number: 9999}}); err != nil {
		t.Fatal(err)
	}
	// A running agent would repair its table at once, so there is none in the gap.
	(&changing{Lab: e.Lab}).restartAgents(t, func() {
		e.Run("node/node1", "sh", "-ec", `nft add table inet foreign
nft add chain inet foreign c '{ type filter hook forward priority 10; policy accept; }'
nft add rule inet foreign c ct state established accept
nft delete table inet weft`)
		for _, v4 := range []bool{true, false} {
			e.open(t, client, netip.AddrPortFrom(of(outside.ips, v4), 9999))
		}
		e.ask()
	})
	e.served(t, "the table is back", "outside")
}
