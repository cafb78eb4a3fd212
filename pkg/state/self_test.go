package state_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

func selfNode(addrs, cidrs string) model.Node {
	n := model.Node{Name: "n1"}
	for _, a := range strings.Fields(addrs) {
		n.Addrs = append(n.Addrs, netip.MustParseAddr(a))
	}
	for _, c := range strings.Fields(cidrs) {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	return n
}

// TestSelfHolds: this node's object is deleted, recreated, emptied, and given values that cannot be used. The node
// works on with the last values that could be, and says so, until the new ones are whole.
func TestSelfHolds(t *testing.T) {
	const addr, both = "172.30.0.1 fd30::1", "10.244.1.0/24 fd44:1::/64"
	web := model.Attachment{ContainerID: "c", Pod: model.PodRef{Namespace: "ns", Name: "web"}, OFPort: 16,
		IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd44:1::2")}}
	for _, tc := range []struct {
		name    string
		change  state.Change
		addrs   string // those in use afterwards
		cidrs   string
		held    string
		waiting bool
	}{
		{"deleted", state.DeleteNode{Name: "n1"}, addr, both, "there is no such Node object", false},
		{"emptied", state.SetNode{Node: selfNode("", "")}, addr, both,
			"it has no InternalIP, [172.30.0.1 fd30::1] stays in use; it has no podCIDRs, [10.244.1.0/24 fd44:1::/64] stays " +
				"in use", false},
		{"without podCIDRs", state.SetNode{Node: selfNode(addr, "")}, addr, both,
			"it has no podCIDRs, [10.244.1.0/24 fd44:1::/64] stays in use", false},
		{"without InternalIP", state.SetNode{Node: selfNode("", both)}, addr, both,
			"it has no InternalIP, [172.30.0.1 fd30::1] stays in use", false},
		{"renumbered", state.SetNode{Node: selfNode("172.30.0.9", both)}, "172.30.0.9", both, "", false},
		{"in the Service range", state.SetNode{Node: selfNode(addr, "10.96.0.0/16")}, addr, both,
			"pod CIDR 10.96.0.0/16 is not used: it overlaps the Service CIDR 10.96.0.0/12, [10.244.1.0/24 fd44:1::/64] stays " +
				"in use", false},
		{"one family in the Service range", state.SetNode{Node: selfNode(addr, "10.244.1.0/24 fd96::/112")}, addr, both,
			"pod CIDR fd96::/112 is not used: it overlaps the Service CIDR fd96::/108, [10.244.1.0/24 fd44:1::/64] stays in use",
			false},
		{"another range", state.SetNode{Node: selfNode(addr, "10.244.7.0/24 fd44:7::/64")}, addr, both,
			"its podCIDRs changed to [10.244.7.0/24 fd44:7::/64] and attached pods have addresses of the old ones, " +
				"[10.244.1.0/24 fd44:1::/64] stays in use", true},
		{"another IPv6 range", state.SetNode{Node: selfNode(addr, "10.244.1.0/24 fd44:7::/64")}, addr, both,
			"its podCIDRs changed to [10.244.1.0/24 fd44:7::/64] and attached pods have addresses of the old ones, " +
				"[10.244.1.0/24 fd44:1::/64] stays in use", true},
		{"a wider range", state.SetNode{Node: selfNode(addr, "10.244.0.0/22 fd44:1::/64")}, addr, "10.244.0.0/22 fd44:1::/64",
			"", false},
		{"the same", state.SetNode{Node: selfNode(addr, both)}, addr, both, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := state.New("n1")
			s.Apply(state.SetServiceCIDRs{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"),
				netip.MustParsePrefix("fd96::/108")}})
			s.Apply(state.SetNode{Node: selfNode(addr, both)})
			s.Apply(state.SetNode{Node: model.Node{Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.2")},
				PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}}})
			s.Apply(state.SetAttachment{Attachment: web})
			before, _ := s.Take()
			c := flows.NewCompiler()
			if _, failed := c.Update(before, []model.Owner{model.PipelineOwner, model.SelfOwner, model.NodeOwner("n2"),
				model.PodOwner(web)}); len(failed) > 0 {
				t.Fatal(failed)
			}
			check := func(step string, got *model.Snapshot, addrs, cidrs, held string, waiting bool) {
				t.Helper()
				want := selfNode(addrs, cidrs)
				if !slices.Equal(got.Self.Addrs, want.Addrs) || !slices.Equal(got.SelfPath().PodCIDRs, want.PodCIDRs) ||
					got.SelfHeld != held || (len(got.NewPodCIDRs) > 0) != waiting {
					t.Errorf("%s: %v %v, held %q, waiting %v; want %v %v, %q", step, got.Self.Addrs, got.SelfPath().PodCIDRs,
						got.SelfHeld, got.NewPodCIDRs, want.Addrs, want.PodCIDRs, held)
				}
			}
			s.Apply(tc.change)
			now, owners := s.Take()
			check("after the change", now, tc.addrs, tc.cidrs, tc.held, tc.waiting)
			delta, _ := c.Update(now, owners)
			if same := tc.addrs == addr && tc.cidrs == both; same && (len(delta.Set) > 0 || len(delta.Delete) > 0) {
				t.Errorf("flows changed: %v", delta)
			}
			if full, err := flows.Compile(now); err != nil || fmt.Sprint(full.Flows) != fmt.Sprint(c.Desired().Flows) {
				t.Errorf("the incremental compilation differs from the full one (%v)", err)
			}
			// The pod that was in the way goes; then the object is whole again.
			s.Apply(state.DeleteAttachment{Key: web.Key()})
			if now, _ = s.Take(); tc.waiting {
				set, ok := tc.change.(state.SetNode)
				if !ok {
					t.Fatalf("change %T", tc.change)
				}
				check("without the pod", now, tc.addrs, strings.Trim(fmt.Sprint(set.Node.PodCIDRs), "[]"), "", false)
			}
			s.Apply(state.SetNode{Node: selfNode("172.30.0.8", "10.244.8.0/24")})
			now, _ = s.Take()
			check("whole again", now, "172.30.0.8", "10.244.8.0/24", "", false)
		})
	}
	s := state.New("n1")
	s.Apply(state.SetNode{Node: selfNode("", "")})
	s.Apply(state.DeleteNode{Name: "n1"})
	if got, _ := s.Take(); got.SelfHeld != "" || len(got.Self.Addrs) > 0 {
		t.Errorf("a node that never had values: %+v, %q", got.Self, got.SelfHeld)
	}
}

