package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/test/lab/podns"
)

// serviceTargets are the ports of a Service at each of its addresses: its cluster IPs, and those that are known beyond
// the nodes. A headless one has none.
func (l *Lab) serviceTargets(s *corev1.Service, pods []*pod) []Target {
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	var targets []Target
	from := l.slicesOf(s, pods)
	add := func(ip netip.Addr, local bool) {
		for _, port := range s.Spec.Ports {
			t := Target{Kind: "service", Name: s.Namespace + "/" + s.Name, Addr: ip, local: local,
				Port: podns.Port{Proto: protocolOf(port.Protocol), Number: uint16(port.Port)}}
			t.backends = backends(from, port, ip.Is4(), pods)
			t.missing = t.Proto == podns.SCTP && noSCTP(pods)
			targets = append(targets, t)
		}
	}
	families := map[bool]bool{}
	for _, text := range s.Spec.ClusterIPs {
		ip := netip.MustParseAddr(text) // the loader's or our own
		families[ip.Is4()] = true
		add(ip, *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal)
	}
	// Pods are inside, where the external traffic policy does not count.
	for _, ip := range externalAddrs(s) {
		if families[ip.Is4()] {
			add(ip, false)
		}
	}
	return targets
}

// noSCTP tells whether this kernel lacks the protocol, which a pod that wants it has found out.
func noSCTP(pods []*pod) bool {
	return slices.ContainsFunc(pods, func(p *pod) bool {
		return slices.ContainsFunc(p.missing, func(port podns.Port) bool { return port.Proto == podns.SCTP })
	})
}

// backends are the endpoints of one port of a Service, in one family.
func backends(in []*discoveryv1.EndpointSlice, port corev1.ServicePort, v4 bool, pods []*pod) []backend {
	var out []backend
	for _, slice := range in {
		for _, p := range slice.Ports {
			if *p.Name != port.Name || protocolOf(*p.Protocol) != protocolOf(port.Protocol) {
				continue
			}
			for _, e := range slice.Endpoints {
				addr := netip.MustParseAddr(e.Addresses[0]) // the loader's or our own
				if addr.Is4() != v4 {
					continue
				}
				b := backend{name: addr.String(), addr: netip.AddrPortFrom(addr, uint16(*p.Port))}
				if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" {
					b.name = slice.Namespace + "/" + ref.Name
				} else if owner := ownerOf(addr, pods); owner != nil {
					b.name, b.node = owner.key, owner.node.name
				}
				if e.NodeName != nil {
					b.node = *e.NodeName
				}
				is := func(condition *bool, unset bool) bool {
					return condition == nil && unset || condition != nil && *condition
				}
				b.ready = is(e.Conditions.Ready, true)
				b.leaving = is(e.Conditions.Serving, true) && is(e.Conditions.Terminating, false)
				out = append(out, b)
			}
		}
	}
	return out
}

// usable are the backends that a packet from a node may go to: the ready ones or, when there are none, those that serve
// while they terminate. With the policy Local, only those on the node.
func (t Target) usable(node string) []backend {
	var ready, leaving []backend
	for _, b := range t.backends {
		switch {
		case t.local && b.node != node:
		case b.ready:
			ready = append(ready, b)
		case b.leaving:
			leaving = append(leaving, b)
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return leaving
}

// expected is what the policies say about packets to a target, and why.
func (v view) expected(from *pod, t Target) (Expectation, string) {
	usable := t.usable(from.node.name)
	if len(usable) == 0 {
		return expectedOfNone(t)
	}
	allowed, why := 0, []string{}
	for _, b := range usable {
		verdict := v.verdict(from, b, t)
		if verdict.Allowed {
			allowed++
		}
		if !slices.Contains(why, verdict.Why) {
			why = append(why, verdict.Why)
		}
	}
	text := strings.Join(why, " | ")
	switch allowed {
	case len(usable):
		return Allow, text
	case 0:
		return Deny, text
	}
	return Either, fmt.Sprintf("%s are allowed: %s", terminal.CountOf(allowed, len(usable), "endpoint"), text)
}

// expectedOfNone is about a Service without usable endpoints. Policies are about endpoints, so they have no part in it.
func expectedOfNone(t Target) (Expectation, string) {
	elsewhere := t
	elsewhere.local = false
	if t.local && len(elsewhere.usable("")) > 0 {
		return Deny, "the Service's endpoints are on other nodes, and its traffic policy is Local"
	}
	return Reject, "the Service has no endpoints that could be used"
}

func (v view) verdict(from *pod, b backend, t Target) policy.Verdict {
	src, _ := from.source(b.addr.Addr().Is4())
	// A packet that a pod sends to itself is in the network only when a Service has translated it.
	return policy.Eval(v.cluster, policy.Packet{Src: src, Dst: b.addr.Addr(), Protocol: policy.Protocol(t.Proto),
		Port: b.addr.Port(), Translated: t.Kind == "service"})
}

// kept tells whether packets did what was expected: an answer must come from an endpoint that may answer, and where one
// is expected it must come.
func (v view) kept(from *pod, t Target, p Probe) bool {
	switch {
	case p.Expected == Reject:
		return p.Outcome == podns.Refused
	case p.Outcome != podns.Answered:
		return p.Expected != Allow
	}
	return slices.ContainsFunc(t.usable(from.node.name), func(b backend) bool {
		return b.name == p.Reached && v.verdict(from, b, t).Allowed
	})
}

// cluster is the lab as policies see it.
func (l *Lab) cluster(pods []*pod) (policy.Cluster, error) {
	c := policy.Cluster{Namespaces: map[string]map[string]string{}, Nodes: map[string][]netip.Addr{}}
	for _, n := range l.set.Namespaces {
		c.Namespaces[n.Name] = n.Labels
	}
	for i, n := range l.nodes {
		c.PeerNodes = append(c.PeerNodes, policy.Node{Name: n.name, Labels: l.set.Nodes[i].Labels,
			Addrs: addrsOf(n.underlay)})
		c.Nodes[n.name] = addrsOf(n.underlay)
		for _, cidr := range n.podCIDRs {
			c.Nodes[n.name] = append(c.Nodes[n.name], model.GatewayAddr(cidr))
		}
	}
	for _, p := range pods {
		one := kube.Pod(p.object)
		one.Node, one.Addrs, one.HostNetwork = p.node.name, p.ips, p.onHost()
		c.Pods = append(c.Pods, one)
	}
	var bad []error
	for _, object := range l.set.Policies {
		p := kube.NetworkPolicy(object)
		if err := p.Check(); err != nil {
			bad = append(bad, fmt.Errorf("NetworkPolicy %s: %w", p.ID(), err))
		}
		c.Policies = append(c.Policies, p)
	}
	for _, object := range l.set.ClusterPolicies {
		c.Policies = append(c.Policies, kube.ClusterNetworkPolicy(object)) // checked when it was read
	}
	return c, errors.Join(bad...)
}
