// Package state is the node's view of the cluster as it changes: a store that takes model changes one at a time and
// gives immutable snapshots, each with the owners that it touched since the one before.
//
// A Store belongs to one goroutine, the agent's loop, which is the single writer of desired state. Informers, CNI
// requests and the configuration reach it as Change values through the loop's queue.
package state

import (
	"maps"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// Store holds the newest snapshot.
type Store struct {
	snapshot *model.Snapshot
	touched  map[model.Owner]bool
}

// New gives the store of the named node that knows nothing else.
func New(node string) *Store {
	return &Store{
		snapshot: &model.Snapshot{
			Self:        model.Node{Name: node},
			Tunnel:      model.Geneve,
			Nodes:       map[string]model.Node{},
			Attachments: map[model.AttachmentKey]model.Attachment{},
		},
		touched: map[model.Owner]bool{model.PipelineOwner: true, model.SelfOwner: true},
	}
}

// Change is one change of what the node knows.
type Change interface {
	// apply changes next, marks what it touches, and says whether anything changed.
	apply(s *Store, next *model.Snapshot) bool
}

// Apply makes a change. A change that says what is known already touches nothing and makes no new revision.
func (s *Store) Apply(c Change) {
	next := *s.snapshot
	if c.apply(s, &next) {
		next.Revision++
		switch c.(type) {
		case SetNode, DeleteNode, SetTunnel:
			next.NodesRevision = next.Revision
		}
		s.snapshot = &next
	}
}

// Snapshot is the newest view.
func (s *Store) Snapshot() *model.Snapshot { return s.snapshot }

// Take gives the newest view and the owners that were touched since the last Take, in order.
func (s *Store) Take() (*model.Snapshot, []model.Owner) {
	owners := slices.SortedFunc(maps.Keys(s.touched), model.Owner.Compare)
	clear(s.touched)
	return s.snapshot, owners
}

// SetNode says what a node is now: this one or another.
type SetNode struct{ Node model.Node }

func (c SetNode) apply(s *Store, next *model.Snapshot) bool {
	if c.Node.Name == next.Self.Name {
		if equalNodes(c.Node, next.Self) {
			return false
		}
		// Whether, and how, another node can be reached depends on our own addresses.
		if !slices.Equal(c.Node.Addrs, next.Self.Addrs) {
			s.touchNodes(next)
		}
		next.Self = c.Node
		s.touched[model.SelfOwner] = true
		return true
	}
	if old, ok := next.Nodes[c.Node.Name]; ok && equalNodes(old, c.Node) {
		return false
	}
	next.Nodes = maps.Clone(next.Nodes)
	next.Nodes[c.Node.Name] = c.Node
	s.touched[model.NodeOwner(c.Node.Name)] = true
	return true
}

// DeleteNode says that a node is gone. This node's own object may be deleted and made again while its pods run: its
// pods keep what they have.
type DeleteNode struct{ Name string }

func (c DeleteNode) apply(s *Store, next *model.Snapshot) bool {
	if _, ok := next.Nodes[c.Name]; !ok {
		return false
	}
	next.Nodes = maps.Clone(next.Nodes)
	delete(next.Nodes, c.Name)
	s.touched[model.NodeOwner(c.Name)] = true
	return true
}

// SetTunnel says which encapsulation the node sends with.
type SetTunnel struct{ Type model.TunnelType }

func (c SetTunnel) apply(s *Store, next *model.Snapshot) bool {
	if next.Tunnel == c.Type {
		return false
	}
	next.Tunnel = c.Type
	s.touchNodes(next)
	return true
}

// SetAttachment says that a pod interface exists.
type SetAttachment struct{ Attachment model.Attachment }

func (c SetAttachment) apply(s *Store, next *model.Snapshot) bool {
	key := c.Attachment.Key()
	if old, ok := next.Attachments[key]; ok {
		if equalAttachments(old, c.Attachment) {
			return false
		}
		s.touched[model.PodOwner(old)] = true
	}
	next.Attachments = maps.Clone(next.Attachments)
	next.Attachments[key] = c.Attachment
	s.touched[model.PodOwner(c.Attachment)] = true
	return true
}

// DeleteAttachment says that a pod interface is gone.
type DeleteAttachment struct{ Key model.AttachmentKey }

func (c DeleteAttachment) apply(s *Store, next *model.Snapshot) bool {
	old, ok := next.Attachments[c.Key]
	if !ok {
		return false
	}
	next.Attachments = maps.Clone(next.Attachments)
	delete(next.Attachments, c.Key)
	s.touched[model.PodOwner(old)] = true
	return true
}

func (s *Store) touchNodes(next *model.Snapshot) {
	for name := range next.Nodes {
		s.touched[model.NodeOwner(name)] = true
	}
}

func equalNodes(a, b model.Node) bool {
	return a.Name == b.Name && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.PodCIDRs, b.PodCIDRs)
}

func equalAttachments(a, b model.Attachment) bool {
	return a.Key() == b.Key() && a.Pod == b.Pod && a.HostIfName == b.HostIfName && a.OFPort == b.OFPort && a.MAC == b.MAC && slices.Equal(a.IPs, b.IPs)
}
