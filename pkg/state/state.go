// Package state is the node's view of the cluster as it changes: a store that takes model changes one at a time and
// gives immutable snapshots, each with the owners whose objects have changed since the one before. What else must be
// compiled because of a change follows from what the compiler reads (flows.Compiler.Dirty).
//
// A Store belongs to one goroutine, the agent's loop, which is the single writer of desired state. Informers, CNI
// requests and the configuration reach it as Change values through the loop's queue.
package state

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/service"
)

// Store holds the newest snapshot, and the next one while it is being made.
type Store struct {
	snapshot *model.Snapshot
	next     model.Snapshot
	// own… say that next has maps of its own, which no snapshot shares: many changes between two snapshots cost one copy
	// of a map, not many.
	ownNodes, ownAttachments, ownServices, ownProblems, ownPolicies, ownNames bool
	changed                                                                   map[model.Owner]bool // owners
	// resolver holds pods, namespaces and policies; what follows from them for this node is in the snapshot.
	resolver     *policy.Resolver
	services     *service.Resolver // joins Services with their EndpointSlices
	claims       *service.Claims   // who has which external address
	budget       serviceBudget
	serviceCIDRs map[bool][]netip.Prefix // by whether they are configured
	localAddrs   []netip.Addr            // as SetLocalAddrs said last
	differs      parts
	localsDirty  bool // LocalAddrs must be resolved again
	pathsDirty   bool // paths must be resolved again
	announced    announced
	copied       *copied        // nil unless the store works from a copy
	usable       model.Node     // the last addresses and pod CIDRs of this node that could be used
	recalled     []netip.Prefix // as Recall said last
	now          time.Time      // as SetTime said last
	respread     int            // what is left of respreadBudget; below 0 when a Service was larger
}

// New gives the store of the named node that knows nothing else.
func New(node string) *Store {
	empty := model.Snapshot{
		Self:        model.Node{Name: node},
		Transport:   model.Tunnel(model.Geneve),
		Nodes:       map[string]model.Node{},
		Attachments: map[model.AttachmentKey]model.Attachment{},
		Services:    map[string]model.Service{},
		Policies:    map[model.PolicyID]model.Policy{},
		Unknown:     map[model.AttachmentKey]bool{},

		Names:           map[string]model.LearnedName{},
		OtherProxies:    map[string][]netip.Addr{},
		ServiceProblems: map[string]string{},
	}
	empty.Paths = nodepath.Resolve(&empty)
	return &Store{
		snapshot:     &empty,
		serviceCIDRs: map[bool][]netip.Prefix{},
		next:         empty,
		resolver:     policy.NewResolver(node),
		services:     service.NewResolver(node),
		claims:       service.NewClaims(),
		budget:       newServiceBudget(),
		changed:      map[model.Owner]bool{},
	}
}

// Change is one change of what the node knows.
type Change interface {
	// apply changes s.next, marks the owner whose object it is, and says whether anything changed.
	apply(s *Store) bool
}

// Apply makes a change. A change that says what is known already marks nothing and makes no new revision.
func (s *Store) Apply(c Change) {
	if s.copied != nil && s.toLive(c) {
		return
	}
	if !c.apply(s) {
		return
	}
	s.next.Revision++
}

// Snapshot is the view of the last Take.
func (s *Store) Snapshot() *model.Snapshot { return s.snapshot }

// Take returns the newest snapshot and the owners whose objects have changed since the last Take, in order.
func (s *Store) Take() (*model.Snapshot, []model.Owner) {
	s.resolveServices() // whose addresses at load balancers decide about pod CIDRs
	s.resolvePaths()
	s.resolveLocals()
	s.resolvePolicies()
	s.budgetServices()
	s.countParts()
	if s.next.Revision != s.snapshot.Revision {
		snapshot := s.next
		s.snapshot = &snapshot
		s.ownNodes, s.ownAttachments, s.ownServices, s.ownProblems, s.ownPolicies = false, false, false, false, false
		s.ownNames = false
	}
	owners := slices.SortedFunc(maps.Keys(s.changed), model.Owner.Compare)
	clear(s.changed)
	return s.snapshot, owners
}

// parts says which parts of the next snapshot differ from the last one.
type parts struct{ nodes, attachments, services bool }

// countParts gives the parts that differ the next snapshot's revision.
func (s *Store) countParts() {
	if s.differs.nodes {
		s.next.NodesRevision = s.next.Revision
	}
	if s.differs.attachments {
		s.next.PodsRevision = s.next.Revision
	}
	if s.differs.services {
		s.next.ServicesRevision = s.next.Revision
	}
	s.differs = parts{}
}

// SetNode says what a node is now: this one or another.
type SetNode struct{ Node model.Node }

func (c SetNode) apply(s *Store) bool {
	if c.Node.Name == s.next.Self.Name {
		if s.announced.known && c.Node.Equal(s.announced.Node) {
			return false
		}
		s.announced, s.pathsDirty = announced{c.Node, true}, true
		return false // Take finds out what comes of it
	}
	if old, ok := s.next.Nodes[c.Node.Name]; ok && old.Equal(c.Node) {
		return false
	}
	s.nodes()[c.Node.Name], s.pathsDirty = c.Node, true
	return true
}

