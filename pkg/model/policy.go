package model

import "net/netip"

// Policy is a NetworkPolicy as it concerns the pods of this node: selectors are resolved to addresses and named ports to
// numbers. A policy that selects none of this node's pods is not in a Snapshot.
type Policy struct {
	Name string // namespace/name
	// Ingress and Egress are nil when the policy is not about that direction.
	Ingress, Egress *PolicySide
	// Log asks for a sample of the packets that the policy decides about to be logged.
	Log bool
	// Err says why the policy cannot be compiled: then its pods are isolated in the directions that it is about and none of
	// its rules allows anything.
	Err string
	// OverBudget says that Err is about the room on this node. Other nodes may have enough.
	OverBudget bool
}

// Side is the policy's part about a direction; nil when the policy is not about it.
func (p Policy) Side(d Direction) *PolicySide {
	if d == Egress {
		return p.Egress
	}
	return p.Ingress
}

// productSlack is how many more flows than the sum of pods and ports their product may take (see pkg/flows).
const productSlack = 16

// MostFlows is an upper bound of the flows that the policy takes, before those that it shares with others are merged.
func (p Policy) MostFlows() int {
	most := 0
	for _, side := range []*PolicySide{p.Ingress, p.Egress} {
		if side == nil {
			continue
		}
		most += len(side.Pods)
		for _, r := range side.Rules {
			most += r.mostFlows()
		}
	}
	if p.Log { // each flow that decides has a copy that logs
		most *= 2
	}
	return most
}

// Direction is what a policy or a rule is about, as seen from the pods that the policy selects.
type Direction string

// The directions, in the words of policyTypes.
const (
	Ingress Direction = "Ingress"
	Egress  Direction = "Egress"
)

// PolicySide is one direction of a policy.
type PolicySide struct {
	// Pods are the addresses of this node's pods that are isolated, sorted.
	Pods []netip.Addr
	// Rules allow.
	Rules []PolicyRule
}

// PolicyRule allows what is in all three of its dimensions.
type PolicyRule struct {
	// Index is the rule's place in the policy's list. A rule whose named ports mean different numbers for different pods
	// becomes several with one Index.
	Index int
	// ID is the rule's conjunction id: unique on the node, from 1, a function of the snapshot alone.
	ID uint32
	// Pods are the side's pods that the rule is about; a subset of PolicySide.Pods where named ports differ.
	Pods []netip.Addr
	// Peers are the ranges at the other end, sorted, disjoint and of both families. AnyPeer allows every peer.
	Peers   []netip.Prefix
	AnyPeer bool
	// Ports are destination ports, sorted and disjoint. AnyPort allows every port and protocol.
	Ports   []PortMatch
	AnyPort bool
}

// mostFlows counts both families.
func (r PolicyRule) mostFlows() int {
	most := len(r.Pods)
	if !r.AnyPort {
		most = min(most*len(r.Ports), most+2*(len(r.Ports)+productSlack))
	}
	return most + len(r.Peers) + 4
}

// PortMatch is a protocol and the destination ports p with p&Mask == Port; Mask 0 is every port of the protocol.
type PortMatch struct {
	Protocol   Protocol
	Port, Mask uint16
}
