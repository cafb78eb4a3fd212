//go:build integration

package datapath

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

// renumbered is a lab whose nodes change their addresses.
type renumbered struct {
	*walled
	near, far, closed *client // pods of node1, node2 and node1
	node1, node2      *client
	outside           *client
	addrs             map[string][]netip.Addr // of the nodes, as they are now
	kept              map[string][]netip.Addr // addresses that the nodes have beside these
	agents            map[string]int          // their processes
	sockets           map[socket]*net.UDPConn // of pods, that ask outside
	service           []netip.Addr            // with an endpoint on node2
	nodePorts         map[bool]uint16         // by IPv4 or not
}

// announce gives a Node object these InternalIPs, in this order, as a kubelet or a cloud's controller does.
func (r *renumbered) announce(t *testing.T, node string, addrs ...netip.Addr) {
	t.Helper()
	list := []map[string]string{{"$patch": "replace"}, {"type": "Hostname", "address": node}}
	for _, a := range addrs {
		list = append(list, map[string]string{"type": "InternalIP", "address": a.String()})
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"addresses": list}})
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: testenv.Patience(10 * time.Second), Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = r.outside.ns.Do(func() error {
				var d net.Dialer
				conn, err = d.DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}}
	request, err := http.NewRequest(http.MethodPatch, "http://172.31.0.1:6443/api/v1/nodes/"+node+"/status",
		bytes.NewReader(patch))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/strategic-merge-patch+json")
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if text, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("announce the addresses of %s: %s, %v: %s", node, response.Status, err, text)
	}
}

// readdress changes the addresses of the node's own link: those to come, and those to go.
func (r *renumbered) readdress(node string, add, remove []netip.Addr) {
	link := "eth0"
	if labtest.Datapath() == config.DatapathNetdev {
		link = "br-phy"
	}
	var script strings.Builder
	write := func(verb string, addrs []netip.Addr, nodad string) {
		for _, a := range addrs {
			bits, flags := 24, ""
			if a.Is6() {
				bits, flags = 64, nodad
			}
			fmt.Fprintf(&script, "ip addr %s %s/%d dev %s%s\n", verb, a, bits, link, flags)
		}
	}
	// Without it the kernel takes an address that came later along with the first of its subnet.
	fmt.Fprintf(&script, "echo 1 >/proc/sys/net/ipv4/conf/%s/promote_secondaries\n", link)
	write("del", remove, "")
	write("add", add, " nodad")
	r.Run("node/"+node, "sh", "-ec", script.String())
}

// gap waits until the agent of node1 says that its Node object and its links disagree.
func (r *renumbered) gap(t *testing.T, announced, has netip.Addr) {
	t.Helper()
	testenv.Eventually(t, 10*time.Second, func() error {
		s := r.status(t, "node1")
		for _, p := range s.Problems {
			if strings.HasPrefix(p, "InternalIP: node node1 has the InternalIP ["+announced.String()) &&
				strings.Contains(p, has.String()) {
				return nil
			}
		}
		return fmt.Errorf("the problems of node1 do not name %s and %s: %q", announced, has, s.Problems)
	})
}

// works says what of the lab's traffic does not work, or nil.
func (r *renumbered) works(t *testing.T) error {
	t.Helper()
	var errs []error
	dial := func(what string, from *client, to netip.AddrPort) {
		for _, proto := range []podns.Proto{podns.TCP, podns.UDP} {
			answer, err := from.outcome(proto, to, time.Second)
			if err == nil && answer.Outcome != podns.Answered {
				err = fmt.Errorf("%s (%s)", answer.Outcome, answer.Detail)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s, %s/%s: %w", what, to, proto, err))
			}
		}
	}
	at := netip.AddrPortFrom
	for _, v4 := range []bool{true, false} {
		dial("pod to pod of the other node", r.near, at(r.far.addr(v4), 8080))
		dial("and back", r.far, at(r.near.addr(v4), 8080))
		dial("pod to Service", r.near, at(of(r.service, v4), 80))
		dial("node to pod of the other node", r.node1, at(r.far.addr(v4), 8080))
		dial("and from the other", r.node2, at(r.near.addr(v4), 8080))
		for _, node := range []string{"node1", "node2"} {
			own := of(r.addrs[node], v4)
			dial("isolated pod to address of "+node, map[string]*client{"node1": r.closed, "node2": r.far}[node], at(own, 8080))
			dial("node port of "+node+" from outside", r.outside, at(own, r.nodePorts[v4]))
			dial("node port of "+node+" from the other node", map[string]*client{"node1": r.node2, "node2": r.node1}[node],
				at(own, r.nodePorts[v4]))
			dial("pod to a node port of "+node, r.near, at(own, r.nodePorts[v4]))
		}
		for node, pod := range map[string]*client{"node1": r.near, "node2": r.far} {
			want := append(slices.Clone(r.kept[node]), r.addrs[node]...) // the kernel chooses among these
			check := func(proto, source string, err error) {
				if err == nil && !slices.ContainsFunc(want, func(a netip.Addr) bool { return a.String() == source }) {
					err = fmt.Errorf("seen as %s, want one of %s", source, want)
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("pod of %s to a host outside by %s: %w", node, proto, err))
				}
			}
			source, err := hello(pod.ns, at(r.outside.addr(v4), mirrorPort))
			check("TCP", source, err)
			source, err = r.ask(t, pod, v4)
			check("one socket of UDP", source, err)
		}
	}
	for _, node := range []string{"node1", "node2"} {
		s := r.status(t, node)
		if len(s.Problems) > 0 || !s.Ready || !slices.Equal(s.Addrs, r.addrs[node]) {
			errs = append(errs, fmt.Errorf("%s: ready %t, addresses %v, problems %q", node, s.Ready, s.Addrs, s.Problems))
		}
		if now := r.node(t, node).Agent.PID; now != r.agents[node] {
			t.Errorf("the agent of %s was restarted", node)
		}
	}
	return errors.Join(errs...)
}

