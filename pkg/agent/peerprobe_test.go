package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/peerprobe"
	"github.com/weft-cni/weft/pkg/report"
)

// TestPeersToAsk: nodes without a path are not asked, nor gateways of a family that this node has no address of.
func TestPeersToAsk(t *testing.T) {
	hop := netip.MustParseAddr("192.0.2.2")
	v4, v6 := netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd44:1::/64")
	view := &model.Snapshot{Self: model.Node{Name: "self"}, Paths: map[string]model.Path{
		"self":  {PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}},
		"both":  {NextHop: hop, PodCIDRs: []netip.Prefix{v6, v4}},
		"other": {NextHop: hop, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("fd44:2::/64")}},
		"none":  {NextHop: hop},
		"cut":   {Unreachable: "no address", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}},
	}}
	want := []peerprobe.Peer{{Name: "both", Gateways: []netip.Addr{netip.MustParseAddr("10.244.1.1")}}}
	if d := cmp.Diff(want, peersToAsk(view), cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestCountPeers: what is lost outranks an answer, since small packets may arrive where large ones do not.
func TestCountPeers(t *testing.T) {
	want := map[string]int{"reachable": 1, "unreachable": 2, "unknown": 1}
	got := countPeers([]report.Node{
		{RTTSeconds: 1}, {RTTSeconds: 1, Unreachable: "packets of 1450 bytes are lost"}, {Unreachable: "no path"}, {},
	})
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestCountTransports: every transport has a count, and a node without a path counts as none.
func TestCountTransports(t *testing.T) {
	want := map[string]int{"overlay": 0, "direct": 1, "ipip": 1, "wireguard": 2, "none": 1}
	got := countTransports([]report.Node{
		{Transport: model.ModeWireGuard}, {Transport: model.ModeDirect}, {Transport: model.ModeIPIP},
		{Transport: model.ModeWireGuard}, {},
	})
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
