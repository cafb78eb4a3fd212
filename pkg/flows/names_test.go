package flows_test

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
)

// TestNarrowsNames: the end of a name's address denies no connection that exists; its removal may.
func TestNarrowsNames(t *testing.T) {
	pod, outside := []netip.Addr{netip.MustParseAddr("10.244.1.2")}, []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
	names := func(peers, ended []netip.Prefix) model.Policy {
		rule := model.PolicyRule{ID: 1, Pods: pod, Peers: peers, Ended: ended, AnyPort: true}
		return model.Policy{ID: model.ClusterNetworkPolicy("names"), Tier: model.AdminTier,
			Egress: &model.PolicySide{Pods: pod, Rules: []model.PolicyRule{rule}}}
	}
	fresh := func(netip.Addr) bool { return false }
	if flows.Narrows(names(outside, nil), names(nil, outside), fresh) {
		t.Error("an address that ends is to need a sweep")
	}
	if !flows.Narrows(names(outside, nil), names(nil, nil), fresh) {
		t.Error("an address that is removed needs no sweep")
	}
}
