package policy

import (
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
)

// Random objects have few different names, so that they interact.
var (
	someNamespaces = []string{"a", "b", "c"}
	someNodes      = []string{"n1", "n2", ""}
	someAddrs      = []string{"10.0.1.1", "10.0.1.2", "10.0.2.1", "10.0.2.2", "10.0.2.3", "fd00:1::1", "fd00:2::1",
		"fd00:2::2"}
	someNames     = []string{"http", "dns"}
	someProtocols = []Protocol{"", TCP, UDP, SCTP}
)

// A domain may be invalid, and names may be learned that none matches.
var (
	someDomains    = []Domain{"a.example", "*.a.example", "*.example", "example"}
	someNamesOfDNS = []string{"a.example", "b.a.example", "c.example"}
)

func drawLearned(t *rapid.T) model.LearnedName {
	var n model.LearnedName
	for _, text := range []string{"10.0.2.1", "192.0.2.1", "192.0.2.7", "fd00:2::1"} {
		switch a := netip.MustParseAddr(text); upTo(t, 3) {
		case 0:
			n.Addrs = append(n.Addrs, a)
		case 1:
			n.Ended = append(n.Ended, a)
		}
	}
	return n
}

func draw[T any](t *rapid.T, from []T) T { return rapid.SampledFrom(from).Draw(t, "pick") }

func chance(t *rapid.T, percent int) bool { return rapid.IntRange(1, 100).Draw(t, "chance") <= percent }

func upTo(t *rapid.T, most int) int { return rapid.IntRange(0, most).Draw(t, "count") }

func drawLabels(t *rapid.T) map[string]string {
	labels := map[string]string{}
	for range upTo(t, 2) {
		labels[draw(t, []string{"app", "tier"})] = draw(t, []string{"x", "y", ""})
	}
	return labels
}

