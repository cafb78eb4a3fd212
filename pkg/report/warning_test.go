package report

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// TestCutOff: a rule that denies has a warning for what pods need, unless a rule before it decides about that.
func TestCutOff(t *testing.T) {
	a, dns, api := addr("10.244.1.2"), netip.MustParseAddrPort("10.244.2.9:5353"),
		netip.MustParseAddrPort("172.30.0.1:6443")
	service := func(name string, p model.Protocol, to netip.AddrPort) model.Service {
		return model.Service{Name: name, Ports: []model.ServicePort{{Protocol: p, Cluster: []model.Endpoint{
			{Addr: to.Addr(), Port: to.Port()}}}}}
	}
	view := &model.Snapshot{Self: model.Node{Name: "n1", Addrs: []netip.Addr{addr("172.30.0.11")}},
		Services: map[string]model.Service{"kube-system/kube-dns": service("kube-system/kube-dns", model.UDP, dns),
			"default/kubernetes": service("default/kubernetes", model.TCP, api)}}
	all := model.PolicyRule{Index: 1, Verdict: model.Deny, AnyPeer: true, AnyPort: true}
	pass := func(p model.Protocol, port uint16) model.PolicyRule {
		return model.PolicyRule{Index: 0, Verdict: model.Pass, AnyPeer: true,
			Ports: []model.PortMatch{{Protocol: p, Port: port, Mask: 0xffff}}}
	}
	for _, c := range []struct {
		d     model.Direction
		tier  model.Tier
		rules []model.PolicyRule
		want  string
	}{
		{model.Egress, model.AdminTier, []model.PolicyRule{all}, "cuts its pods off from the DNS and the API server"},
		{model.Egress, model.BaselineTier, []model.PolicyRule{pass(model.UDP, 5353), all},
			"cuts its pods off from the API server"},
		{model.Egress, model.AdminTier, []model.PolicyRule{pass(model.TCP, 6443), all}, "cuts its pods off from the DNS"},
		{model.Egress, model.NetworkPolicyTier, []model.PolicyRule{all}, ""},
		{model.Ingress, model.AdminTier, []model.PolicyRule{all}, "cuts its pods off from the probes of their node"},
		{model.Ingress, model.AdminTier, []model.PolicyRule{{Index: 1, Verdict: model.Deny, Peers: cidrs("10.244.0.0/16"),
			AnyPort: true}}, ""},
	} {
		p := model.Policy{ID: model.ClusterNetworkPolicy("p"), Tier: c.tier}
		side := &model.PolicySide{Pods: []netip.Addr{a}, Rules: c.rules}
		if c.d == model.Egress {
			p.Egress = side
		} else {
			p.Ingress = side
		}
		if got := cutOff(view, p, c.d, 1); got != c.want {
			t.Errorf("%s %v: %q, want %q", c.d, c.rules, got, c.want)
		}
	}
}
