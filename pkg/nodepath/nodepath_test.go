package nodepath_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
)

func cidrs(list ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func addrs(list ...string) []netip.Addr {
	var all []netip.Addr
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func snapshot(self model.Node, others ...model.Node) *model.Snapshot {
	s := &model.Snapshot{Self: self, Transport: model.Tunnel(model.Geneve), Nodes: map[string]model.Node{},
		ServiceCIDRs: cidrs("10.96.0.0/16", "fd96::/108")}
	for _, n := range others {
		s.Nodes[n.Name] = n
	}
	return s
}

// TestRejectedPodCIDRs: a pod CIDR that would draw away the traffic of Services, nodes or other pods is rejected, has
// no flows, and takes nothing from the others.
func TestRejectedPodCIDRs(t *testing.T) {
	self := model.Node{Name: "n5", Addrs: addrs("172.30.0.5", "fd30::5"), PodCIDRs: cidrs("10.244.5.0/24", "fd44:5::/64"),
		Created: 50}
	good := model.Node{Name: "n6", Addrs: addrs("172.30.0.6", "fd30::6"), PodCIDRs: cidrs("10.244.6.0/24", "fd44:6::/64"),
		Created: 10}
	same := model.Node{Name: "n0", Addrs: addrs("172.30.0.20"), PodCIDRs: cidrs("10.244.0.0/24"), Created: 40}
	old := model.Node{Name: "n9", Addrs: addrs("172.31.0.9"), Created: 10}
	for _, tc := range []struct{ cidr, want string }{
		{"10.244.1.0/24", ""},
		{"fd44:1::/64", ""},
		{"10.0.0.0/7", "it is wider than a /8"},
		{"::/0", "it is wider than a /16"},
		{"fc00::/7", "it is wider than a /16"},
		{"10.244.1.7/32", "it has no room for a gateway and a pod"},
		{"0.0.0.0/8", "it is not a global unicast range"},
		{"127.0.0.0/16", "it is not a global unicast range"},
		{"169.0.0.0/8", "it is not a global unicast range"},
		{"224.0.1.0/24", "it is not a global unicast range"},
		{"fe80::/64", "it is not a global unicast range"},
		{"::ffff:10.1.0.0/112", "it is not a global unicast range"},
		{"fd57::/16", "it contains addresses that Weft uses inside each node"},
		{"10.96.0.0/12", "it overlaps the Service CIDR 10.96.0.0/16"},
		{"10.96.3.0/24", "it overlaps the Service CIDR 10.96.0.0/16"},
		{"fd96::/64", "it overlaps the Service CIDR fd96::/108"},
		{"172.30.0.0/30", "it contains the node's own address 172.30.0.1"},
		{"172.30.0.4/30", "it contains this node's address 172.30.0.5"},
		{"172.31.0.0/24", "it contains the address 172.31.0.9 of node n9"},
		{"10.244.5.128/25", "it overlaps this node's pod CIDR 10.244.5.0/24"},
		{"fd44:5::/48", "it overlaps this node's pod CIDR fd44:5::/64"},
		{"10.244.6.0/24", "it overlaps 10.244.6.0/24 of node n6, which is older"},
		{"10.244.6.0/25", "it overlaps 10.244.6.0/24 of node n6, which is older"},
		{"10.244.6.0/23", "it overlaps 10.244.6.0/24 of node n6, which is older"},
		{"10.244.0.64/26", "it overlaps 10.244.0.0/24 of node n0, which is as old and first by name"},
	} {
		bad := model.Node{Name: "n1", Addrs: addrs("172.30.0.1", "fd30::1"), PodCIDRs: cidrs(tc.cidr), Created: 40}
		s := snapshot(self, good, bad, same, old)
		paths := nodepath.Resolve(s)
		for _, n := range []model.Node{self, good, same} {
			if got := paths[n.Name]; !slices.Equal(got.PodCIDRs, n.PodCIDRs) || len(got.Rejected) > 0 {
				t.Errorf("%s: node %s has %v, %q", tc.cidr, n.Name, got.PodCIDRs, got.Rejected)
			}
		}
		got, want := paths["n1"], "pod CIDR "+tc.cidr+" is not used: "+tc.want
		if accepted := tc.want == ""; got.Reachable() != accepted || (len(got.PodCIDRs) == 1) != accepted ||
			!accepted && (len(got.Rejected) != 1 || got.Rejected[0] != want) {
			t.Errorf("%s: path %+v, want %q", tc.cidr, got, tc.want)
		}
		desired, err := flows.Compile(s)
		if err != nil {
			t.Fatal(err)
		}
		compiled := false
		for _, f := range desired.Flows {
			compiled = compiled || f.Owner == model.NodeOwner("n1")
		}
		if compiled != (tc.want == "") {
			t.Errorf("%s: has flows: %v", tc.cidr, compiled)
		}
	}
}

// TestWhoseRange: this node's own claim wins, then the older Node's; a node's address goes before the pod CIDR of a
// Node that is not older, and takes nothing from an older one.
func TestWhoseRange(t *testing.T) {
	self := model.Node{Name: "n5", Addrs: addrs("172.30.0.5"), PodCIDRs: cidrs("10.244.5.0/24"), Created: 90}
	n := func(name, addr, cidr string, created int64) model.Node {
		return model.Node{Name: name, Addrs: addrs(addr), PodCIDRs: cidrs(cidr), Created: created}
	}
	inCluster := snapshot(self, n("old", "10.244.7.9", "10.244.8.0/24", 1), n("young", "172.30.0.7", "10.244.7.0/24", 2),
		n("far", "172.30.0.8", "192.168.0.0/24", 1))
	inCluster.ClusterCIDRs = cidrs("10.244.0.0/16")
	for _, tc := range []struct {
		name  string
		s     *model.Snapshot
		valid string // the nodes whose ranges are accepted
		reach string // the nodes that tunnels lead to
	}{
		{"the older", snapshot(self, n("aaa", "172.30.0.1", "10.244.7.0/25", 2), n("zzz", "172.30.0.2", "10.244.7.0/24", 1)),
			"n5 zzz", "zzz"},
		{"own before older", snapshot(self, n("aaa", "172.30.0.1", "10.244.5.0/25", 2)), "n5", ""},
		{"an older node's address", snapshot(self, n("a", "172.30.9.1", "10.244.7.0/24", 1),
			n("b", "172.30.0.2", "172.30.9.0/24", 2)), "a n5", "a"},
		{"a younger node's address", snapshot(self, n("a", "10.244.7.9", "10.244.8.0/24", 2),
			n("b", "172.30.0.2", "10.244.7.0/24", 1)), "a b n5", "b"},
		{"an address in this node's range", snapshot(self, n("a", "10.244.5.9", "10.244.8.0/24", 2)), "a n5", ""},
		{"clusterCIDRs", inCluster, "n5 old young", "young"},
	} {
		var valid, reach []string
		for name, p := range nodepath.Resolve(tc.s) {
			if len(p.PodCIDRs) > 0 {
				valid = append(valid, name)
			}
			if p.Reachable() {
				reach = append(reach, name)
			}
		}
		slices.Sort(valid)
		slices.Sort(reach)
		if got := strings.Join(valid, " "); got != tc.valid {
			t.Errorf("%s: accepted are the ranges of %q, want %q", tc.name, got, tc.valid)
		}
		if got := strings.Join(reach, " "); got != tc.reach {
			t.Errorf("%s: tunnels lead to %q, want %q", tc.name, got, tc.reach)
		}
	}
}

// TestTransport: two nodes choose one family for their tunnel, whatever the order of their addresses.
func TestTransport(t *testing.T) {
	for _, tc := range []struct {
		a, b []netip.Addr
		want string
	}{
		{addrs("172.30.0.1", "fd30::1"), addrs("172.30.0.2", "fd30::2"), "172.30.0.1 172.30.0.2"},
		{addrs("172.30.0.1", "fd30::1"), addrs("fd30::2", "172.30.0.2"), "172.30.0.1 172.30.0.2"},
		{addrs("fd30::1", "172.30.0.1"), addrs("fd30::2", "172.30.0.2"), "fd30::1 fd30::2"},
		{addrs("172.30.0.1", "fd30::1"), addrs("fd30::2"), "fd30::1 fd30::2"},
		{addrs("172.30.0.1"), addrs("fd30::2"), "invalid IP invalid IP"},
	} {
		a, b := model.Node{Name: "a", Addrs: tc.a, PodCIDRs: cidrs("10.244.1.0/24")}, model.Node{Name: "b", Addrs: tc.b,
			PodCIDRs: cidrs("10.244.2.0/24")}
		there, back := nodepath.Resolve(snapshot(a, b))["b"], nodepath.Resolve(snapshot(b, a))["a"]
		if got := fmt.Sprint(there.Local, there.NextHop); got != tc.want || there.Local != back.NextHop ||
			there.NextHop != back.Local {
			t.Errorf("%v to %v: %s, back %s %s, want %s", tc.a, tc.b, got, back.Local, back.NextHop, tc.want)
		}
	}
}

// TestOverheadAndMTU: the MTU of pods fits the path with the largest overhead, whatever the order of families, and is
// the same before and after the first peer node with this node's primary family joins. An unreachable node changes
// nothing.
func TestOverheadAndMTU(t *testing.T) {
	v4 := model.Node{Name: "v4", Addrs: addrs("172.30.0.2"), PodCIDRs: cidrs("10.244.2.0/24")}
	v6 := model.Node{Name: "v6", Addrs: addrs("fd30::2"), PodCIDRs: cidrs("10.244.3.0/24")}
	for _, tc := range []struct {
		name  string
		self  []netip.Addr
		peers []model.Node
		mtu   int
		ipv6  bool
	}{
		{"IPv4", addrs("172.30.0.1"), nil, 1450, false},
		{"IPv6", addrs("fd30::1"), nil, 1430, true},
		{"a peer", addrs("172.30.0.1"), []model.Node{v4}, 1450, false},
		{"an unreachable peer", addrs("172.30.0.1"), []model.Node{v4, v6}, 1450, false},
		{"peers of both families", addrs("172.30.0.1", "fd30::1"), []model.Node{v4, v6}, 1430, true},
		{"IPv6 with an IPv4 peer", addrs("fd30::1", "172.30.0.1"), []model.Node{v4}, 1430, true},
	} {
		for _, e := range model.Encapsulations {
			s := snapshot(model.Node{Name: "n1", Addrs: tc.self, PodCIDRs: cidrs("10.244.1.0/24")}, tc.peers...)
			s.Transport = model.Tunnel(e)
			paths := nodepath.Resolve(s)
			want := tc.mtu
			if e == model.GRE {
				want += 8 // no UDP header
			}
			if mtu, ipv6 := nodepath.PodMTU(paths, 1500), nodepath.OuterIPv6(paths); mtu != want || ipv6 != tc.ipv6 {
				t.Errorf("%s, %s: MTU %d, outer IPv6 %v, want %d, %v", tc.name, e, mtu, ipv6, want, tc.ipv6)
			}
			for name, path := range paths {
				if name != "n1" && (path.Transport == s.Transport) != path.Reachable() {
					t.Errorf("%s, %s: path %+v", tc.name, e, path)
				}
			}
		}
	}
}

// TestGREOverIPv6: on the kernel datapath a peer node is unreachable by GRE over IPv6; over IPv4, without a tunnel and
// on the userspace datapath it is reachable.
func TestGREOverIPv6(t *testing.T) {
	receives := func(n model.Node) model.Node {
		n.ReceivesDirect = true
		return n
	}
	for _, tc := range []struct {
		name    string
		kernel  bool
		mode    model.Mode
		self    []netip.Addr
		refused bool
	}{
		{"kernel", true, model.ModeOverlay, addrs("fd30::1"), true},
		{"kernel, an IPv6 node first", true, model.ModeHybrid, addrs("fd30::1", "172.30.0.1"), true},
		{"kernel, IPv4", true, model.ModeOverlay, addrs("172.30.0.1", "fd30::1"), false},
		{"userspace", false, model.ModeOverlay, addrs("fd30::1"), false},
		{"kernel, no tunnel", true, model.ModeDirect, addrs("fd30::1"), false},
	} {
		var peer []netip.Addr
		for _, a := range tc.self {
			peer = append(peer, a.Next())
		}
		s := snapshot(model.Node{Name: "n1", Addrs: tc.self, PodCIDRs: cidrs("fd44:0:0:1::/64")},
			receives(model.Node{Name: "n2", Addrs: peer, PodCIDRs: cidrs("fd44:0:0:2::/64")}))
		s.Transport, s.KernelDatapath = model.Transport{Mode: tc.mode, Encapsulation: model.GRE}, tc.kernel
		if tc.mode == model.ModeDirect {
			s.Transport.FabricRoutes, s.Routed = true, cidrs("fd44:0:0:2::/64")
			s.Self.Underlay = []model.Uplink{{Prefix: netip.PrefixFrom(tc.self[0], 64)}}
		}
		path := nodepath.Resolve(s)["n2"]
		want := ""
		if tc.refused {
			want = "the kernel datapath has no GRE over IPv6; set tunnelType: geneve or vxlan, or datapath: netdev"
		}
		if path.Unreachable != want || path.Reachable() == tc.refused {
			t.Errorf("%s: %+v", tc.name, path)
		}
	}
}

// TestUnknownTransport: without a transport that Weft has, each peer node is unreachable for that reason.
func TestUnknownTransport(t *testing.T) {
	s := snapshot(model.Node{Name: "n1", Addrs: addrs("172.30.0.1"), PodCIDRs: cidrs("10.244.1.0/24")},
		model.Node{Name: "n2", Addrs: addrs("172.30.0.2"), PodCIDRs: cidrs("10.244.2.0/24")})
	s.Transport = model.Tunnel("stt")
	paths := nodepath.Resolve(s)
	if got, want := paths["n2"], s.Transport.Check().Error(); got.Reachable() || got.Unreachable != want ||
		got.Overhead != 0 {
		t.Errorf("path %+v, want unreachable: %s", got, want)
	}
	if got := paths["n1"]; len(got.PodCIDRs) != 1 || got.Unreachable != "" || got.Transport != (model.Transport{}) {
		t.Errorf("own path %+v", got)
	}
}

// manyNodes is a cluster of which every second node claims one range.
func manyNodes(count int) *model.Snapshot {
	s := snapshot(model.Node{Name: "n", Addrs: addrs("172.16.0.1"), PodCIDRs: cidrs("10.0.0.0/24")})
	for i := range count {
		name, at := fmt.Sprint("n", i), byte(i>>8)
		n := model.Node{Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{172, 17, at, byte(i)})},
			Created: int64(i % 7)}
		n.PodCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{11, at, byte(i), 0}), 24)}
		if i%2 == 0 {
			n.PodCIDRs = cidrs("11.200.0.0/16")
		}
		s.Nodes[name] = n
	}
	return s
}

