// Package policy implements Kubernetes NetworkPolicies (networking.k8s.io/v1) and ClusterNetworkPolicies
// (policy.networking.k8s.io/v1alpha2).
//
// Eval is the reference implementation: slow, and written to be compared with the API's documentation field by field.
// It returns the expected verdict for one packet. Weft's flows are tested against it, and the lab shows its verdict
// beside the observed result.
//
// Resolve resolves policies for one node (model.Policy): selectors become addresses, named ports numbers. It is the
// plain, full computation. Resolver has the same result and follows changes, each at the cost of what it changes. A
// Resolver belongs to the goroutine of its state.Store.
//
// The package has plain values and pure code: no locks, no goroutines.
package policy

import (
	"net/netip"

	"github.com/weft-cni/weft/pkg/model"
)

// Protocol is a transport protocol. Rules with ports do not apply to other protocols, such as ICMP.
type Protocol = model.Protocol

// The protocols of a policy's ports.
const (
	TCP  = model.TCP
	UDP  = model.UDP
	SCTP = model.SCTP
)

// Direction is the direction of a policy or rule.
type Direction = model.Direction

// The directions.
const (
	Ingress = model.Ingress
	Egress  = model.Egress
)

// Policy is a NetworkPolicy, or in the other tiers a ClusterNetworkPolicy.
type Policy struct {
	Tier model.Tier
	// Namespace is empty for a ClusterNetworkPolicy.
	Namespace, Name string
	// Priority orders the ClusterNetworkPolicies of a tier: those with a lower one come first, and of equal ones the
	// first by name.
	Priority int32
	// NamespaceSelector selects the namespaces of a ClusterNetworkPolicy's pods. The empty selector selects all.
	NamespaceSelector Selector
	// PodSelector selects pods of the policy's namespace, or of the namespaces. The empty selector selects all.
	PodSelector Selector
	// Types are the directions of a NetworkPolicy. Empty means Ingress, and also Egress if there are egress rules. A
	// ClusterNetworkPolicy has the directions of its rules.
	Types   []Direction
	Ingress []Rule
	Egress  []Rule
	// Log requests log records of a sample of the packets that the policy allows or denies.
	Log bool
	// Staged requests a dry run: the policy has no effect, and what it would do is counted and logged.
	Staged bool
	// Warning is what of its annotations is invalid, and so ignored.
	Warning string
	// Err is a parse error. Like every policy that Check rejects, the policy then fails closed; see FailClosed.
	Err string
}

// ID is the policy's identity.
func (policy Policy) ID() model.PolicyID {
	if policy.Tier.Ordered() {
		return model.ClusterNetworkPolicy(policy.Name)
	}
	return model.NetworkPolicy(policy.Namespace, policy.Name)
}

// Namespace holds the fields of a namespace that policies use.
type Namespace struct {
	Name   string
	Labels map[string]string
	// Log requests logging for all policies of the namespace.
	Log bool
}

// Rule decides about traffic that matches both lists. Those of NetworkPolicies accept.
type Rule struct {
	Verdict model.Verdict
	// Peers are the rule's from or to. Empty matches all peers.
	Peers []Peer
	// Ports are destination ports. Empty matches all ports and protocols.
	Ports []Port
	// Err is what cannot be understood of a ClusterNetworkPolicy's rule; see FailClosed.
	Err string
}

// Peer selects the other end of the traffic.
type Peer struct {
	// PodSelector selects pods, in the policy's namespace unless there is a NamespaceSelector.
	PodSelector *Selector
	// NamespaceSelector selects namespaces: all their pods, or those that PodSelector also selects.
	NamespaceSelector *Selector
	// IPBlock selects addresses; it cannot be combined with selectors.
	IPBlock *IPBlock
	// NodeSelector selects the addresses of nodes; it cannot be combined with the others.
	NodeSelector *Selector
	// Domain selects the addresses of a domain name, as learned; it cannot be combined with the others.
	Domain Domain
}

// IPBlock is a range of addresses with exceptions.
type IPBlock struct {
	CIDR   netip.Prefix
	Except []netip.Prefix
}

// Port is one entry of a rule's ports.
type Port struct {
	// Protocol is TCP when empty.
	Protocol Protocol
	// Number and Name are alternatives. Without either, all ports of the protocol match.
	Number uint16
	// Name is the name of a container port of the destination.
	Name string
	// EndPort makes it a range from Number to EndPort; 0 is a single port.
	EndPort uint16
}

// Selector is a LabelSelector: all requirements must match. The empty selector matches everything.
type Selector struct {
	MatchLabels      map[string]string
	MatchExpressions []Requirement
}

// Operator is the operator of a requirement.
type Operator string

// The operators.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// Requirement is one entry of matchExpressions.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string
}

// Pod holds the fields of a pod that policies use.
type Pod struct {
	Namespace, Name string
	// UID distinguishes a pod from an earlier one of the same name. It is the container runtime's UID, which for a
	// static pod differs from that of its mirror pod in the API.
	UID    string
	Node   string
	Labels map[string]string
	// Addrs are the addresses of the pod's status. For a pod of this node, its attachment counts instead.
	Addrs []netip.Addr
	Ports []ContainerPort
	// HostNetwork pods have their node's addresses. Policies do not apply to them and selectors do not select them,
	// because their traffic cannot be distinguished from the node's.
	HostNetwork bool
	// Done pods have a final phase: they have no address any more, even if their status lists one.
	Done bool
	// Terminating pods keep their addresses until they have ended, but another pod's claim takes precedence.
	Terminating bool
	// Created is in seconds since 1970. Of two pods with one address, the later one has it.
	Created int64
}

// ContainerPort is a named port of a container.
type ContainerPort struct {
	Name     string
	Protocol Protocol
	Number   uint16
}

// Node holds the fields of a node that policies use.
type Node struct {
	Name   string
	Labels map[string]string
	// Addrs are the addresses of its status, of every type.
	Addrs []netip.Addr
}

// Cluster is the input of Eval.
type Cluster struct {
	// Namespaces are the labels by namespace.
	Namespaces map[string]map[string]string
	// Nodes are the addresses by node, including those on its pod network.
	Nodes map[string][]netip.Addr
	// PeerNodes are the nodes that NodeSelectors select.
	PeerNodes []Node
	// Names are the addresses of domain names, as learned by the node where the packet is sent.
	Names    map[string]model.LearnedName
	Pods     []Pod
	Policies []Policy
}

// Packet is the first packet of a connection, or a reply.
type Packet struct {
	Src, Dst netip.Addr
	Protocol Protocol
	// Port is the destination port, after translation of a Service's address to an endpoint.
	Port uint16
	// Translated says that a Service has translated the destination. A pod's packet to its own address reaches the
	// network only so.
	Translated bool
	// Reply marks the packets of an allowed connection, in both directions.
	Reply bool
}