// mirrorPort is where the host outside tells its clients their addresses.
const mirrorPort = 9000

// ask asks the host outside for a pod's address, by a socket of UDP that stays the same, as a resolver's may. An answer
// to an earlier question is not taken.
func (r *renumbered) ask(t *testing.T, from *client, v4 bool) (string, error) {
	t.Helper()
	key := socket{from, v4}
	if r.sockets[key] == nil {
		if err := from.ns.Do(func() (err error) {
			r.sockets[key], err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.outside.addr(v4),
				mirrorPort)))
			return err
		}); err != nil {
			return "", err
		}
		t.Cleanup(func() { r.sockets[key].Close() })
	}
	conn, buf := r.sockets[key], make([]byte, 100)
	for conn.SetReadDeadline(time.Now().Add(time.Millisecond)) == nil {
		if _, err := conn.Read(buf); err != nil {
			break
		}
	}
	if _, err := conn.Write([]byte("?")); err != nil {
		return "", err
	}
	if err := conn.SetReadDeadline(time.Now().Add(testenv.Patience(time.Second))); err != nil {
		return "", err
	}
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

// socket is a pod's, of one family.
type socket struct {
	from *client
	v4   bool
}

// mirror has the host outside tell its clients their addresses.
func (r *renumbered) mirror(t *testing.T) {
	t.Helper()
	var listener net.Listener
	if err := r.outside.ns.Do(func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", mirrorPort))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var packets *net.UDPConn
	if err := r.outside.ns.Do(func() (err error) {
		packets, err = net.ListenUDP("udp", &net.UDPAddr{Port: mirrorPort})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { packets.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := packets.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = packets.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()), from)
		}
	}()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(unmapped(c.RemoteAddr()).Addr().String()))
			c.Close()
		}
	}()
}

