package tracetest

import (
	"fmt"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
)

// Random clusters are small, so that policies overlap and addresses are adjacent: two nodes, two namespaces, up to six
// pods, ports from 1 to 8.
var (
	nodes = []model.Node{
		{Name: "n1", Addrs: addrs("172.30.0.11", "fd30::11"), PodCIDRs: prefixes("10.0.1.0/28", "fd00:1::/64")},
		{Name: "n2", Addrs: addrs("172.30.0.12", "fd30::12"), PodCIDRs: prefixes("10.0.2.0/28", "fd00:2::/64")},
	}
	outside = addrs("203.0.113.7", "10.0.3.1", "fd99::7")
	// excepts of each block contain some pods.
	blocks = []struct {
		cidr    string
		excepts []string
	}{
		{"0.0.0.0/0", []string{"10.0.1.0/28", "10.0.1.4/31", "203.0.113.7/32", "0.0.0.0/1"}},
		{"10.0.0.0/14", []string{"10.0.1.3/32", "10.0.2.0/30", "10.0.0.0/23", "10.0.1.2/31"}},
		{"10.0.1.4/30", []string{"10.0.1.5/32", "10.0.1.4/30"}},
		{"10.0.2.3/32", nil},
		{"172.30.0.0/24", []string{"172.30.0.11/32"}},
		{"::/0", []string{"fd00::/16", "fd00:1::4/126", "8000::/1"}},
		{"fd00::/12", []string{"fd00:2::/64", "fd00:1::3/128"}},
		{"fd00:2::2/127", nil},
	}
)

func addrs(texts ...string) []netip.Addr {
	list := make([]netip.Addr, len(texts))
	for i, s := range texts {
		list[i] = netip.MustParseAddr(s)
	}
	return list
}

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, s := range texts {
		list[i] = netip.MustParsePrefix(s)
	}
	return list
}

var protocols = []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP}

// DrawCluster draws a cluster without policies.
func DrawCluster(t *rapid.T) Cluster {
	c := Cluster{Nodes: nodes, Kernel: rapid.Bool().Draw(t, "kernel"), Namespaces: map[string]map[string]string{}}
	for _, ns := range []string{"a", "b"} {
		c.Namespaces[ns] = drawLabels(t, "labels of namespace "+ns)
	}
	for _, n := range nodes {
		c.PeerNodes = append(c.PeerNodes, policy.Node{Name: n.Name, Labels: drawLabels(t, "labels of node "+n.Name),
			Addrs: n.Addrs})
	}
	for i := range rapid.IntRange(2, 6).Draw(t, "pods") {
		p := policy.Pod{
			Name: fmt.Sprint("p", i), Namespace: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "namespace"),
			Labels: drawLabels(t, "labels"), Node: rapid.SampledFrom([]string{"n1", "n1", "n2"}).Draw(t, "node"),
		}
		if rapid.IntRange(0, 9).Draw(t, "host network") == 9 {
			p.HostNetwork = true
			p.Addrs = nodes[0].Addrs
			if p.Node == "n2" {
				p.Addrs = nodes[1].Addrs
			}
			c.Pods = append(c.Pods, p)
			continue
		}
		families := rapid.IntRange(1, 3).Draw(t, "families")
		if families&1 != 0 {
			p.Addrs = append(p.Addrs, netip.MustParseAddr(fmt.Sprintf("10.0.%s.%d", p.Node[1:], 2+i)))
		}
		if families&2 != 0 {
			p.Addrs = append(p.Addrs, netip.MustParseAddr(fmt.Sprintf("fd00:%s::%d", p.Node[1:], 2+i)))
		}
		for _, name := range []string{"p", "q"} {
			for range rapid.IntRange(0, 2).Draw(t, "ports named "+name) {
				protocol := rapid.SampledFrom(protocols[:2]).Draw(t, "protocol")
				p.Ports = append(p.Ports, policy.ContainerPort{Name: name, Protocol: protocol, Number: drawNumber(t)})
			}
		}
		c.Pods = append(c.Pods, p)
	}
	return c
}

func drawNumber(t *rapid.T) uint16 { return uint16(rapid.IntRange(1, 8).Draw(t, "number")) }

func drawLabels(t *rapid.T, what string) map[string]string {
	labels := map[string]string{}
	for _, key := range []string{"x", "y"} {
		if v := rapid.IntRange(0, 2).Draw(t, what); v > 0 {
			labels[key] = fmt.Sprint(v)
		}
	}
	return labels
}

// DrawPolicies draws 1 to 8 policies, in about half of the sets of all three tiers.
func DrawPolicies(t *rapid.T) []policy.Policy {
	list := drawNetworkPolicies(t)
	if rapid.Bool().Draw(t, "tiers") {
		list = append(list[:min(4, len(list))], drawClusterPolicies(t)...)
	}
	return list
}

