package model

import "net/netip"

// Policy is a NetworkPolicy resolved for this node: selectors are addresses and named ports are numbers. A Snapshot
// holds only policies that select pods of this node.
type Policy struct {
	Name string // namespace/name
	// Ingress and Egress are nil when the policy does not apply to that direction.
	Ingress, Egress *PolicySide
	// Log asks for log records of a sample of the packets that the policy allows or denies.
	Log bool
	// Err is the reason why the policy is invalid or over budget; empty otherwise. Its pods are then isolated in the
	// policy's directions, and no rule allows anything.
	Err string
	// OverBudget reports that Err is about this node's flow budget. Other nodes may have room.
	OverBudget bool
}

// Side is the policy's part for one direction; nil when the policy does not apply to that direction.
func (p Policy) Side(d Direction) *PolicySide {
	if d == Egress {
		return p.Egress
	}
	return p.Ingress
}

// productSlack is the number of flows by which the product of pods and ports may exceed their sum (see pkg/flows).
const productSlack = 16

// MostFlows is an upper bound of the policy's flows, before flows that it shares with other policies are merged.
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
	if p.Log { // every flow with a verdict has a copy that logs
		most *= 2
	}
	return most
}

// Direction is a direction of traffic, as seen from the pods that the policy selects.
type Direction string

// The directions, as in policyTypes.
const (
	Ingress Direction = "Ingress"
	Egress  Direction = "Egress"
)

// PolicySide is one direction of a policy.
type PolicySide struct {
	// Pods are the addresses of this node's pods that the policy isolates, sorted.
	Pods []netip.Addr
	// Rules each allow traffic; traffic that no rule allows is denied.
	Rules []PolicyRule
}

// PolicyRule allows packets that match in all three dimensions: pods, peers and ports.
type PolicyRule struct {
	// Index is the rule's position in the policy's list. A rule whose named ports stand for different numbers in
	// different pods becomes several with the same Index.
	Index int
	// ID is the rule's conjunction id: from 1, unique on the node, a function of the snapshot alone.
	ID uint32
	// Pods are the pods that the rule applies to: those of the side, or some of them where named ports differ.
	Pods []netip.Addr
	// Peers are the ranges of the other end, sorted, disjoint and of both families. AnyPeer allows every peer.
	Peers   []netip.Prefix
	AnyPeer bool
	// Ports are destination ports, sorted and disjoint. AnyPort allows every port and protocol.
	Ports   []PortMatch
	AnyPort bool
}

// mostFlows is the rule's part of Policy.MostFlows, for both families.
func (r PolicyRule) mostFlows() int {
	most := len(r.Pods)
	if !r.AnyPort {
		most = min(most*len(r.Ports), most+2*(len(r.Ports)+productSlack))
	}
	return most + len(r.Peers) + 4
}

// PortMatch is a protocol and the destination ports p with p&Mask == Port. Mask 0 is every port of the protocol.
type PortMatch struct {
	Protocol   Protocol
	Port, Mask uint16
}