// TestCostOfManyNodes: the cost grows with the nodes, not with their square, also where all claim one range.
func TestCostOfManyNodes(t *testing.T) {
	best := func(s *model.Snapshot) time.Duration {
		least := time.Hour
		for range 3 {
			least = min(least, testenv.CPU(t, func() { nodepath.Resolve(s) }))
		}
		return least
	}
	const times = 16
	base := 1500
	if testing.Short() {
		base = 500
	}
	few, many := best(manyNodes(base)), best(manyNodes(base*times))
	if many > times*few*5 { // measured: 1.6; a square would be 16
		t.Errorf("%d times the nodes took %s instead of %s", times, many, few)
	}
	t.Logf("%d times the nodes take %.1f times as long", times, float64(many)/float64(few))
}

// TestOwnPodCIDR: an invalid range of this node is not used, and a valid one of the other family is.
func TestOwnPodCIDR(t *testing.T) {
	s := snapshot(model.Node{Name: "n1", Addrs: addrs("172.30.0.1"), PodCIDRs: cidrs("0.0.0.0/0", "fd44:1::/64")})
	path := nodepath.Resolve(s)["n1"]
	if fmt.Sprint(path.PodCIDRs) != "[fd44:1::/64]" ||
		fmt.Sprint(path.Rejected) != "[pod CIDR 0.0.0.0/0 is not used: it is wider than a /8]" {
		t.Errorf("path %+v", path)
	}
	desired, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	for key, f := range desired.Flows {
		if f.Owner == model.SelfOwner && !strings.Contains(f.String(), "fd44:1::") &&
			!strings.Contains(key.Match.String(), "=172.30.0.1") &&
			!strings.Contains(key.Match.String(), "=10.96.") && !strings.Contains(key.Match.String(), "=fd96:") {
			t.Errorf("a flow for a range that is not a pod CIDR: %s", f)
		}
	}
}