// drawNetworkPolicies draws 1 to 8 NetworkPolicies.
func drawNetworkPolicies(t *rapid.T) []policy.Policy {
	var list []policy.Policy
	for i := range rapid.IntRange(1, 8).Draw(t, "policies") {
		p := policy.Policy{
			Name: fmt.Sprint("policy", i), Namespace: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "namespace"),
			PodSelector: drawSelector(t),
		}
		types := [][]policy.Direction{nil, {policy.Ingress}, {policy.Egress}, {policy.Ingress, policy.Egress}}
		p.Types = rapid.SampledFrom(types).Draw(t, "types")
		for range rapid.IntRange(0, 3).Draw(t, "ingress rules") {
			p.Ingress = append(p.Ingress, drawRule(t))
		}
		for range rapid.IntRange(0, 3).Draw(t, "egress rules") {
			p.Egress = append(p.Egress, drawRule(t))
		}
		list = append(list, p)
	}
	return list
}

// drawClusterPolicies draws 1 to 6 ClusterNetworkPolicies, some of one priority.
func drawClusterPolicies(t *rapid.T) []policy.Policy {
	var list []policy.Policy
	for i := range rapid.IntRange(1, 6).Draw(t, "cluster policies") {
		p := policy.Policy{
			Name: fmt.Sprint("cluster", i), NamespaceSelector: drawSelector(t), PodSelector: drawSelector(t),
			Tier:     rapid.SampledFrom([]model.Tier{model.AdminTier, model.BaselineTier}).Draw(t, "tier"),
			Priority: int32(rapid.IntRange(0, 3).Draw(t, "priority")),
		}
		for range rapid.IntRange(0, 3).Draw(t, "ingress rules") {
			p.Ingress = append(p.Ingress, drawClusterRule(t, policy.Ingress))
		}
		for range rapid.IntRange(0, 3).Draw(t, "egress rules") {
			p.Egress = append(p.Egress, drawClusterRule(t, policy.Egress))
		}
		list = append(list, p)
	}
	return list
}

func drawClusterRule(t *rapid.T, d policy.Direction) policy.Rule {
	r := drawRule(t)
	r.Verdict = rapid.SampledFrom([]model.Verdict{model.Accept, model.Deny, model.Pass}).Draw(t, "verdict")
	r.Peers = nil
	onlyPods := true
	for range rapid.IntRange(1, 3).Draw(t, "peers") {
		pods, namespaces := drawSelector(t), drawSelector(t)
		kind := rapid.IntRange(0, 5).Draw(t, "peer")
		switch {
		case kind > 3 && d == policy.Egress:
			onlyPods = false
			b := blocks[rapid.IntRange(0, len(blocks)-1).Draw(t, "block")]
			r.Peers = append(r.Peers, policy.Peer{IPBlock: &policy.IPBlock{CIDR: netip.MustParsePrefix(b.cidr)}})
		case kind == 3 && d == policy.Egress:
			onlyPods = false
			r.Peers = append(r.Peers, policy.Peer{NodeSelector: &namespaces})
		case kind == 2:
			r.Peers = append(r.Peers, policy.Peer{NamespaceSelector: &namespaces})
		default:
			r.Peers = append(r.Peers, policy.Peer{NamespaceSelector: &namespaces, PodSelector: &pods})
		}
	}
	// A name is that of a port of any protocol, and only pods have any.
	var ports []policy.Port
	for _, p := range r.Ports {
		switch {
		case p.Name == "":
			ports = append(ports, p)
		case onlyPods:
			for _, protocol := range protocols {
				ports = append(ports, policy.Port{Protocol: protocol, Name: p.Name})
			}
		}
	}
	r.Ports = ports
	return r
}

func drawSelector(t *rapid.T) policy.Selector {
	key := rapid.SampledFrom([]string{"x", "y"}).Draw(t, "key")
	value := fmt.Sprint(rapid.IntRange(1, 2).Draw(t, "value"))
	expression := func(o policy.Operator, values ...string) policy.Selector {
		return policy.Selector{MatchExpressions: []policy.Requirement{{Key: key, Operator: o, Values: values}}}
	}
	switch rapid.IntRange(0, 7).Draw(t, "selector") {
	case 1, 2:
		return policy.Selector{MatchLabels: map[string]string{key: value}}
	case 3:
		return expression(policy.In, "1", value)
	case 4:
		return expression(policy.NotIn, value)
	case 5:
		return expression(policy.Exists)
	case 6:
		return expression(policy.DoesNotExist)
	}
	return policy.Selector{}
}

