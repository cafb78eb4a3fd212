package model

// Snapshot is everything a node knows at one moment. It is immutable: a newer one shares what did not change.
type Snapshot struct {
	// Revision grows with every change.
	Revision uint64
	// NodesRevision is the revision that last changed Self, Tunnel or Nodes.
	NodesRevision uint64
	// Self is the node that this is the view of.
	Self Node
	// Tunnel is the encapsulation that this node sends with.
	Tunnel TunnelType
	// KernelDatapath says that the switch forwards in the kernel, which has no word for a neighbour advertisement's flags.
	KernelDatapath bool
	// Nodes are the other nodes, by name.
	Nodes map[string]Node
	// Attachments are this node's pod interfaces.
	Attachments map[AttachmentKey]Attachment
}
