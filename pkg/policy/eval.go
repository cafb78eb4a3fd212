package policy

import (
	"net/netip"
	"slices"
)

// Verdict is the expected result for a packet.
type Verdict struct {
	Allowed bool
	// Why is the reason, with the names of the policies.
	Why string
}

// Eval returns the verdict for a packet: the egress policies at its source and the ingress policies at its destination
// must both allow it. It is pure, and looks at every policy and pod.
func Eval(c Cluster, p Packet) Verdict {
	switch {
	case p.Reply:
		return Verdict{true, "reply of an allowed connection"}
	case p.Src == p.Dst && !p.Translated:
		return Verdict{true, "a pod always reaches its own address"}
	}
	out := c.Decide(Egress, p)
	if !out.Allowed {
		return out.Verdict
	}
	in := c.Decide(Ingress, p)
	if !in.Allowed {
		return in.Verdict
	}
	return Verdict{true, out.Why + "; " + in.Why}
}

// traffic is a packet in one direction: from or to the subject, the pod that policies select. The peer is the other
// end's address, and its pod or nil.
type traffic struct {
	Direction
	subject, peer *Pod
	peerAddr      netip.Addr
	packet        Packet
}

// to is the pod that the packet is sent to, or nil.
func (t traffic) to() *Pod {
	if t.Direction == Egress {
		return t.peer
	}
	return t.subject
}

func (c Cluster) matches(policy Policy, rule Rule, t traffic) bool {
	return c.peersMatch(rule.Peers, policy.Namespace, t.peer, t.peerAddr) && portsMatch(rule.Ports, t.to(), t.packet)
}

// selects reports whether the policy selects the pod for this direction.
func (c Cluster) selects(policy Policy, d Direction, pod Pod) bool {
	within := policy.Namespace == pod.Namespace
	if policy.Tier.Ordered() {
		within = c.namespaceMatches(policy.NamespaceSelector.validPart(), pod.Namespace)
	}
	return within && policy.PodSelector.validPart().Matches(pod.Labels) && slices.Contains(policy.types(), d)
}

// types are the policy's directions. API: "If no policyTypes are specified on a NetworkPolicy then by default Ingress
// will always be set and Egress will be set if the NetworkPolicy has any egress rules." An invalid direction may mean
// either.
func (policy Policy) types() []Direction {
	if policy.Tier.Ordered() {
		var types []Direction
		for _, d := range []Direction{Ingress, Egress} {
			if len(policy.rules(d)) > 0 {
				types = append(types, d)
			}
		}
		return types
	}
	if slices.ContainsFunc(policy.Types, func(d Direction) bool { return d != Ingress && d != Egress }) {
		return []Direction{Ingress, Egress}
	}
	if len(policy.Types) > 0 {
		return policy.Types
	}
	if len(policy.Egress) > 0 {
		return []Direction{Ingress, Egress}
	}
	return []Direction{Ingress}
}

func (policy Policy) rules(d Direction) []Rule {
	if d == Ingress {
		return policy.Ingress
	}
	return policy.Egress
}

// peersMatch follows the API: "Items in this list are combined using a logical OR operation. If this field is empty or
// missing, this rule matches all sources [or destinations]."
func (c Cluster) peersMatch(peers []Peer, namespace string, pod *Pod, addr netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	return slices.ContainsFunc(peers, func(peer Peer) bool { return c.peerMatches(peer, namespace, pod, addr) })
}

func (c Cluster) peerMatches(peer Peer, namespace string, pod *Pod, addr netip.Addr) bool {
	if peer.IPBlock != nil {
		return peer.IPBlock.Contains(addr)
	}
	if peer.Domain != "" {
		for name, learned := range c.Names {
			if peer.Domain.Matches(name) && slices.Contains(learned.Addrs, addr) {
				return true
			}
		}
		return false
	}
	if peer.NodeSelector != nil {
		return slices.ContainsFunc(c.PeerNodes, func(n Node) bool {
			return peer.NodeSelector.Matches(n.Labels) && slices.Contains(n.Addrs, addr)
		})
	}
	if pod == nil {
		return false // selectors select only pods
	}
	switch {
	case peer.PodSelector != nil && peer.NamespaceSelector != nil:
		return c.namespaceMatches(*peer.NamespaceSelector, pod.Namespace) && peer.PodSelector.Matches(pod.Labels)
	case peer.PodSelector != nil:
		return pod.Namespace == namespace && peer.PodSelector.Matches(pod.Labels)
	case peer.NamespaceSelector != nil:
		return c.namespaceMatches(*peer.NamespaceSelector, pod.Namespace)
	}
	return false // the API rejects an empty peer
}

// namespaceMatches is false for an unknown namespace, because its labels are unknown.
func (c Cluster) namespaceMatches(s Selector, name string) bool {
	labels, known := c.Namespaces[name]
	return known && s.Matches(labels)
}

// Contains reports whether the address is in the range and in none of its exceptions.
func (b IPBlock) Contains(addr netip.Addr) bool {
	inside := func(p netip.Prefix) bool { return p.Contains(addr) }
	return inside(b.CIDR) && !slices.ContainsFunc(b.Except, inside)
}

// portsMatch follows the API: "If this field is empty or missing, this rule matches all ports (traffic not restricted
// by port)." dst is the destination pod, or nil.
func portsMatch(ports []Port, dst *Pod, p Packet) bool {
	if len(ports) == 0 {
		return true
	}
	return slices.ContainsFunc(ports, func(port Port) bool { return portMatches(port, dst, p) })
}

func portMatches(port Port, dst *Pod, p Packet) bool {
	protocol := port.Protocol
	if protocol == "" {
		protocol = TCP
	}
	if p.Protocol != protocol {
		return false
	}
	switch {
	case port.Name != "":
		// A name is that of a port of the destination pod; other destinations have no named ports.
		return dst != nil && slices.Contains(dst.Ports, ContainerPort{Name: port.Name, Protocol: protocol, Number: p.Port})
	case port.Number == 0:
		return true // all ports of the protocol
	case port.EndPort != 0:
		return port.Number <= p.Port && p.Port <= port.EndPort
	}
	return p.Port == port.Number
}

// Matches reports whether the labels satisfy all requirements of the selector.
func (s Selector) Matches(labels map[string]string) bool {
	for key, value := range s.MatchLabels {
		if have, ok := labels[key]; !ok || have != value {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		if !r.matches(labels) {
			return false
		}
	}
	return true
}

func (r Requirement) matches(labels map[string]string) bool {
	value, ok := labels[r.Key]
	switch r.Operator {
	case In:
		return ok && slices.Contains(r.Values, value)
	case NotIn:
		return !ok || !slices.Contains(r.Values, value) // a missing label has none of the values
	case Exists:
		return ok
	case DoesNotExist:
		return !ok
	}
	return false // the API rejects other operators
}

// pod finds the pod with this address. Callers ensure that there is at most one.
func (c Cluster) pod(addr netip.Addr) *Pod {
	for i, pod := range c.Pods {
		if !pod.HostNetwork && !pod.Done && slices.Contains(pod.Addrs, addr) {
			return &c.Pods[i]
		}
	}
	return nil
}

func (c Cluster) isNode(node string, addr netip.Addr) bool {
	return slices.Contains(c.Nodes[node], addr)
}
