package state

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/model"
)

// Copy is what a node knew from the API server at one moment, as far as its flows and its network follow from it. A
// node that starts without the API server can work from it.
type Copy struct {
	// Time is when it was made.
	Time time.Time
	// Self is this node with the values that were in use; NewPodCIDRs are those that waited.
	Self         model.Node
	NewPodCIDRs  []netip.Prefix
	Nodes        []model.Node
	Services     []model.Service
	OtherProxies map[string][]netip.Addr
	ServiceCIDRs []netip.Prefix
	// Policies are those about pods of the node.
	Policies []model.Policy
	// Attachments are those whose pods, and so whose policies, were known.
	Attachments []model.Attachment
}

// NewCopy returns the copy of a snapshot. It shares values with it.
func NewCopy(s *model.Snapshot, now time.Time) Copy {
	c := Copy{
		Time: now, Self: s.Self, NewPodCIDRs: s.NewPodCIDRs, ServiceCIDRs: s.ServiceCIDRs, OtherProxies: s.OtherProxies,
	}
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		c.Nodes = append(c.Nodes, s.Nodes[name])
	}
	for _, name := range slices.Sorted(maps.Keys(s.Services)) {
		c.Services = append(c.Services, s.Services[name])
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.Policies), model.PolicyID.Compare) {
		c.Policies = append(c.Policies, s.Policies[id])
	}
	for key, a := range s.Attachments {
		if !s.Unknown[key] {
			c.Attachments = append(c.Attachments, a)
		}
	}
	slices.SortFunc(c.Attachments, func(a, b model.Attachment) int { return model.PodOwner(a).Compare(model.PodOwner(b)) })
	return c
}

// Restore makes the store work from a copy until Synced. Attachments that are not as in the copy are unknown: their
// policies are not in it. What the API server tells meanwhile takes effect with Synced, all at once.
type Restore struct{ Copy Copy }

// Recall tells a store that has had no pod CIDRs of this node yet which ones the node had before a restart. They count
// if an attachment has an address of them: the Node object may have others by now, or none.
type Recall struct{ PodCIDRs []netip.Prefix }

func (c Recall) apply(s *Store) bool {
	s.recalled, s.pathsDirty = c.PodCIDRs, true
	return false // Take finds out what comes of it
}

// Synced says that the API server has told everything that it had at the start: that replaces the copy whole. Without a
// copy nothing changes.
type Synced struct{}

// copied is what a store has that works from a copy.
type copied struct {
	// live follows the API server.
	live *Store
	// known are the attachments of the copy.
	known map[model.AttachmentKey]model.Attachment
}

func (c Restore) apply(s *Store) bool {
	if s.copied != nil {
		return false
	}
	live := *s
	next := New(live.next.Self.Name)
	next.serviceCIDRs[true] = live.serviceCIDRs[true]
	self := c.Copy.Self
	next.usable = model.Node{Addrs: self.Addrs, PodCIDRs: self.PodCIDRs}
	if len(c.Copy.NewPodCIDRs) > 0 {
		self.PodCIDRs = c.Copy.NewPodCIDRs
	}
	for _, change := range []Change{
		SetTime{live.now}, SetTransport{live.next.Transport},
		SetReceiveGrace{live.next.ReceiveGrace, live.next.IPIPGrace, live.next.WireGuardGrace},
		SetRouted{live.next.Routed}, SetHandshakes{live.next.Handshakes}, SetKernelDatapath{live.next.KernelDatapath},
		SetKeepEstablished{live.next.KeepEstablished}, SetLocalAddrs{live.localAddrs},
		SetDNSServers{live.next.DNSServers},
		SetClusterCIDRs{live.next.ClusterCIDRs}, SetServiceCIDRs{CIDRs: c.Copy.ServiceCIDRs}, SetNode{self},
	} {
		next.Apply(change)
	}
	for _, n := range c.Copy.Nodes {
		next.Apply(SetNode{n})
	}
	for _, service := range c.Copy.Services {
		next.Apply(SetJoinedService{service})
	}
	for name, ips := range c.Copy.OtherProxies {
		next.Apply(SetOtherProxy{name, ips})
	}
	for _, p := range c.Copy.Policies {
		next.next.Policies[p.ID] = p
	}
	next.next.Staging = model.AnyStaged(next.next.Policies)
	known := map[model.AttachmentKey]model.Attachment{}
	for _, a := range c.Copy.Attachments {
		known[a.Key()] = a
	}
	for _, a := range live.next.Attachments {
		next.Apply(SetAttachment{a})
	}
	next.snapshot = live.snapshot
	next.follow(&live)
	next.copied = &copied{live: &live, known: known}
	*s = *next
	return true
}

