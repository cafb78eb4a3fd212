package model

import "net/netip"

// Snapshot is the desired state of one node at one revision. It is immutable; a newer Snapshot shares the unchanged
// parts.
type Snapshot struct {
	// Revision grows with every change.
	Revision uint64
	// NodesRevision is the revision that last changed Self, Transport, ReceiveGrace, IPIPGrace, WireGuardGrace, Routed,
	// Handshakes, Nodes or Paths.
	NodesRevision uint64
	// PodsRevision is the revision that last changed Attachments.
	PodsRevision uint64
	// Self is the node that the snapshot is for.
	Self Node
	// SelfHeld names the values of Self that differ from its Node object, and the reason; empty when none differ.
	SelfHeld string
	// NewPodCIDRs are pod CIDRs of the Node object that take effect once no attachment has an address of the old ones.
	NewPodCIDRs []netip.Prefix
	// Transport is the configured transport to peer nodes; each path has the one that it uses.
	Transport Transport
	// ReceiveGrace: packets without a tunnel are accepted although nothing asks for it any more, because peer nodes may
	// not know yet. IPIPGrace and WireGuardGrace say the same of packets in IPIP and of encrypted ones.
	ReceiveGrace, IPIPGrace, WireGuardGrace bool
	// Routed are the pod CIDRs of peer nodes that the node's kernel does not lead to the switch, sorted.
	Routed []netip.Prefix
	// Handshakes are the keys of peer nodes that WireGuard has shaken hands with, sorted.
	Handshakes []WireGuardKey
	// KernelDatapath selects OVS' kernel datapath, which cannot set the flags of a neighbor advertisement.
	KernelDatapath bool
	// LocalAddrs are the host's other addresses, as its kernel reports them, sorted. Policies treat them as the node,
	// as they do the addresses of Self and the gateway. Addresses of pods, of other nodes and of Services that this
	// node serves are not among them.
	LocalAddrs []netip.Addr
	// Nodes are the other nodes, by name.
	Nodes map[string]Node
	// Paths are by node, this one included. nodepath.Resolve makes them from Self, Nodes, Transport, ReceiveGrace,
	// IPIPGrace, WireGuardGrace, Routed, Handshakes, ServiceCIDRs, ClusterCIDRs and, without ClusterCIDRs, Services.
	Paths map[string]Path
	// ClusterCIDRs are ranges that every pod CIDR must be in; empty sets no limit.
	ClusterCIDRs []netip.Prefix
	// Attachments are this node's pod interfaces.
	Attachments map[AttachmentKey]Attachment
	// Unknown are the attachments whose pod the API server has not reported, or has reported with another UID. Their
	// policies are unknown, so they stay at default deny.
	Unknown map[AttachmentKey]bool
	// OutsideClaims counts the pod addresses that policies ignore.
	OutsideClaims OutsideClaims
	// Services are the Services with an address, by namespace/name.
	Services map[string]Service
	// ServiceProblems say what of a Service or its EndpointSlices is invalid and left out, by namespace/name. The Service
	// may be in Services or not.
	ServiceProblems map[string]string
	// OtherProxies are the ClusterIPs of Services that another proxy serves, by namespace/name. Pods' packets to them
	// go to the host, where that proxy runs.
	OtherProxies map[string][]netip.Addr
	// Policies are the policies that select pods of this node.
	Policies map[PolicyID]Policy
	// Staging is AnyStaged of the policies.
	Staging bool
	// ServicesRevision is the revision that last changed Services, OtherProxies or ServiceCIDRs.
	ServicesRevision uint64
	// ServiceCIDRs are the ranges of ClusterIPs that the API server and the configuration name.
	ServiceCIDRs []netip.Prefix
	// Names are the domain names of which addresses were learned.
	Names map[string]LearnedName
	// DNSServers are those that answers about domain names are learned from.
	DNSServers DNSServers
	// KeepEstablished lets connections that a policy once allowed continue when it denies them now.
	KeepEstablished bool
}

// OutsideClaims counts the pods with addresses outside their nodes' pod CIDRs.
type OutsideClaims struct {
	Pods    int
	Example string // one of them, with its node and addresses
}

// SelfPath is this node's own entry in Paths.
func (s *Snapshot) SelfPath() Path { return s.Paths[s.Self.Name] }

// PolicyOf is the policy that owns an owner's flows, staged or enforced; false if there is none.
func (s *Snapshot) PolicyOf(o Owner) (Policy, bool) {
	p, exists := s.Policies[o.Policy()]
	if !exists || p.Owner() != o {
		return Policy{}, false
	}
	return p, true
}
