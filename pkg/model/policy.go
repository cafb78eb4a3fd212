package model

import (
	"cmp"
	"net/netip"
)

// Tier is a group of policies. Tiers are evaluated one after the other; see Tiers.
type Tier uint8

// The tiers.
const (
	// NetworkPolicyTier has the NetworkPolicies of namespaces. They are a union without an order, and deny what none of
	// them accepts of the pods that they select.
	NetworkPolicyTier Tier = iota
	// AdminTier has ClusterNetworkPolicies that NetworkPolicies cannot override.
	AdminTier
	// BaselineTier has ClusterNetworkPolicies for pods that no NetworkPolicy selects.
	BaselineTier
)

// Tiers are all tiers in the order of their evaluation. What no tier decides is accepted.
var Tiers = []Tier{AdminTier, NetworkPolicyTier, BaselineTier}

func (t Tier) String() string {
	switch t {
	case AdminTier:
		return "Admin"
	case BaselineTier:
		return "Baseline"
	}
	return "NetworkPolicy"
}

// Ordered says whether the first rule of the tier that matches decides. Otherwise the tier's rules are a union, and a
// pod that a policy of the tier selects is isolated: what no rule accepts is denied.
func (t Tier) Ordered() bool { return t != NetworkPolicyTier }

// Verdict is what a rule decides about the packets that match it, for its direction.
type Verdict uint8

// The verdicts.
const (
	// Accept ends the evaluation of the direction.
	Accept Verdict = iota
	// Deny drops.
	Deny
	// Pass leaves the decision to the next tier.
	Pass
)

func (v Verdict) String() string {
	switch v {
	case Deny:
		return "Deny"
	case Pass:
		return "Pass"
	}
	return "Accept"
}

// PolicyID is the identity of a policy.
type PolicyID struct {
	// Kind is KindPolicy or KindClusterPolicy.
	Kind Kind
	// Namespace is empty for policies of the cluster.
	Namespace, Name string
}

// NetworkPolicy is the identity of a NetworkPolicy.
func NetworkPolicy(namespace, name string) PolicyID { return PolicyID{KindPolicy, namespace, name} }

// ClusterNetworkPolicy is the identity of a ClusterNetworkPolicy.
func ClusterNetworkPolicy(name string) PolicyID { return PolicyID{Kind: KindClusterPolicy, Name: name} }

// String is namespace/name, or the name alone: as kubectl shows it, and unique among policies.
func (id PolicyID) String() string {
	if id.Namespace == "" {
		return id.Name
	}
	return id.Namespace + "/" + id.Name
}

// Compare orders by kind, namespace and name.
func (id PolicyID) Compare(other PolicyID) int {
	return cmp.Or(cmp.Compare(id.Kind, other.Kind), cmp.Compare(id.Namespace, other.Namespace),
		cmp.Compare(id.Name, other.Name))
}

// Owner is the owner of the policy's flows while it is enforced.
func (id PolicyID) Owner() Owner { return Owner{Kind: id.Kind, Namespace: id.Namespace, Name: id.Name} }

// Policy is a policy resolved for this node: selectors are addresses and named ports are numbers. A Snapshot holds only
// policies that select pods of this node.
type Policy struct {
	ID   PolicyID
	Tier Tier
	// Rank is the place of the policy's rules in the order of its tier: the rule with Index i has the place Rank+i, the
	// lowest one decides. Two policies have no place in common, but those without rules of their own (see Err). It is 0
	// in a tier without an order.
	Rank int
	// Ingress and Egress are nil when the policy does not apply to that direction.
	Ingress, Egress *PolicySide
	// Log asks for log records of a sample of the packets that the policy allows or denies.
	Log bool
	// Domains are the domain names that are peers of the policy's rules, sorted; "*.example.com" is every name below.
	// Addresses that are known of them are among the rules' Peers. Answers of DNS servers to the pods of Egress are held
	// until what they say is in the switch.
	Domains []string
	// Staged policies have no effect: their flows are in the preview, where they count and log what they would decide.
	Staged bool
	// Warning is what of the policy's annotations is invalid, and so ignored; empty otherwise.
	Warning string
	// Err is the reason why the policy, or a rule of it, is invalid or over budget; empty otherwise. The rules are then
	// those that fail closed: a NetworkPolicy accepts nothing, and of a ClusterNetworkPolicy the rules at fault accept
	// nothing, and deny everything if they are to deny or to pass.
	Err string
	// OverBudget reports that Err is about this node's flow budget. Other nodes may have room.
	OverBudget bool
}