// TestRecall: an agent that starts while pods have addresses of pod CIDRs that the Node object has no longer goes on
// with these, if its copy knows them, and changes with the last of these pods. Ranges that no pod uses are not
// recalled.
func TestRecall(t *testing.T) {
	web := model.Attachment{ContainerID: "c", Pod: model.PodRef{Namespace: "ns", Name: "web"}, OFPort: 16,
		IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}
	old := state.Recall{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}
	for _, tc := range []struct {
		name        string
		changes     []state.Change
		cidr, after string // in use with the pod, and without it
		held        string
		waiting     bool
	}{
		{"renumbered", []state.Change{state.SetAttachment{Attachment: web}, old,
			state.SetNode{Node: selfNode("172.30.0.1", "10.244.7.0/24")}},
			"[10.244.1.0/24]", "[10.244.7.0/24]",
			"its podCIDRs changed to [10.244.7.0/24] and attached pods have addresses of the old ones, [10.244.1.0/24] stays " +
				"in use", true},
		{"emptied", []state.Change{state.SetNode{Node: selfNode("172.30.0.1", "")}, old,
			state.SetAttachment{Attachment: web}},
			"[10.244.1.0/24]", "[10.244.1.0/24]", "it has no podCIDRs, [10.244.1.0/24] stays in use", false},
		{"not in use", []state.Change{old, state.SetNode{Node: selfNode("172.30.0.1", "10.244.7.0/24")}},
			"[10.244.7.0/24]", "[10.244.7.0/24]", "", false},
		{"a new cluster", []state.Change{old, state.SetNode{Node: selfNode("172.30.0.1", "")}}, "[]", "[]", "", false},
		{"without a copy", []state.Change{state.SetAttachment{Attachment: web}, state.SetNode{Node: selfNode("172.30.0.1",
			"10.244.7.0/24")}},
			"[10.244.7.0/24]", "[10.244.7.0/24]", "", false},
	} {
		for _, each := range []bool{false, true} { // whether the store is asked after each change
			s := state.New("n1")
			for _, c := range tc.changes {
				s.Apply(c)
				if each {
					s.Take()
				}
			}
			got, _ := s.Take()
			if cidrs := fmt.Sprint(got.SelfPath().PodCIDRs); cidrs != tc.cidr || got.SelfHeld != tc.held ||
				(len(got.NewPodCIDRs) > 0) != tc.waiting {
				t.Errorf("%s, each %t: %s, held %q, waiting %v; want %s, %q", tc.name, each, cidrs, got.SelfHeld, got.NewPodCIDRs,
					tc.cidr, tc.held)
			}
			s.Apply(state.DeleteAttachment{Key: web.Key()})
			if got, _ = s.Take(); fmt.Sprint(got.SelfPath().PodCIDRs) != tc.after {
				t.Errorf("%s, each %t: without the pod %v, want %s", tc.name, each, got.SelfPath().PodCIDRs, tc.after)
			}
		}
	}
}