// DeleteNode says that a node is gone. This node's own object may be deleted and recreated while its pods run: its
// values hold (see resolveSelf).
type DeleteNode struct{ Name string }

func (c DeleteNode) apply(s *Store) bool {
	s.resolver.DeleteNode(c.Name)
	if c.Name == s.next.Self.Name && s.announced.known {
		s.announced, s.pathsDirty = announced{}, true
		return false // Take finds out what comes of it
	}
	if _, ok := s.next.Nodes[c.Name]; !ok {
		return false
	}
	delete(s.nodes(), c.Name)
	s.pathsDirty = true
	return true
}

// SetTransport sets the transport to peer nodes, from which the paths follow.
type SetTransport struct{ Transport model.Transport }

func (c SetTransport) apply(s *Store) bool {
	if s.next.Transport == c.Transport {
		return false
	}
	s.next.Transport, s.differs.nodes, s.pathsDirty = c.Transport, true, true
	return true
}

// SetReceiveGrace says whether packets without a tunnel, in IPIP, and encrypted ones are accepted although nothing asks
// for it any more.
type SetReceiveGrace struct{ Direct, IPIP, WireGuard bool }

func (c SetReceiveGrace) apply(s *Store) bool {
	if c == (SetReceiveGrace{s.next.ReceiveGrace, s.next.IPIPGrace, s.next.WireGuardGrace}) {
		return false
	}
	s.next.ReceiveGrace, s.next.IPIPGrace, s.next.WireGuardGrace = c.Direct, c.IPIP, c.WireGuard
	s.differs.nodes, s.pathsDirty = true, true
	return true
}

// SetRouted says which pod CIDRs of peer nodes the kernel does not lead to the switch; they are sorted.
type SetRouted struct{ CIDRs []netip.Prefix }

func (c SetRouted) apply(s *Store) bool {
	if slices.Equal(s.next.Routed, c.CIDRs) {
		return false
	}
	s.next.Routed, s.differs.nodes, s.pathsDirty = c.CIDRs, true, true
	return true
}

// SetHandshakes says which peer nodes' keys WireGuard has shaken hands with; they are sorted.
type SetHandshakes struct{ Keys []model.WireGuardKey }

func (c SetHandshakes) apply(s *Store) bool {
	if slices.Equal(s.next.Handshakes, c.Keys) {
		return false
	}
	s.next.Handshakes, s.differs.nodes, s.pathsDirty = c.Keys, true, true
	return true
}

// SetKernelDatapath says whether the switch forwards in the kernel.
type SetKernelDatapath struct{ Kernel bool }

func (c SetKernelDatapath) apply(s *Store) bool {
	if s.next.KernelDatapath == c.Kernel {
		return false
	}
	s.next.KernelDatapath, s.pathsDirty = c.Kernel, true // that one has no GRE over IPv6
	return true
}

// SetKeepEstablished says whether connections that were allowed when they began stay allowed.
type SetKeepEstablished struct{ Keep bool }

func (c SetKeepEstablished) apply(s *Store) bool {
	if s.next.KeepEstablished == c.Keep {
		return false
	}
	s.next.KeepEstablished = c.Keep
	return true
}

// SetAttachment says that a pod interface exists.
type SetAttachment struct{ Attachment model.Attachment }

func (c SetAttachment) apply(s *Store) bool {
	key := c.Attachment.Key()
	if old, ok := s.next.Attachments[key]; ok {
		if equalAttachments(old, c.Attachment) {
			return false
		}
		s.changed[model.PodOwner(old)] = true
		s.localsChanged(old.IPs)
	}
	s.localsChanged(c.Attachment.IPs)
	s.attachments()[key] = c.Attachment
	s.pathsDirty = s.pathsDirty || s.selfWaits()
	s.resolver.SetAttachment(c.Attachment)
	s.changed[model.PodOwner(c.Attachment)] = true
	return true
}

// DeleteAttachment says that a pod interface is gone.
type DeleteAttachment struct{ Key model.AttachmentKey }

func (c DeleteAttachment) apply(s *Store) bool {
	old, ok := s.next.Attachments[c.Key]
	if !ok {
		return false
	}
	delete(s.attachments(), c.Key)
	s.pathsDirty = s.pathsDirty || s.selfWaits()
	s.resolver.DeleteAttachment(c.Key)
	s.localsChanged(old.IPs)
	s.changed[model.PodOwner(old)] = true
	return true
}

// nodes is the map of nodes to write to.
func (s *Store) nodes() map[string]model.Node {
	s.differs.nodes = true
	if !s.ownNodes {
		s.next.Nodes, s.ownNodes = maps.Clone(s.next.Nodes), true
	}
	return s.next.Nodes
}

// attachments is the map of attachments to write to.
func (s *Store) attachments() map[model.AttachmentKey]model.Attachment {
	s.differs.attachments = true
	if !s.ownAttachments {
		s.next.Attachments, s.ownAttachments = maps.Clone(s.next.Attachments), true
	}
	return s.next.Attachments
}

func equalAttachments(a, b model.Attachment) bool {
	return a.Key() == b.Key() && a.Pod == b.Pod && a.HostIfName == b.HostIfName && a.OFPort == b.OFPort &&
		a.MAC == b.MAC && slices.Equal(a.IPs, b.IPs)
}