// Owner is the owner of the policy's flows.
func (p Policy) Owner() Owner {
	o := p.ID.Owner()
	if p.Staged {
		o.Kind = stagedKinds[o.Kind]
	}
	return o
}

// AnyStaged says whether one of the policies is staged.
func AnyStaged(policies map[PolicyID]Policy) bool {
	for _, p := range policies {
		if p.Staged {
			return true
		}
	}
	return false
}

// AnyDomains says whether one of the policies has domain names as peers.
func AnyDomains(policies map[PolicyID]Policy) bool {
	for _, p := range policies {
		if len(p.Domains) > 0 {
			return true
		}
	}
	return false
}

// RulePlaces is how many rules a tier with an order has room for on a node.
const RulePlaces = 64_900

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
		most += len(side.Pods) // for the default of NetworkPolicies, or for FailClosed
		for _, r := range side.Rules {
			most += r.mostFlows()
		}
	}
	if len(p.Domains) > 0 && p.Egress != nil {
		most += 2 * len(p.Egress.Pods) // for the pods' queries and answers
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
	// Pods are the addresses of this node's pods that the policy selects, sorted.
	Pods []netip.Addr
	// Rules are in the order of their Index.
	Rules []PolicyRule
}

// FailClosed is what remains of the rules when they cannot be programmed: nothing of those that accept. If others deny
// or pass, one that denies everything takes the place of the first of them.
func (s *PolicySide) FailClosed() []PolicyRule {
	for _, r := range s.Rules {
		if r.Verdict != Accept {
			return []PolicyRule{{Index: r.Index, Verdict: Deny, Pods: s.Pods, AnyPeer: true, AnyPort: true}}
		}
	}
	return nil
}

// FailClosed is the policy as it is in effect while its flows are quarantined.
func (p Policy) FailClosed() Policy {
	for _, side := range []**PolicySide{&p.Ingress, &p.Egress} {
		if *side != nil {
			*side = &PolicySide{Pods: (*side).Pods, Rules: (*side).FailClosed()}
		}
	}
	return p
}

// PolicyRule decides about packets that match in all three dimensions: pods, peers and ports.
type PolicyRule struct {
	Verdict Verdict
	// Index is the rule's position in the policy's list. A rule whose named ports stand for different numbers in
	// different pods becomes several with the same Index.
	Index int
	// ID is the rule's conjunction id: from 1, unique on the node, a function of the snapshot alone.
	ID uint32
	// Pods are the pods that the rule applies to: those of the side, or some of them where named ports differ.
	Pods []netip.Addr
	// Peers are the ranges of the other end, sorted, disjoint and of both families. AnyPeer matches every peer.
	Peers   []netip.Prefix
	AnyPeer bool
	// Ended are further peers, of which only established connections match: addresses of a domain name whose TTL is
	// over. They are sorted, and in none of Peers.
	Ended []netip.Prefix
	// Ports are destination ports, sorted and disjoint. AnyPort matches every port and protocol.
	Ports   []PortMatch
	AnyPort bool
}

// mostFlows is the rule's part of Policy.MostFlows, for both families.
func (r PolicyRule) mostFlows() int {
	most := len(r.Pods)
	if !r.AnyPort {
		most = min(most*len(r.Ports), most+2*(len(r.Ports)+productSlack))
	}
	return most + len(r.Peers) + len(r.Ended) + 4
}

// PortMatch is a protocol and the destination ports p with p&Mask == Port. Mask 0 is every port of the protocol.
type PortMatch struct {
	Protocol   Protocol
	Port, Mask uint16
}