// follow makes the next snapshot of s a later one than those of another store, in every part, and marks dirty what the
// last snapshot had and what the next one has.
func (s *Store) follow(other *Store) {
	s.next.Revision = max(s.next.Revision, other.next.Revision, s.snapshot.Revision) + 1
	s.differs = parts{nodes: true, attachments: true, services: true}
	for _, from := range []*model.Snapshot{s.snapshot, &s.next} {
		for name := range from.Nodes {
			s.changed[model.NodeOwner(name)] = true
		}
		for name := range from.Services {
			s.changed[model.ServiceOwner(name)] = true
		}
		for name := range from.ServiceProblems {
			s.changed[model.ServiceOwner(name)] = true
		}
		for name := range from.OtherProxies {
			s.changed[model.ServiceOwner(name)] = true
		}
		for _, p := range from.Policies {
			s.changed[p.Owner()] = true
		}
		for _, a := range from.Attachments {
			s.changed[model.PodOwner(a)] = true
		}
	}
	s.pathsDirty = true
}

func (Synced) apply(s *Store) bool {
	if s.copied == nil {
		return false
	}
	s.resolvePaths() // what the copy has must count as usable before it goes
	live := s.copied.live
	live.snapshot = s.snapshot
	live.follow(s)
	// A Node object that is empty by now is not the reason for the node to lose what it has.
	if len(live.usable.Addrs) == 0 {
		live.usable.Addrs = s.usable.Addrs
	}
	if len(live.usable.PodCIDRs) == 0 {
		live.usable.PodCIDRs = s.usable.PodCIDRs
	}
	live.ownNodes, live.ownAttachments, live.ownPolicies, live.ownNames = false, false, false, false
	live.ownServices, live.ownProblems = false, false
	*s = *live
	return true
}

// toLive hands a change to the store that follows the API server. It says whether that is all: what the API server
// tells does not concern the copy.
func (s *Store) toLive(c Change) bool {
	switch c := c.(type) {
	case Synced, Restore:
		return false
	case SetNode, DeleteNode, SetZone, SetService, SetJoinedService, DeleteService, SetSlice, DeleteSlice, SetOtherProxy,
		SetExternalIPs, Recall, SetPod, DeletePod, SetNamespace, DeleteNamespace, SetPolicy, DeletePolicy,
		SetPeerNode, SetName:
		s.copied.live.Apply(c)
		return true
	case SetServiceCIDRs:
		s.copied.live.Apply(c)
		return !c.Configured
	}
	s.copied.live.Apply(c)
	return false
}

// resolveCopied finds the attachments that are not as in the copy.
func (s *Store) resolveCopied() {
	unknown := map[model.AttachmentKey]bool{}
	for key, a := range s.next.Attachments {
		if was, ok := s.copied.known[key]; !ok || was.Pod != a.Pod || !slices.Equal(was.IPs, a.IPs) {
			unknown[key] = true
		}
		if unknown[key] != s.next.Unknown[key] {
			s.changed[model.PodOwner(a)] = true
		}
	}
	if !maps.Equal(unknown, s.next.Unknown) {
		s.next.Unknown = unknown
		s.next.Revision++
	}
}
