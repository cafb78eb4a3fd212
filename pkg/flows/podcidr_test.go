package flows_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
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
	s := &model.Snapshot{Self: self, Tunnel: model.Geneve, Nodes: map[string]model.Node{}}
	for _, n := range others {
		s.Nodes[n.Name] = n
	}
	return s
}

func TestUsablePodCIDRs(t *testing.T) {
	self := model.Node{Name: "n5", Addrs: addrs("172.30.0.5", "fd30::5"), PodCIDRs: cidrs("10.244.5.0/24", "fd44:5::/64")}
	good := model.Node{Name: "n6", Addrs: addrs("172.30.0.6", "fd30::6"), PodCIDRs: cidrs("10.244.6.0/24", "fd44:6::/64")}
	for _, tc := range []struct {
		cidr, want string
		compiled   bool // what only other nodes make a mistake has flows
	}{
		{"10.244.1.0/24", "", true},
		{"fd44:1::/64", "", true},
		{"10.0.0.0/7", "is not used: it is wider than a /8", false},
		{"0.0.0.0/0", "is not used: it is wider than a /8", false},
		{"::/0", "is not used: it is wider than a /16", false},
		{"fc00::/7", "is not used: it is wider than a /16", false},
		{"10.244.1.7/32", "is not used: it has no room for a gateway and a pod", false},
		{"255.255.255.255/32", "is not used: it has no room for a gateway and a pod", false},
		{"0.0.0.0/8", "is not used: it is not of ordinary unicast addresses", false},
		{"127.0.0.0/16", "is not used: it is not of ordinary unicast addresses", false},
		{"224.0.1.0/24", "is not used: it is not of ordinary unicast addresses", false},
		{"fe80::/64", "is not used: it is not of ordinary unicast addresses", false},
		{"::ffff:10.1.0.0/112", "is not used: it is not of ordinary unicast addresses", false},
		{"172.30.0.1/32", "is not used: it has no room", false},
		{"172.30.0.0/30", "is not used: it contains the node's own address 172.30.0.1", false},
		{"172.30.0.4/30", "is not used: it contains this node's address 172.30.0.5", false},
		{"fd30::/112", "is not used: it contains the node's own address fd30::1", false},
		{"172.31.0.0/24", "is not used: it contains the address 172.31.0.9 of node n9", true},
		{"10.244.5.128/25", "is not used: it overlaps this node's pod CIDR 10.244.5.0/24", false},
		{"fd44:5::/48", "is not used: it overlaps this node's pod CIDR fd44:5::/64", false},
		{"10.244.0.0/24", "is not used: it overlaps 10.244.0.0/24 of node n0, which comes first", true},
		{"10.244.0.64/26", "is not used: it overlaps 10.244.0.0/24 of node n0, which comes first", true},
		{"10.244.0.0/23", "is not used: it overlaps 10.244.0.0/24 of node n0, which comes first", true},
	} {
		bad := model.Node{Name: "n1", Addrs: addrs("172.30.0.1", "fd30::1"), PodCIDRs: cidrs(tc.cidr)}
		s := snapshot(self, good, bad,
			model.Node{Name: "n0", Addrs: addrs("172.30.0.20"), PodCIDRs: cidrs("10.244.0.0/24")},
			model.Node{Name: "n9", Addrs: addrs("172.31.0.9")})
		u := flows.UsablePodCIDRs(s)
		want := cidrs("10.244.0.0/24", "10.244.6.0/24", "fd44:6::/64")
		if tc.want == "" {
			want = cidrs("10.244.0.0/24", tc.cidr, "10.244.6.0/24", "fd44:6::/64")
		}
		if diff := cmp.Diff(want, u.Remote, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Errorf("%s: usable (-want +got):\n%s", tc.cidr, diff)
		}
		if diff := cmp.Diff(self.PodCIDRs, u.Own, cmpopts.EquateComparable(netip.Prefix{})); diff != "" || u.OwnErr != nil {
			t.Errorf("%s: this node's own (-want +got), error %v:\n%s", tc.cidr, u.OwnErr, diff)
		}
		if tc.want == "" && u.RemoteErr != nil || tc.want != "" && (u.RemoteErr == nil || !strings.Contains(u.RemoteErr.Error(), "node n1: pod CIDR "+tc.cidr+" "+tc.want)) {
			t.Errorf("%s: error %v, want %q", tc.cidr, u.RemoteErr, tc.want)
		}

		desired, err := flows.Compile(s)
		if err != nil {
			t.Fatal(err)
		}
		compiled := 0
		for _, f := range desired.Flows {
			if f.Owner == model.NodeOwner("n1") {
				compiled++
			}
		}
		// The first to claim exactly the same range has the flow in Forwarding; the check of the tunnel's source is per node.
		if (compiled > 0) != tc.compiled {
			t.Errorf("%s: %d flows of node n1, want some: %v", tc.cidr, compiled, tc.compiled)
		}
	}
}

func TestOwnPodCIDR(t *testing.T) {
	self := model.Node{Name: "n1", Addrs: addrs("172.30.0.1"), PodCIDRs: cidrs("0.0.0.0/0", "fd44:1::/64")}
	s := snapshot(self, node("n2", 2))
	u := flows.UsablePodCIDRs(s)
	if fmt.Sprint(u.Own, u.Remote) != "[fd44:1::/64] [10.244.2.0/24]" {
		t.Errorf("usable: %v, %v", u.Own, u.Remote)
	}
	if u.OwnErr == nil || u.OwnErr.Error() != "node n1: pod CIDR 0.0.0.0/0 is not used: it is wider than a /8" || u.RemoteErr != nil {
		t.Errorf("errors %v and %v", u.OwnErr, u.RemoteErr)
	}
	desired, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	for key, f := range desired.Flows {
		if strings.Contains(key.Match, "=172.30.0.1") {
			continue // the node's own address, which policies never forbid
		}
		if f.Owner == model.SelfOwner && !strings.Contains(key.Match+f.Actions, "fd44:1::") {
			t.Errorf("a flow for a range that is no pod CIDR: %s", f)
		}
	}

	// Another node's address within does not take the node's own pods away.
	s = snapshot(node("n1", 1), model.Node{Name: "n3", Addrs: addrs("10.244.1.9")})
	u = flows.UsablePodCIDRs(s)
	if fmt.Sprint(u.Own) != "[10.244.1.0/24]" || u.OwnErr != nil {
		t.Errorf("own: %v, %v", u.Own, u.OwnErr)
	}
	if u.RemoteErr == nil || u.RemoteErr.Error() != "node n3: its address 10.244.1.9 is in this node's pod CIDR 10.244.1.0/24: there is no way to it" {
		t.Errorf("error %v", u.RemoteErr)
	}
}
