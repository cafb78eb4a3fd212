//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab/labtest"
)

const (
	// namedPort is what the policies name; there is a listener at deniedPort, too.
	namedPort, deniedPort = 7001, 7003
	// inARow is how many datagrams a socket sends of one size. The first of the first size begins the connection.
	inARow = 5
	fragNS = "frag"
)

// datagramSizes are those of the test. The userspace datapath sends at most 32 fragments of a datagram on
// (NETDEV_MAX_BURST); a fragment has 1,424 bytes, or 1,400 of IPv6.
func datagramSizes(v4 bool) []int {
	switch {
	case labtest.Datapath() == config.DatapathSystem:
		return []int{1500, 2000, 8000, 60000}
	case v4:
		return []int{1500, 2000, 8000, 31*1424 - 8}
	}
	return []int{1500, 2000, 8000, 31*1400 - 8}
}

// fragmented is the lab of these tests.
type fragmented struct {
	*walled
	pods    map[string]*client
	answers map[string]*answerer
	outside *client
	hosts   map[string]*client
}

// upFragmented brings up two open servers, two that a policy names a port of, and one in its node's own network, with
// Services in front of all; clients without and with a policy for what they send, and strangers of both kinds, who send
// only what is denied until that has been looked at.
func upFragmented(t *testing.T, name, policies string) fragmented {
	t.Helper()
	manifests := ""
	for _, end := range []struct{ name, node string }{{"near", "node1"}, {"far", "node2"}} {
		for _, kind := range []string{"open", "walled"} {
			manifests += walledPod(fragNS, kind+"-"+end.name, end.node, "app: "+kind+", one: "+kind+"-"+end.name) +
				datagramService(kind+"-"+end.name, "") + streamService(kind+"-"+end.name) + datagramService(kind+"-"+end.name+
				"-sticky", "sessionAffinity: ClientIP, ")
		}
	}
	for _, client := range []string{"client", "caged", "stranger", "caged-stranger"} {
		label := "app: client"
		if client == "caged" || client == "caged-stranger" {
			label = "app: caged"
		}
		manifests += walledPod(fragNS, client, "node1", label)
	}
	manifests += strings.ReplaceAll(walledPod(fragNS, "host-near", "node1", "one: host-near"), "spec: {",
		"spec: {hostNetwork: true, ") + datagramService("host-near", "")
	f := fragmented{walled: upWalled(t, name, map[string]string{"f.yaml": manifests + policies}),
		pods:    map[string]*client{},
		answers: map[string]*answerer{}, hosts: map[string]*client{}}
	s := f.Status()
	for _, p := range s.Pods {
		f.pods[p.Name] = openClient(t, s, p.Namespace+"/"+p.Name, "", "pod")
	}
	for _, kind := range []string{"open", "walled"} {
		for _, end := range []string{"near", "far"} {
			f.answers[kind+"-"+end] = f.pods[kind+"-"+end].answers(t, namedPort, deniedPort)
		}
	}
	f.outside = openClient(t, s, "outside", "", "outside")
	for _, n := range s.Nodes {
		f.hosts[n.Name] = f.host(t, n.Name)
	}
	f.answers["host-near"] = f.hosts["node1"].answers(t, namedPort, deniedPort)
	return f
}

// fragmentPolicies name a port of the walled pods, and one that the caged ones may reach.
var fragmentPolicies = policyManifest(fragNS, "ingress",
	fmt.Sprintf("podSelector: {matchLabels: {app: walled}}, policyTypes: [Ingress], ingress: [{ports: [{port: %[1]d, "+
		"protocol: UDP}, {port: %[1]d}]}]", namedPort)) +
	policyManifest(fragNS, "egress",
		fmt.Sprintf("podSelector: {matchLabels: {app: caged}}, policyTypes: [Egress], egress: [{ports: [{port: %d, "+
			"protocol: UDP}]}]", namedPort))

func datagramService(name, more string) string {
	app := name
	if more != "" {
		app = name[:len(name)-len("-sticky")]
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: %s}
spec: {type: NodePort, ipFamilyPolicy: RequireDualStack, %sselector: {one: %s}, ports: [{name: udp, port: 90, targetPort: %d, protocol: UDP}]}
`, fragNS, name, more, app, namedPort)
}

// streamService is the same for TCP.
func streamService(name string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: %s-tcp}
spec: {type: NodePort, ipFamilyPolicy: RequireDualStack, selector: {one: %[2]s}, ports: [{name: tcp, port: 90, targetPort: %[3]d}]}
`, fragNS, name, namedPort)
}