func drawRule(t *rapid.T) policy.Rule {
	var r policy.Rule
	for range rapid.IntRange(0, 3).Draw(t, "peers") {
		r.Peers = append(r.Peers, drawPeer(t))
	}
	for range rapid.IntRange(0, 3).Draw(t, "ports") {
		protocol := rapid.SampledFrom([]policy.Protocol{"", policy.TCP, policy.UDP, policy.SCTP}).Draw(t, "protocol")
		port := policy.Port{Protocol: protocol}
		switch rapid.IntRange(0, 5).Draw(t, "port") {
		case 0:
			port.Name = rapid.SampledFrom([]string{"p", "q"}).Draw(t, "name")
		case 1, 2:
			port.Number = drawNumber(t)
		case 3, 4:
			port.Number = drawNumber(t)
			port.EndPort = port.Number + uint16(rapid.IntRange(0, 6).Draw(t, "range"))
		}
		r.Ports = append(r.Ports, port)
	}
	return r
}

func drawPeer(t *rapid.T) policy.Peer {
	pods, namespaces := drawSelector(t), drawSelector(t)
	switch rapid.IntRange(0, 4).Draw(t, "peer") {
	case 0:
		return policy.Peer{PodSelector: &pods}
	case 1:
		return policy.Peer{NamespaceSelector: &namespaces}
	case 2:
		return policy.Peer{PodSelector: &pods, NamespaceSelector: &namespaces}
	}
	b := blocks[rapid.IntRange(0, len(blocks)-1).Draw(t, "block")]
	block := &policy.IPBlock{CIDR: netip.MustParsePrefix(b.cidr)}
	for _, e := range b.excepts {
		if rapid.Bool().Draw(t, "except") {
			block.Except = append(block.Except, netip.MustParsePrefix(e))
		}
	}
	return policy.Peer{IPBlock: block}
}

// DrawPackets draws one or two packets between each pod and another pod, a node, an address outside or itself.
func DrawPackets(t *rapid.T, c Cluster) []Packet {
	var pods, others []netip.Addr
	for _, p := range c.Pods {
		if !p.HostNetwork {
			pods = append(pods, p.Addrs...)
		}
	}
	for _, n := range c.Nodes {
		others = append(others, n.Addrs...)
		for _, cidr := range n.PodCIDRs {
			others = append(others, model.GatewayAddr(cidr))
		}
	}
	others = append(others, outside...)
	var list []Packet
	add := func(src, dst netip.Addr) {
		if src.Is4() != dst.Is4() {
			return
		}
		if rapid.IntRange(0, 9).Draw(t, "echo") == 9 {
			list = append(list, Echo(src, dst))
			return
		}
		list = append(list, Packet{
			Src: src, Dst: dst, Protocol: rapid.SampledFrom([]uint8{6, 6, 6, 17, 17, 132}).Draw(t, "protocol"),
			SrcPort: 40000, DstPort: uint16(rapid.IntRange(1, 15).Draw(t, "port")),
		})
	}
	for _, pod := range pods {
		for _, other := range pods {
			add(pod, other)
			add(pod, other)
		}
		for _, other := range others {
			add(pod, other)
			add(other, pod)
		}
	}
	return list
}

// DrawNames draws what was learned of domain names: addresses of pods.
func DrawNames(t *rapid.T, c Cluster) map[string]model.LearnedName {
	names := map[string]model.LearnedName{}
	for _, name := range []string{"a.example", "b.a.example"} {
		var learned model.LearnedName
		for _, p := range c.Pods {
			switch rapid.IntRange(0, 3).Draw(t, "learned") {
			case 0, 1:
				learned.Addrs = append(learned.Addrs, p.Addrs...)
			case 2:
				learned.Ended = append(learned.Ended, p.Addrs...)
			}
		}
		names[name] = learned
	}
	return names
}

// DrawPoliciesWithNames draws policies, some of whose rules have domain names as peers.
func DrawPoliciesWithNames(t *rapid.T) []policy.Policy {
	list := DrawPolicies(t)
	for _, p := range list {
		if p.Tier != model.AdminTier {
			continue
		}
		for i, r := range p.Egress {
			named := slices.ContainsFunc(r.Ports, func(p policy.Port) bool { return p.Name != "" })
			if r.Verdict == model.Accept && !named && rapid.Bool().Draw(t, "domain names") {
				domain := rapid.SampledFrom([]policy.Domain{"a.example", "*.a.example", "*.example"}).Draw(t, "domain")
				p.Egress[i].Peers = append(p.Egress[i].Peers, policy.Peer{Domain: domain})
			}
		}
	}
	return list
}
