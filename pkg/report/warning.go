package report

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
)

// need is something that pods need to run.
type need struct {
	name      string
	direction model.Direction
	protocol  model.Protocol
	to        []netip.AddrPort // the port is 0 where any will do
}

// needs are what this node's pods need, as far as the snapshot knows it: the Services by the names that clusters give
// them, and the probes that come from the node.
func needs(view *model.Snapshot) []need {
	list := []need{{"the DNS", model.Egress, model.UDP, nil}, {"the API server", model.Egress, model.TCP, nil}}
	for i, name := range []string{"kube-system/kube-dns", "default/kubernetes"} {
		for _, p := range view.Services[name].Ports {
			if p.Protocol == list[i].protocol {
				for _, e := range slices.Concat(p.Cluster, p.Local) {
					list[i].to = append(list[i].to, netip.AddrPortFrom(e.Addr, e.Port))
				}
			}
		}
	}
	probes := need{"the probes of their node", model.Ingress, model.TCP, nil}
	for _, addr := range view.Self.Addrs {
		probes.to = append(probes.to, netip.AddrPortFrom(addr, 0))
	}
	return append(list, probes)
}

// cutOff says what a rule that denies cuts its pods off from, unless a rule before it in the same policy does not let
// it decide; "" for nothing. Other policies may accept it before.
func cutOff(view *model.Snapshot, policy model.Policy, d model.Direction, index int) string {
	side := policy.Side(d)
	if !policy.Tier.Ordered() || side == nil {
		return ""
	}
	var from []string
	for _, n := range needs(view) {
		decides := func(to netip.AddrPort) bool {
			for _, r := range side.Rules {
				if matches(r, to.Addr(), n.protocol, to.Port()) {
					return r.Index == index && r.Verdict == model.Deny
				}
			}
			return false
		}
		if n.direction == d && slices.ContainsFunc(n.to, decides) {
			from = append(from, n.name)
		}
	}
	if len(from) == 0 {
		return ""
	}
	return "cuts its pods off from " + strings.Join(from, " and ")
}

func matches(r model.PolicyRule, peer netip.Addr, protocol model.Protocol, port uint16) bool {
	inside := func(p netip.Prefix) bool { return p.Contains(peer) }
	named := func(m model.PortMatch) bool {
		return m.Protocol == protocol && (port == 0 || port&m.Mask == m.Port)
	}
	return (r.AnyPeer || slices.ContainsFunc(r.Peers, inside)) && (r.AnyPort || slices.ContainsFunc(r.Ports, named))
}