// route is a way that datagrams take.
type route struct {
	name string
	from *client
	to   netip.AddrPort
}

// routes are all ways in a family on which datagrams have to arrive.
func (f fragmented) routes(t *testing.T, v4 bool) (all []route) {
	t.Helper()
	add := func(name string, from *client, addrs []netip.Addr, port uint16) {
		all = append(all, route{name, from, netip.AddrPortFrom(of(addrs, v4), port)})
	}
	for _, end := range []string{"near", "far"} {
		for _, from := range []string{"client", "caged"} {
			for _, kind := range []string{"open", "walled"} {
				to := kind + "-" + end
				add(from+" to "+to, f.pods[from], f.pods[to].ips, namedPort)
				add(from+" to the Service of "+to, f.pods[from], f.serviceIPs(t, fragNS, to), 90)
				add(from+" to the Service of "+to+" with affinity", f.pods[from], f.serviceIPs(t, fragNS, to+"-sticky"), 90)
			}
		}
		for _, kind := range []string{"open", "walled"} {
			to := kind + "-" + end
			nodePort := f.nodePort(t, fragNS, to)
			add("outside to the node port of "+to+" at node1", f.outside, f.node(t, "node1").Addrs, nodePort)
			add("node1 to the node port of "+to+" at itself", f.hosts["node1"], f.node(t, "node1").Addrs, nodePort)
			add("node1 to the Service of "+to, f.hosts["node1"], f.serviceIPs(t, fragNS, to), 90)
			add("node1 to "+to, f.hosts["node1"], f.pods[to].ips, namedPort)
		}
	}
	// Clients on the node would get the answers of a socket without an address from the gateway's.
	add("outside to the node port of host-near at node1", f.outside, f.node(t, "node1").Addrs,
		f.nodePort(t, fragNS, "host-near"))
	return all
}

// Datagrams of every size arrive whole, and so do their answers, wherever a port decides where they go and whether
// they may.
func TestFragments(t *testing.T) {
	f := upFragmented(t, "frags", fragmentPolicies)
	for _, v4 := range []bool{true, false} {
		sizes := datagramSizes(v4)
		t.Run(familyName(v4)+"/hostile", func(t *testing.T) { f.hostile(t, v4) })
		if !v4 {
			t.Run("IPv6/behind extension headers", f.behindExtensions)
		}
		t.Run(familyName(v4)+"/denied", func(t *testing.T) { f.denied(t, v4) })
		for _, kind := range []string{"questions", "answers"} {
			t.Run(fmt.Sprintf("%s/large %s", familyName(v4), kind), func(t *testing.T) {
				for _, at := range loads(sizes) {
					f.parallel(t, v4, at.once, func(r route) error { return r.ask(at.sizes, kind == "answers") })
				}
			})
		}
		t.Run(familyName(v4)+"/echo", func(t *testing.T) { f.echo(t, sizes, v4) })
	}
	t.Run("IPv4/TCP", f.segments)
	t.Run("nothing came in parts", func(t *testing.T) {
		for name, a := range f.answers {
			a.mu.Lock()
			if len(a.bad) > 0 {
				t.Errorf("%s got %d datagrams that were not sent: %v", name, len(a.bad), a.bad[:min(5, len(a.bad))])
			}
			a.mu.Unlock()
		}
	})
}

// load is how many routes may have datagrams of these sizes under way at once.
type load struct {
	once  int
	sizes []int
}

// loads splits sizes by what a batch of the userspace datapath holds: 32 packets. Before the dynamic batches of Open
// vSwitch (commit 04cbb4812, after 3.7) the fragments of completed datagrams that do not fit into one batch pass with
// the next one that any `ct` works on, past the `ct` that their first fragment waits in, and their datagram is lost.
// The largest datagram fills a batch alone. Three of the others, in fragments, fit into one.
func loads(sizes []int) []load {
	if labtest.Datapath() == config.DatapathSystem {
		return []load{{3, sizes}}
	}
	largest := len(sizes) - 1
	return []load{{3, sizes[:largest]}, {1, sizes[largest:]}}
}

