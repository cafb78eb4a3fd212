// Package policy is about Kubernetes NetworkPolicies (networking.k8s.io/v1).
//
// Eval is the reference: slow, and written to be read beside the API's documentation, field by field. It says what the
// policies promise about one packet. What Weft programs is tested against it, and the lab shows it beside what real packets
// did.
//
// Resolve turns policies into what one node has to enforce (model.Policy): selectors become addresses, named ports numbers.
// It is the full computation, and plain. Resolver holds the same result and follows changes, each at the cost of what it
// changes. A Resolver belongs to one goroutine, that of the state.Store that owns it.
//
// Everything here is plain values and code without effects; nothing is locked or started.
package policy

import (
	"net/netip"

	"github.com/weft-cni/weft/pkg/model"
)

// Protocol is a transport protocol. ICMP and others have none of these; rules with ports do not speak about them.
type Protocol = model.Protocol

// The protocols that a policy's ports can name.
const (
	TCP  = model.TCP
	UDP  = model.UDP
	SCTP = model.SCTP
)

// Direction is what a policy or a rule is about.
type Direction = model.Direction

// The directions.
const (
	Ingress = model.Ingress
	Egress  = model.Egress
)

// Policy is a NetworkPolicy.
type Policy struct {
	Namespace, Name string
	// PodSelector selects the pods of the policy's namespace that it is about. The empty one selects all.
	PodSelector Selector
	// Types are the directions that it is about. When empty it is Ingress, and Egress too if there are egress rules.
	Types   []Direction
	Ingress []Rule
	Egress  []Rule
	// Log asks for a sample of the packets that the policy decides about to be logged.
	Log bool
	// Err says what could not be read of the policy. Like every policy that Check refuses it isolates and allows nothing.
	Err string
}

// ID is the policy's name among all: namespace/name.
func (policy Policy) ID() string { return policy.Namespace + "/" + policy.Name }

// Namespace is a namespace as policies see it.
type Namespace struct {
	Name   string
	Labels map[string]string
	// Log asks for logging by all policies of the namespace.
	Log bool
}

// Rule allows traffic that matches both lists.
type Rule struct {
	// Peers are the rule's from or to. Missing or empty: everybody.
	Peers []Peer
	// Ports are destination ports. Missing or empty: all, of every protocol.
	Ports []Port
}

// Peer is who may be at the other end.
type Peer struct {
	// PodSelector selects pods, in the policy's namespace unless there is a NamespaceSelector.
	PodSelector *Selector
	// NamespaceSelector selects namespaces: all their pods, or those that PodSelector selects too.
	NamespaceSelector *Selector
	// IPBlock selects addresses; it stands alone.
	IPBlock *IPBlock
}

// IPBlock is a range of addresses without some of its parts.
type IPBlock struct {
	CIDR   netip.Prefix
	Except []netip.Prefix
}

// Port is one entry of a rule's ports.
type Port struct {
	// Protocol is TCP when empty.
	Protocol Protocol
	// Number and Name are the port, one or the other. Neither: all ports of the protocol.
	Number uint16
	// Name is that of a container port of the destination.
	Name string
	// EndPort makes it the range from Number to here; 0 when it is a single port.
	EndPort uint16
}

// Selector is a LabelSelector: everything in it must match. The empty one matches everything.
type Selector struct {
	MatchLabels      map[string]string
	MatchExpressions []Requirement
}

// Operator relates a label's value to a requirement's values.
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

// Pod is a pod as policies see it.
type Pod struct {
	Namespace, Name string
	// UID tells a pod from an earlier one of its name. It is the one that the container runtime knows, which for a static pod
	// is not that of its mirror in the API.
	UID    string
	Node   string
	Labels map[string]string
	// Addrs are those in the pod's status. Of a pod of our own node it is its attachment that counts.
	Addrs []netip.Addr
	Ports []ContainerPort
	// HostNetwork pods have their node's addresses. No policy is about them, and to a selector they do not exist: what they
	// send cannot be told from what the node sends.
	HostNetwork bool
	// Done pods have ended for good: they have no address any more, whatever their status says.
	Done bool
	// Terminating pods have been told to end, and have their address until they have. But another pod's claim goes first.
	Terminating bool
	// Created is in seconds since 1970. Of two pods with one address the later has it.
	Created int64
}

// ContainerPort is a port that has a name.
type ContainerPort struct {
	Name     string
	Protocol Protocol
	Number   uint16
}

// Cluster is everything that policies look at.
type Cluster struct {
	// Namespaces are the labels of each.
	Namespaces map[string]map[string]string
	// Nodes are the addresses of each, those that it has among its pods included.
	Nodes    map[string][]netip.Addr
	Pods     []Pod
	Policies []Policy
}

// Packet is the first packet of a connection, or a reply.
type Packet struct {
	Src, Dst netip.Addr
	Protocol Protocol
	// Port is the destination port, after any Service's address was exchanged for that of an endpoint.
	Port uint16
	// Reply marks packets of a connection whose first packet was allowed, in both directions.
	Reply bool
}