// TestNodeAddressChanges: nodes get other addresses while pods run, in one family or both, the Node object first or the
// link, with the old address kept and without, and two nodes exchange theirs. All traffic resumes within seconds, no
// agent has to be restarted, and connections between pods go on.
func TestNodeAddressChanges(t *testing.T) {
	const ns = "renumbered"
	nodePorts := map[bool]uint16{true: 30084, false: 30086}
	var services strings.Builder
	for v4, port := range nodePorts {
		family := map[bool]string{true: "IPv4", false: "IPv6"}[v4]
		fmt.Fprintf(&services, `---
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: np-%s}
spec: {type: NodePort, ipFamilies: [%s], selector: {app: server}, ports: [{name: tcp, port: 80, targetPort: 8080, nodePort: %[4]d}, {name: udp, port: 80, targetPort: 8080, nodePort: %[4]d, protocol: UDP}]}
`, ns, strings.ToLower(family), family, port)
	}
	host := strings.ReplaceAll(walledPod(ns, "host-1", "node1", "app: host")+walledPod(ns, "host-2", "node2", "app: host"),
		"spec: {", "spec: {hostNetwork: true, ")
	w := upWalled(t, "renum", map[string]string{"f.yaml": walledPod(ns, "near", "node1", "app: near") + walledPod(ns,
		"closed", "node1", "app: closed") +
		walledPod(ns, "far", "node2", "app: server") + host + walledService(ns, "web", "app: server",
		8080) + services.String() +
		policyManifest(ns, "closed", "podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress, Egress]")})
	r := &renumbered{walled: w, near: w.pod(t, "near"), far: w.pod(t, "far"), closed: w.pod(t, "closed"),
		node1: w.host(t, "node1"), node2: w.host(t, "node2"),
		outside: openClient(t, w.Status(), "outside", "", "outside"), addrs: map[string][]netip.Addr{},
		kept: map[string][]netip.Addr{}, agents: map[string]int{}, sockets: map[socket]*net.UDPConn{},
		service: w.serviceIPs(t, ns, "web"), nodePorts: nodePorts}
	r.mirror(t)
	for _, node := range []string{"node1", "node2"} {
		s := w.node(t, node)
		r.addrs[node], r.agents[node] = s.Addrs, s.Agent.PID
	}
	testenv.Eventually(t, 20*time.Second, func() error { return r.works(t) })
	farServer := r.far.serve(t, 9100)
	streams := []*stream{
		r.near.streamTo(t, r.far, farServer, podns.TCP, netip.AddrPortFrom(r.far.addr(true), 9100), false, "TCP over IPv4"),
		r.near.streamTo(t, r.far, farServer, podns.TCP, netip.AddrPortFrom(r.far.addr(false), 9100), true, "TCP over IPv6"),
	}

	v4 := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, 0, n}) }
	v6 := func(n byte) netip.Addr {
		return netip.MustParseAddr(fmt.Sprintf("fd57:6566:7461::%x", n))
	}
	list := func(a ...netip.Addr) []netip.Addr { return a }
	change := func(name string, do func()) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			do()
			begin := time.Now()
			testenv.Eventually(t, 15*time.Second, func() error { return r.works(t) })
			t.Logf("all works again after %v", time.Since(begin).Round(100*time.Millisecond))
			testenv.Eventually(t, 15*time.Second, func() error { // TCP repeats what was lost with growing pauses
				for _, s := range streams {
					if time.Since(s.last()) > time.Second {
						return fmt.Errorf("%s stands still", s.name)
					}
				}
				return nil
			})
		})
	}
	first := r.addrs["node1"]
	change("Node object first, IPv4", func() {
		r.addrs["node1"] = list(v4(91), first[1])
		r.announce(t, "node1", r.addrs["node1"]...)
		r.gap(t, v4(91), first[0])
		r.readdress("node1", list(v4(91)), list(first[0]))
	})
	change("link first, IPv6", func() {
		r.addrs["node1"] = list(v4(91), v6(0x91))
		r.readdress("node1", list(v6(0x91)), list(first[1]))
		r.gap(t, first[1], v6(0x91))
		r.announce(t, "node1", r.addrs["node1"]...)
	})
	change("link first, both families", func() {
		r.addrs["node1"] = list(v4(92), v6(0x92))
		r.readdress("node1", r.addrs["node1"], list(v4(91), v6(0x91)))
		r.gap(t, v4(91), v4(92))
		r.announce(t, "node1", r.addrs["node1"]...)
	})
	change("another order", func() {
		r.addrs["node1"] = list(v6(0x92), v4(92))
		r.announce(t, "node1", r.addrs["node1"]...)
	})
	change("the old addresses stay on the link", func() {
		r.addrs["node1"], r.kept["node1"] = list(v4(93), v6(0x93)), list(v4(92), v6(0x92))
		r.readdress("node1", r.addrs["node1"], nil)
		r.announce(t, "node1", r.addrs["node1"]...)
	})
	change("the old addresses go", func() {
		r.readdress("node1", nil, r.kept["node1"])
		delete(r.kept, "node1")
	})
	change("two nodes exchange their addresses", func() {
		one, two := r.addrs["node1"], r.addrs["node2"]
		r.readdress("node1", nil, one)
		r.readdress("node2", one, two)
		r.readdress("node1", two, nil)
		r.addrs["node1"], r.addrs["node2"] = two, one
		r.announce(t, "node1", two...)
		r.announce(t, "node2", one...)
	})
	change("an agent starts before they agree", func() {
		old := r.addrs["node1"]
		r.addrs["node1"] = list(v4(94), v6(0x94))
		r.announce(t, "node1", r.addrs["node1"]...)
		r.gap(t, v4(94), old[0])
		if err := r.node(t, "node1").Agent.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 20*time.Second, func() error {
			s, err := agentOf(r.files["node1"]).Status(t.Context())
			if err != nil {
				return err
			}
			if !strings.Contains(s.NotReady, "InternalIP ["+v4(94).String()) {
				return fmt.Errorf("not ready: %q, want the InternalIP", s.NotReady)
			}
			r.agents["node1"] = r.node(t, "node1").Agent.PID
			return nil
		})
		r.readdress("node1", r.addrs["node1"], old)
	})
}