func drawSelector(t *rapid.T) Selector {
	s := Selector{}
	if chance(t, 50) {
		s.MatchLabels = drawLabels(t)
	}
	for range upTo(t, 1) {
		r := Requirement{Key: draw(t, []string{"app", "tier"}),
			Operator: draw(t, []Operator{In, NotIn, Exists, DoesNotExist})}
		if r.Operator == In || r.Operator == NotIn {
			r.Values = []string{draw(t, []string{"x", "y"}), draw(t, []string{"x", "y", ""})}
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s
}

func drawPeer(t *rapid.T) Peer {
	one, other := drawSelector(t), drawSelector(t)
	switch upTo(t, 3) {
	case 0:
		return Peer{PodSelector: &one}
	case 1:
		return Peer{NamespaceSelector: &one}
	case 2:
		return Peer{PodSelector: &one, NamespaceSelector: &other}
	}
	cidrs := []string{"10.0.0.0/16", "10.0.2.0/30", "10.0.2.2/31", "0.0.0.0/0", "::/0", "fd00:2::/64", "10.0.1.1/32",
		"fd00:2::2/127"}
	b := IPBlock{CIDR: netip.MustParsePrefix(draw(t, cidrs))}
	for range upTo(t, 2) {
		b.Except = append(b.Except, netip.MustParsePrefix(draw(t, cidrs)))
	}
	return Peer{IPBlock: &b}
}

func drawRules(t *rapid.T) []Rule {
	var rules []Rule
	for range upTo(t, 2) {
		var r Rule
		for range upTo(t, 2) {
			r.Peers = append(r.Peers, drawPeer(t))
		}
		for range upTo(t, 3) {
			p := Port{Protocol: draw(t, someProtocols)}
			switch upTo(t, 3) {
			case 0:
				p.Name = draw(t, someNames)
			case 1:
				p.Number = uint16(rapid.IntRange(79, 82).Draw(t, "port"))
			case 2:
				p.Number = uint16(rapid.IntRange(1, 81).Draw(t, "from"))
				p.EndPort = p.Number + uint16(rapid.IntRange(0, 90).Draw(t, "width"))
			}
			r.Ports = append(r.Ports, p)
		}
		rules = append(rules, r)
	}
	return rules
}

func drawPolicy(t *rapid.T) Policy {
	p := Policy{Namespace: draw(t, someNamespaces), Name: draw(t, []string{"p", "q", "r"}), PodSelector: drawSelector(t),
		Ingress: drawRules(t), Egress: drawRules(t), Log: chance(t, 10),
		Staged: chance(t, 30)}
	if chance(t, 60) {
		p.Types = draw(t, [][]Direction{{Ingress}, {Egress}, {Ingress, Egress}})
	}
	switch upTo(t, 30) {
	case 0:
		p.Err = "it cannot be read"
	case 1:
		p.Types = []Direction{"Sideways"}
	case 2:
		p.PodSelector.MatchExpressions = append(p.PodSelector.MatchExpressions, Requirement{Key: "app", Operator: "Like"})
	}
	return p
}

func drawPod(t *rapid.T) Pod {
	p := Pod{Namespace: draw(t, someNamespaces), Name: draw(t, []string{"1", "2", "3"}), UID: draw(t, []string{"u", "v"}),
		Node: draw(t, someNodes), Labels: drawLabels(t),
		HostNetwork: chance(t, 5), Done: chance(t, 10), Terminating: chance(t, 20), Created: int64(upTo(t, 2))}
	for range upTo(t, 2) {
		if a := netip.MustParseAddr(draw(t, someAddrs)); !slices.Contains(p.Addrs, a) {
			p.Addrs = append(p.Addrs, a)
		}
	}
	for range upTo(t, 3) {
		c := ContainerPort{Name: draw(t, someNames), Protocol: draw(t, someProtocols[1:]),
			Number: uint16(rapid.IntRange(80, 82).Draw(t, "number"))}
		if !slices.Contains(p.Ports, c) {
			p.Ports = append(p.Ports, c)
		}
	}
	return p
}

func drawAttachment(t *rapid.T) model.Attachment {
	a := model.Attachment{ContainerID: draw(t, []string{"c1", "c2", "c3"}), IfName: "eth0",
		Pod: model.PodRef{Namespace: draw(t, someNamespaces), Name: draw(t, []string{"1", "2"}),
			UID: draw(t, []string{"u", "v", ""})}}
	for range upTo(t, 2) {
		if ip := netip.MustParseAddr(draw(t, someAddrs)); !slices.Contains(a.IPs, ip) {
			a.IPs = append(a.IPs, ip)
		}
	}
	return a
}

func drawNode(t *rapid.T) Node {
	n := Node{Name: draw(t, someNodes), Labels: drawLabels(t)}
	for range upTo(t, 2) {
		n.Addrs = append(n.Addrs, netip.MustParseAddr(draw(t, []string{"192.0.2.1", "10.0.2.0", "fd00:2::3"})))
	}
	return n
}

// drawAnyPolicy draws a policy of any tier. A ClusterNetworkPolicy may be invalid as a whole or in part.
func drawAnyPolicy(t *rapid.T) Policy {
	p := drawPolicy(t)
	p.Tier = draw(t, []model.Tier{model.NetworkPolicyTier, model.NetworkPolicyTier, model.AdminTier, model.BaselineTier})
	if !p.Tier.Ordered() {
		return p
	}
	p.Namespace, p.Types = "", nil
	p.Priority = int32(upTo(t, 2))
	if chance(t, 5) {
		p.Priority = 1001
	}
	p.NamespaceSelector = Selector{MatchLabels: drawLabels(t)}
	for _, rules := range [][]Rule{p.Ingress, p.Egress} {
		for i := range rules {
			rules[i].Verdict = draw(t, []model.Verdict{model.Accept, model.Deny, model.Pass})
			if chance(t, 10) {
				rules[i].Err = "unknown"
			}
			for j, peer := range rules[i].Peers {
				if peer.IPBlock == nil && peer.NamespaceSelector == nil {
					rules[i].Peers[j].NamespaceSelector = &Selector{}
				}
			}
		}
	}
	if len(p.Egress) > 0 && chance(t, 30) {
		p.Egress[0].Peers = append(p.Egress[0].Peers, Peer{NodeSelector: &Selector{MatchLabels: drawLabels(t)}})
	}
	if len(p.Egress) > 0 && chance(t, 40) {
		p.Egress[0].Peers = append(p.Egress[0].Peers, Peer{Domain: draw(t, someDomains)})
		if chance(t, 90) {
			p.Tier, p.Egress[0].Verdict = model.AdminTier, model.Accept
		}
	}
	return p
}
