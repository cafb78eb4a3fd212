package state_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// TestLocalAddrs: what the kernel has is this node for policies, but for the addresses of pods, Services and other
// nodes, whatever comes first.
func TestLocalAddrs(t *testing.T) {
	addrs := func(list ...string) (out []netip.Addr) {
		for _, text := range list {
			out = append(out, netip.MustParseAddr(text))
		}
		slices.SortFunc(out, netip.Addr.Compare)
		return out
	}
	kernel := addrs("169.254.20.10", "192.0.2.10", "172.30.0.1", "10.244.1.1", "10.244.1.9", "10.244.2.7", "172.30.0.2",
		"10.96.0.10", "10.96.0.11", "169.254.87.1", "10.9.9.9", "fd00::10")
	pod := pod("a", 16)
	pod.IPs = addrs("10.9.9.9") // of a range that the node had before
	changes := []state.Change{
		state.SetNode{Node: node("n1", "172.30.0.1", "10.244.1.0/24")},
		state.SetNode{Node: node("n2", "172.30.0.2", "10.244.2.0/24")},
		state.SetServiceCIDRs{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}},
		state.SetOtherProxy{Service: "kube-system/dns", ClusterIPs: addrs("10.96.0.10")},
		state.SetAttachment{Attachment: pod},
		state.SetLocalAddrs{Addrs: kernel},
	}
	want := addrs("169.254.20.10", "192.0.2.10", "10.96.0.10", "fd00::10")
	for range changes {
		changes = append(changes[1:], changes[0])
		s, compiler := state.New("n1"), flows.NewCompiler()
		for _, c := range changes {
			s.Apply(c)
			take(t, s, compiler)
		}
		if got := s.Snapshot().LocalAddrs; !slices.Equal(got, want) {
			t.Errorf("%T first: %v, want %v", changes[0], got, want)
		}
		s.Apply(state.SetOtherProxy{Service: "kube-system/dns"})
		s.Apply(state.DeleteAttachment{Key: pod.Key()})
		s.Apply(state.DeleteNode{Name: "n2"})
		snapshot, owners := take(t, s, compiler)
		now := addrs("169.254.20.10", "192.0.2.10", "10.9.9.9", "10.244.2.7", "172.30.0.2", "fd00::10")
		if got := snapshot.LocalAddrs; !slices.Equal(got, now) || !slices.Contains(owners, model.SelfOwner) {
			t.Errorf("afterwards: %v, dirty %v, want %v", got, owners, now)
		}
		s.Apply(state.SetLocalAddrs{Addrs: nil})
		if snapshot, owners := take(t, s, compiler); len(snapshot.LocalAddrs) != 0 ||
			!slices.Equal(owners, []model.Owner{model.SelfOwner}) {
			t.Errorf("without any: %v, dirty %v", snapshot.LocalAddrs, owners)
		}
	}
}
