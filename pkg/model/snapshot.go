package model

import "net/netip"

// Snapshot is everything a node knows at one moment. It is immutable: a newer one shares what did not change.
type Snapshot struct {
	// Revision grows with every change.
	Revision uint64
	// NodesRevision is the revision that last changed Self, Tunnel, Nodes or Paths.
	NodesRevision uint64
	// PodsRevision is the revision that last changed Attachments.
	PodsRevision uint64
	// Self is the node that this is the view of.
	Self Node
	// SelfHeld says which values of Self are not those of its Node object now, and why; empty when all are.
	SelfHeld string
	// NewPodCIDRs are those of the Node object that wait until no attachment has an address of the old ones.
	NewPodCIDRs []netip.Prefix
	// Tunnel is the encapsulation that this node sends with.
	Tunnel TunnelType
	// KernelDatapath says that the switch forwards in the kernel, which has no word for a neighbour advertisement's flags.
	KernelDatapath bool
	// LocalAddrs are the node's other addresses, as its kernel has them, sorted. To policies they are the node, as those of
	// Self and the gateway's are. They are not addresses of pods, other nodes, or Services that this node serves.
	LocalAddrs []netip.Addr
	// Nodes are the other nodes, by name.
	Nodes map[string]Node
	// Paths are by node, this one included. They follow from Self, Nodes, ServiceCIDRs and ClusterCIDRs
	// (nodepath.Resolve).
	Paths map[string]Path
	// ClusterCIDRs are ranges that all pod CIDRs must be in; none means no limit.
	ClusterCIDRs []netip.Prefix
	// Attachments are this node's pod interfaces.
	Attachments map[AttachmentKey]Attachment
	// Unknown are those of them whose pod the API server has not told us of, or another of that name: which policies are about
	// it nobody can say, so it stays closed.
	Unknown map[AttachmentKey]bool
	// OutsideClaims are the pod addresses that policies ignore.
	OutsideClaims OutsideClaims
	// Services are those with an address, by namespace/name.
	Services map[string]Service
	// ServiceProblems say what of a Service or its EndpointSlices is invalid and left out, by namespace/name. The Service
	// may be in Services or not.
	ServiceProblems map[string]string
	// OtherProxies are the ClusterIPs of Services that another proxy serves, by namespace/name. What pods send there goes to
	// the node, where that proxy is.
	OtherProxies map[string][]netip.Addr
	// Policies are those that select pods of this node, by namespace/name.
	Policies map[string]Policy
	// ServicesRevision is the revision that last changed Services, OtherProxies or ServiceCIDRs.
	ServicesRevision uint64
	// ServiceCIDRs are the ranges of ClusterIPs, as far as the API server and the configuration tell them.
	ServiceCIDRs []netip.Prefix
	// KeepEstablished leaves connections alone that were allowed when they began.
	KeepEstablished bool
}

// OutsideClaims counts the pods with addresses outside the pod CIDRs of their nodes.
type OutsideClaims struct {
	Pods    int
	Example string // one of them with its node and addresses
}

// SelfPath is this node's own entry in Paths.
func (s *Snapshot) SelfPath() Path { return s.Paths[s.Self.Name] }
