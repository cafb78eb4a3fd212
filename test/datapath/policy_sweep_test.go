//go:build integration

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/podns"
)

// A push is a stream of datagrams from a server to a client that has sent one and is silent since.
type push struct {
	name    string
	sent    atomic.Uint64
	got     atomic.Uint64
	latest  atomic.Int64 // when the last one came, in nanoseconds since 1970
	end     chan struct{}
	stopped chan struct{} // closed when nothing is sent any more
}

// pushTo has a client ask a server, whose address may be a Service's, once; the server then sends without end.
func (c *client) pushTo(t *testing.T, l *listeners, to netip.AddrPort, every time.Duration, name string) *push {
	t.Helper()
	var mine, theirs net.Conn
	testenv.Eventually(t, 10*time.Second, func() (err error) {
		mine, theirs, err = c.meet(l, podns.UDP, to)
		return err
	})
	p := &push{name: name, end: make(chan struct{}), stopped: make(chan struct{})}
	go func() {
		defer close(p.stopped)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for buf := make([]byte, datagram); ; {
			select {
			case <-p.end:
				return
			case <-ticker.C:
			}
			binary.BigEndian.PutUint64(buf, p.sent.Load())
			if _, err := theirs.Write(buf); err == nil {
				p.sent.Add(1)
			}
		}
	}()
	go func() {
		for buf := make([]byte, 1<<11); ; {
			n, err := mine.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n == datagram {
				p.got.Add(1)
				p.latest.Store(time.Now().UnixNano())
			}
		}
	}()
	t.Cleanup(func() { p.stop(); _, _ = mine.Close(), theirs.Close() })
	return p
}

func (p *push) stop() {
	select {
	case <-p.end:
	default:
		close(p.end)
	}
	<-p.stopped
}

// flow waits until something more has come through each.
func flow(t *testing.T, what string, all []*push) {
	t.Helper()
	had := make([]uint64, len(all))
	for i, p := range all {
		had[i] = p.got.Load()
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		for i, p := range all {
			if p.got.Load() < had[i]+3 {
				return fmt.Errorf("%s: nothing arrives of %s", what, p.name)
			}
		}
		return nil
	})
}