// parallel asks on all routes of a family, some at once.
func (f fragmented) parallel(t *testing.T, v4 bool, atOnce int, way func(route) error) {
	t.Helper()
	routes := f.routes(t, v4)
	failed := 0
	var mu sync.Mutex
	var workers sync.WaitGroup
	next := make(chan route)
	for range atOnce {
		workers.Go(func() {
			for r := range next {
				if err := way(r); err != nil {
					t.Errorf("%s (%s): %v", r.name, r.to, err)
					mu.Lock()
					failed++
					mu.Unlock()
				}
			}
		})
	}
	for _, r := range routes {
		next <- r
	}
	close(next)
	workers.Wait()
	t.Logf("%d of %d ways failed", failed, len(routes))
}

// ask sends datagrams of each size from a socket of its own, or asks for answers of that size.
func (r route) ask(sizes []int, answers bool) error {
	// The nodes get to know each other's link-layer addresses.
	warm, err := r.from.asker(r.to)
	if err != nil {
		return err
	}
	defer warm.conn.Close()
	if err := warm.ask(1, 100, 0); err != nil {
		if err = warm.ask(2, 100, 0); err != nil {
			return fmt.Errorf("a datagram of 100 bytes: %w", err)
		}
	}
	if r.from.name == "outside" && r.to.Addr().Is6() {
		// no router of IPv6 makes fragments: the sender loses a datagram by which it learns the path's MTU
		warm.patience = testenv.Patience(time.Second)
		_ = warm.ask(3, 1500, 0)
	}
	for _, size := range sizes {
		a, err := r.from.asker(r.to)
		if err != nil {
			return err
		}
		for i := range inARow {
			question, answer := size, 0
			if answers {
				question, answer = 100, size
			}
			if err := a.ask(uint64(1000*size+i), question, answer); err != nil {
				return errors.Join(fmt.Errorf("%d bytes: %d of %d, then: %w", size, i, inARow, err), a.conn.Close())
			}
		}
		if err := a.conn.Close(); err != nil {
			return err
		}
	}
	return nil
}

// echo pings with the same sizes, as many at once as of datagrams.
func (f fragmented) echo(t *testing.T, sizes []int, v4 bool) {
	for from, targets := range map[string][]string{fragNS + "/client": {"open-near", "open-far"},
		"node/node1": {"open-near", "open-far"}} {
		for _, at := range loads(sizes) {
			var all []wire.Target
			for _, to := range targets {
				for _, size := range at.sizes {
					all = append(all, wire.Target{
						Name: to, Proto: wire.ICMP, Addr: f.pods[to].addr(v4), Size: size,
						Attempts: 1, Timeout: testenv.Patience(2 * time.Second),
					})
				}
			}
			for some := range slices.Chunk(all, at.once) {
				var reply wire.DialReply
				f.Ask(from, wire.DialRequest{Targets: some}, &reply, "dial")
				for _, r := range reply.Results {
					if !r.OK() {
						t.Errorf("ping with %d bytes from %s to %s: %s", r.Target.Size, from, r.Target.Name, r.Error)
					}
				}
			}
		}
	}
}

// denied: nothing of a datagram arrives that is for a port that no policy names, whichever end the policy is of; and
// afterwards the next one to the port that is named arrives.
func (f fragmented) denied(t *testing.T, v4 bool) {
	const each, size = 40, 8000
	for _, d := range []struct{ from, to string }{
		{"stranger", "walled-near"}, {"stranger", "walled-far"}, // by ingress
		{"caged-stranger", "open-near"}, {"caged-stranger", "open-far"}, // by egress
	} {
		from, to := f.pods[d.from], f.pods[d.to]
		came := to.listen(t, "eth0", func(h heard) bool {
			return !h.leaving && h.src.Addr() == from.addr(v4) && (h.fragment || h.dst.Port() == deniedPort)
		})
		socket, err := from.asker(netip.AddrPortFrom(to.addr(v4), deniedPort))
		if err != nil {
			t.Fatal(err)
		}
		for i := range each {
			if _, err := socket.conn.Write(question(uint64(i), size, 0)); err != nil {
				t.Fatal(err)
			}
		}
		allowed := route{name: d.from + " to " + d.to, from: from, to: netip.AddrPortFrom(to.addr(v4), namedPort)}
		if err := allowed.ask([]int{100}, false); err != nil { // it left the pod after the others
			t.Errorf("%s, after %d datagrams that are denied: %v", allowed.name, each, err)
		}
		if frames := came.heard(func(heard) bool { return true }); len(frames) > 0 {
			t.Errorf("%s, at a port that no policy names: %s", allowed.name, describe(frames))
		}
		if err := allowed.ask([]int{size}, false); err != nil {
			t.Errorf("%s, after %d datagrams that are denied: %v", allowed.name, each, err)
		}
		_ = socket.conn.Close()
	}
}
