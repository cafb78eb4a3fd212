package nodepath_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
)

func uplinks(list ...string) []model.Uplink {
	var all []model.Uplink
	for _, s := range list {
		u, err := model.ParseUplink(s)
		if err != nil {
			panic(err)
		}
		all = append(all, u)
	}
	return all
}

// neighbor is a node with both families that receives without a tunnel.
func neighbor(name, number, subnet string) model.Node {
	n := model.Node{Name: name, Addrs: addrs(subnet+number, "fd30::"+number), ReceivesDirect: true,
		PodCIDRs: cidrs("10.244."+number+".0/24", "fd44:"+number+"::/64")}
	n.Underlay = uplinks(subnet+number+"/24@02:00:00:00:00:0"+number, "fd30::"+number+"/64@02:00:00:00:00:0"+number)
	return n
}

// TestDirect: what goes to and comes from a peer node without a tunnel, by what both nodes publish, the setting, and
// what the kernel routes; and the reasons.
func TestDirect(t *testing.T) {
	far := neighbor("n2", "2", "172.31.0.")
	silent, unknown, foreign, otherLength := neighbor("n2", "2", "172.30.0."), neighbor("n2", "2", "172.30.0."),
		neighbor("n2", "2", "172.30.0."), neighbor("n2", "2", "172.30.0.")
	silent.ReceivesDirect = false
	unknown.Underlay = unknown.Underlay[:1]
	foreign.Underlay[0].Prefix = netip.MustParsePrefix("172.30.0.9/24") // not the node's address
	otherLength.PodCIDRs = cidrs("10.244.2.0/25", "fd44:2::/64")
	near := neighbor("n2", "2", "172.30.0.")
	all := near.PodCIDRs
	overlay, direct, hybrid := model.ModeOverlay, model.ModeDirect, model.ModeHybrid
	const notYet, hint = "the node's kernel does not route 10.244.2.0/24 to it yet",
		"; set transport: hybrid, or directRoutes: none where the network has the routes"
	const farText = "node n2 is in the subnet 172.31.0.0/24, this node in 172.30.0.0/24"
	for _, tc := range []struct {
		name    string
		mode    model.Mode
		fabric  bool
		peer    model.Node
		routed  []netip.Prefix
		want    model.Mode // empty for unreachable
		receive bool
		route   bool
		why     string
	}{
		{"overlay", overlay, false, near, nil, overlay, true, false, ""}, // this node still publishes that it receives
		{"direct", direct, false, near, all, direct, true, true, ""},
		{"no route yet", direct, false, near, nil, overlay, true, true, notYet},
		{"one route", direct, false, near, all[1:], overlay, true, true, notYet},
		{"peer does not receive", direct, false, silent, all, overlay, true, false,
			"node n2 does not publish that it receives packets without a tunnel"},
		{"another subnet", direct, false, far, all, "", false, false, farText + hint},
		{"another subnet, hybrid", hybrid, false, far, all, overlay, false, false, farText},
		{"hybrid", hybrid, false, near, all, direct, true, true, ""},
		{"routes of the network", direct, true, far, all, direct, true, true, ""},
		{"no IPv6 underlay", hybrid, false, unknown, all, overlay, false, false, "node n2 publishes no IPv6 address of its underlay"},
		{"an address of another", hybrid, false, foreign, all, overlay, false, false, "node n2 publishes no IPv4 address of its underlay"},
		{"another length", hybrid, false, otherLength, all, overlay, false, false,
			"the pod CIDR 10.244.2.0/25 of node n2 has another length than this node's 10.244.1.0/24"},
	} {
		s := snapshot(neighbor("n1", "1", "172.30.0."), tc.peer)
		s.Transport = model.Transport{Mode: tc.mode, Encapsulation: model.Geneve, FabricRoutes: tc.fabric}
		s.Routed = tc.routed
		paths := nodepath.Resolve(s)
		got := paths["n2"]
		if got.Mode != tc.want || got.ReceivesDirect != tc.receive || (got.Routed == direct) != tc.route ||
			got.Why+got.Unreachable != tc.why || got.Reachable() != (tc.want != "") {
			t.Errorf("%s: %+v", tc.name, got)
		}
		mtu := 1500 - 50
		if tc.mode == direct && tc.want != overlay {
			mtu = 1500
		}
		if got := nodepath.PodMTU(paths, 1500); got != mtu {
			t.Errorf("%s: MTU %d, want %d", tc.name, got, mtu)
		}
		// The other node decides alike about neighbors.
		back := snapshot(tc.peer, s.Self)
		back.Transport = s.Transport
		if there := nodepath.Resolve(back)["n1"]; len(there.Hops) != len(got.Hops) {
			t.Errorf("%s: %d hops, back %d", tc.name, len(got.Hops), len(there.Hops))
		}
	}
	s := snapshot(neighbor("n1", "1", "172.30.0."), near)
	s.Transport.Mode = direct
	mac := model.MAC{2, 5: 2}
	want := []model.Hop{
		{CIDR: all[0], Local: netip.MustParseAddr("172.30.0.1"), NextHop: netip.MustParseAddr("172.30.0.2"), MAC: mac},
		{CIDR: all[1], Local: netip.MustParseAddr("fd30::1"), NextHop: netip.MustParseAddr("fd30::2"), MAC: mac},
	}
	got := nodepath.Resolve(s)["n2"].Hops
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("hops (-want +got):\n%s", d)
	}
	s.Transport.FabricRoutes = true
	for _, hop := range nodepath.Resolve(s)["n2"].Hops {
		if hop.NextHop.IsValid() || hop.MAC != (model.MAC{}) {
			t.Errorf("with routes of the network: %+v", hop)
		}
	}
	s.Self.PodCIDRs = s.Self.PodCIDRs[:1] // no packets of IPv6
	if got := nodepath.Resolve(s)["n2"].Hops; len(got) != 1 || got[0].CIDR != all[0] {
		t.Errorf("without IPv6 pods: %+v", got)
	}
}

// TestReceivesWhileItSaysSo: a node accepts packets without a tunnel while the setting asks for it, while its Node
// object says so, and in the grace afterwards.
func TestReceivesWhileItSaysSo(t *testing.T) {
	for _, mode := range model.Modes {
		for _, published := range []bool{true, false} {
			for _, grace := range []bool{true, false} {
				self := neighbor("n1", "1", "172.30.0.")
				self.ReceivesDirect = published
				s := snapshot(self, neighbor("n2", "2", "172.30.0."))
				s.Transport.Mode, s.ReceiveGrace = mode, grace
				want := slices.Contains([]bool{mode != model.ModeOverlay, published, grace}, true)
				if got := nodepath.Resolve(s)["n2"].ReceivesDirect; got != want {
					t.Errorf("%s, published %v, grace %v: %v", mode, published, grace, got)
				}
			}
		}
	}
}