// A server that sends to a silent client is stopped within a second of a policy's edit that denies the connection, by
// the policy of either end, on one node and across nodes, itself and through a Service, in both families, and stays
// stopped although the other end might begin a connection to it; an allowed neighbor's 1,000 packets a second all
// arrive.
func TestPolicyStopsSilentClients(t *testing.T) {
	const ns = "push"
	w := upWalled(t, "polpush", map[string]string{"base.yaml": walledPod(ns, "server", "node1",
		"app: server, role: push") + walledPod(ns, "calm", "node1", "app: server") +
		walledPod(ns, "near", "node1", "app: client") + walledPod(ns, "far", "node2", "app: client") + walledPod(ns, "friend",
		"node2", "app: friend") +
		walledService(ns, "server", "role: push", streamPort)})
	server, calm := w.pod(t, "server"), w.pod(t, "calm")
	l, calmly := server.serve(t, streamPort), calm.serve(t, streamPort)
	vips := w.serviceIPs(t, ns, "server")
	var theirs []*push
	for _, name := range []string{"near", "far"} {
		for _, v4 := range []bool{true, false} {
			for kind, to := range map[string]netip.AddrPort{"itself": netip.AddrPortFrom(server.addr(v4), streamPort),
				"its Service": netip.AddrPortFrom(of(vips, v4), 80)} {
				theirs = append(theirs, w.pod(t, name).pushTo(t, l, to, 10*time.Millisecond, fmt.Sprintf("%s from %s, %s", kind,
					name, familyName(v4))))
			}
		}
	}
	neighbor := w.pod(t, "friend").pushTo(t, calmly, netip.AddrPortFrom(calm.addr(true), streamPort), time.Millisecond,
		"the friend")
	flow(t, "without a policy", append(theirs, neighbor))
	// Each edit denies the connections of clients; the second and third leave the server free to begin one to them.
	for _, one := range []struct{ what, spec string }{
		{"both ends are walled",
			"podSelector: {matchExpressions: [{key: app, operator: In, values: [server, client]}]}, ingress: [{from: " +
				"[{podSelector: {matchLabels: {app: friend}}}]}]"},
		{"the server is walled", wallForFriends},
		{"the clients are caged", cage},
	} {
		edit := w.write(t, "policy.yaml", policyManifest(ns, "p", one.spec))
		time.Sleep(time.Until(edit.Add(testenv.Patience(stopsWithin))))
		had := make([]uint64, len(theirs))
		for i, p := range theirs {
			had[i] = p.got.Load()
		}
		time.Sleep(watched)
		longest := time.Duration(0)
		for i, p := range theirs {
			if n := p.got.Load() - had[i]; n > 0 {
				t.Errorf("%s: %s: %d datagrams came more than %s after the edit", one.what, p.name, n,
					testenv.Patience(stopsWithin))
			}
			longest = max(longest, time.Unix(0, p.latest.Load()).Sub(edit))
		}
		t.Logf("%s: all had stopped %s after the edit", one.what, longest.Round(time.Millisecond))
		flow(t, one.what, []*push{neighbor})
		w.write(t, "policy.yaml", "# none\n")
		// They flow again when the client says something; until then the answers are those of a denied connection.
		theirs = nil
		for _, name := range []string{"near", "far"} {
			for _, v4 := range []bool{true, false} {
				theirs = append(theirs, w.pod(t, name).pushTo(t, l, netip.AddrPortFrom(server.addr(v4), streamPort),
					10*time.Millisecond, fmt.Sprintf("%s, %s", name, familyName(v4))))
			}
		}
		flow(t, "after the policy", theirs)
	}
	neighbor.stop()
	testenv.Eventually(t, 2*time.Second, func() error {
		if sent, got := neighbor.sent.Load(), neighbor.got.Load(); got != sent {
			return fmt.Errorf("%d of %d datagrams of an allowed neighbor arrived", got, sent)
		}
		return nil
	})
	t.Logf("%d datagrams of the neighbor arrived", neighbor.got.Load())
}