// TestLoadBalancerInPodCIDR: without clusterCIDRs, neither a Node nor a Service draws the other's traffic: the address
// that a load balancer gave a Service goes before the pod CIDR of a Node that is not older, and takes nothing from an
// older one, nor from this node's own. External IPs, which any tenant may write, take nothing from any.
func TestLoadBalancerInPodCIDR(t *testing.T) {
	for _, tc := range []struct {
		name            string
		node, service   int64
		external        bool
		clusterCIDRs    []netip.Prefix
		accepted, isOwn bool
	}{
		{name: "the Service is older", node: 20, service: 10},
		{name: "both are as old", node: 20, service: 20},
		{name: "the Node is older", node: 20, service: 30, accepted: true},
		{name: "an external IP", node: 20, service: 10, external: true, accepted: true},
		{name: "clusterCIDRs are known", node: 20, service: 10, accepted: true,
			clusterCIDRs: cidrs("198.51.100.0/24", "fd44::/16")},
		{name: "this node's own", node: 20, service: 10, isOwn: true, accepted: true},
	} {
		for _, family := range []struct{ cidr, inside, own, other string }{
			{"198.51.100.0/25", "198.51.100.9", "172.30.0.5", "172.30.0.1"},
			{"fd44:1::/64", "fd44:1::9", "fd30::5", "fd30::1"},
		} {
			t.Run(tc.name+" "+family.cidr, func(t *testing.T) {
				self := model.Node{Name: "n5", Addrs: addrs(family.own)}
				other := model.Node{Name: "n1", Addrs: addrs(family.other), PodCIDRs: cidrs(family.cidr), Created: tc.node}
				if tc.isOwn {
					self, other = other, self
				}
				s := snapshot(self, other)
				s.ClusterCIDRs = tc.clusterCIDRs
				port := model.ServicePort{Protocol: model.TCP, Port: 80, LoadBalancerIPs: addrs(family.inside)}
				if tc.external {
					port.LoadBalancerIPs, port.ExternalIPs = nil, port.LoadBalancerIPs
				}
				web := model.Service{Name: "ns/web", Created: tc.service, Ports: []model.ServicePort{port}}
				s.Services = map[string]model.Service{web.Name: web}
				got := nodepath.Resolve(s)["n1"]
				want := "it contains the load balancer's address " + family.inside + " of Service ns/web"
				accepted := len(got.PodCIDRs) == 1
				if accepted != tc.accepted || !accepted && !strings.Contains(strings.Join(got.Rejected, ""), want) {
					t.Errorf("the path is %+v", got)
				}
			})
		}
	}
}