// connectionsOf are the entries of a node's switch about an address, in the zones that pods' connections are in.
func (w *walled) connectionsOf(node string, addr netip.Addr) (lines []string) {
	for _, zone := range []string{"zone=22373", "zone=22374", "zone=22375"} {
		for line := range strings.Lines(w.Run("node/"+node, "ovs-appctl", "dpctl/dump-conntrack", zone)) {
			// ovs-vswitchd 3.1.0 dies of the removal of ICMPv6.
			if strings.Contains(line, "="+addr.String()+",") && !strings.HasPrefix(line, "icmpv6,") {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// What a pod leaves behind in the switch goes with it, and what it left while its agent was dead, when there is an
// agent again. The next pod with its address connects as if it were the first.
func TestAddressUsedAgain(t *testing.T) {
	const ns = "again"
	w := upWalled(t, "polagain", map[string]string{"base.yaml": walledPod(ns, "near", "node1", "app: x") + walledPod(ns,
		"far", "node2", "app: x") + walledService(ns, "near", "app: y", 8080)})
	peers := []*client{w.pod(t, "near"), w.pod(t, "far")}
	talk := func(name string) *client {
		w.write(t, "pods.yaml", walledPod(ns, name, "node1", "app: y"))
		c := w.pod(t, name)
		vips := w.serviceIPs(t, ns, "near")
		for _, v4 := range []bool{true, false} {
			for _, proto := range []podns.Proto{podns.TCP, podns.UDP} {
				for _, p := range peers {
					for _, one := range []struct {
						from *client
						to   netip.AddrPort
					}{{c, netip.AddrPortFrom(p.addr(v4), 8080)}, {p, netip.AddrPortFrom(c.addr(v4), 8080)}, {p,
						netip.AddrPortFrom(of(vips, v4), 80)}, {c, netip.AddrPortFrom(of(vips, v4), 80)}} {
						testenv.Eventually(t, 10*time.Second, func() error {
							answer, err := one.from.outcome(proto, one.to, time.Second)
							if err == nil && answer.Outcome != podns.Answered {
								err = fmt.Errorf("%s from %s to %s: %s", proto, one.from.name, one.to, answer.Outcome)
							}
							return err
						})
					}
				}
			}
		}
		for _, ip := range c.ips {
			if len(w.connectionsOf("node1", ip)) == 0 {
				t.Fatalf("%s has connections, and the switch knows none: this tests nothing", ip)
			}
		}
		return c
	}
	clean := func(what string, c *client) {
		t.Helper()
		for _, ip := range c.ips {
			testenv.Eventually(t, 5*time.Second, func() error {
				if left := w.connectionsOf("node1", ip); len(left) > 0 {
					return fmt.Errorf("%s: %d connections of %s are left: %v", what, len(left), ip, left)
				}
				return nil
			})
		}
	}
	restart := func() {
		t.Helper()
		agent := w.node(t, "node1").Agent
		if err := agent.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 30*time.Second, func() error {
			if n := w.node(t, "node1"); n.Agent == agent || n.Problem != "" {
				return errors.New("the agent is not back: " + n.Problem)
			}
			return nil
		})
	}
	first := talk("first")
	w.write(t, "pods.yaml", "# no pods\n")
	w.gone(t, "first")
	clean("the pod is gone", first)
	w.forgetAddresses("node1")
	restart()
	second := talk("second")
	if fmt.Sprint(second.ips) != fmt.Sprint(first.ips) {
		t.Fatalf("the new pod has the addresses %v, the old one had %v: this tests nothing", second.ips, first.ips)
	}
}

// A datagram socket whose endpoint left its Service while no agent was there reaches another once there is one, with
// sessionAffinity and without.
func TestEndpointGoneWhileAgentDead(t *testing.T) {
	for name, more := range map[string]string{"svcdead": "", "svcdeada": "\n  sessionAffinity: ClientIP"} {
		t.Run(name, func(t *testing.T) {
			endpoints := map[string]string{"default/a": web("a", "node1"), "default/b": web("b", "node2")}
			c := upChanging(t, name, more, endpoints["default/a"], endpoints["default/b"])
			from := c.clients[0]
			var conn *net.UDPConn
			if err := from.ns.Do(func() (err error) {
				conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(c.at(from, podns.UDP)))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			had := ""
			testenv.Eventually(t, 5*time.Second, func() (err error) { had, err = askAgain(conn); return err })
			for _, n := range c.Status().Nodes {
				if err := n.Agent.Signal(syscall.SIGSTOP); err != nil { // it must not see what it cannot finish
					t.Fatal(err)
				}
			}
			var texts []string
			for name, text := range endpoints {
				if name == had {
					text = strings.Replace(text, "app: web", "app: other", 1) // it lives, and answers
				}
				texts = append(texts, text)
			}
			c.write(t, texts...)
			testenv.Eventually(t, 20*time.Second, func() error {
				if p, err := c.Status().Find(had); err != nil || p.Labels["app"] != "other" {
					return fmt.Errorf("%s still has the labels %v, %w", had, p.Labels, err)
				}
				return nil
			})
			if got, err := askAgain(conn); err != nil || got != had {
				t.Fatalf("without an agent the socket reaches %s (%v), and reached %s before", got, err, had)
			}
			c.restartAgents(t, func() {})
			testenv.Eventually(t, 5*time.Second, func() error {
				got, err := askAgain(conn)
				if err == nil && got == had {
					err = fmt.Errorf("the socket still reaches %s, which is not an endpoint", got)
				}
				return err
			})
		})
	}
}
