package state

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
)

// announced is this node as the API server has it; known says whether there is such a Node object.
type announced struct {
	model.Node
	known bool
}

// resolveSelf finds out with which addresses and pod CIDRs this node works. They are those of its Node object as soon
// as these can be used; until then the last usable ones hold, so that pods keep their network while the object is
// deleted, recreated or emptied. Other pod CIDRs wait until no attachment has an address of the old ones: the node's
// routes and translations are for one range of each family.
func (s *Store) resolveSelf() {
	if len(s.usable.PodCIDRs) == 0 && s.inUse(s.recalled, nil) {
		s.usable.PodCIDRs = s.recalled
	}
	self := s.announced.Node
	self.Name = s.next.Self.Name
	var held []string
	if !s.announced.known && (len(s.usable.Addrs) > 0 || len(s.usable.PodCIDRs) > 0) {
		held = append(held, "there is no such Node object")
		self.Created = s.next.Self.Created
	}
	if len(self.Addrs) == 0 && len(s.usable.Addrs) > 0 {
		self.Addrs = s.usable.Addrs
		if s.announced.known {
			held = append(held, fmt.Sprintf("it has no InternalIP, %v stays in use", self.Addrs))
		}
	}
	var waiting []netip.Prefix
	if old := s.usable.PodCIDRs; len(old) > 0 && !slices.Equal(self.PodCIDRs, old) {
		why := s.podCIDRsHeld(self, old)
		if why == "" && s.inUse(old, self.PodCIDRs) {
			why = fmt.Sprintf("its podCIDRs changed to %v and attached pods have addresses of the old ones", self.PodCIDRs)
			waiting = self.PodCIDRs
		}
		if why != "" {
			self.PodCIDRs = old
			if s.announced.known {
				held = append(held, fmt.Sprintf("%s, %v stays in use", why, old))
			}
		}
	}
	text := strings.Join(held, "; ")
	before := s.next.Self
	if before.Equal(self) && text == s.next.SelfHeld && slices.Equal(waiting, s.next.NewPodCIDRs) {
		return
	}
	s.next.Self, s.next.SelfHeld, s.next.NewPodCIDRs = self, text, waiting
	s.differs.nodes = true
	s.next.Revision++
}

// selfWaits reports whether the pod CIDRs of this node depend on whether an attachment has an address of them.
func (s *Store) selfWaits() bool {
	return len(s.next.NewPodCIDRs) > 0 || len(s.usable.PodCIDRs) == 0 && len(s.recalled) > 0
}

// podCIDRsHeld says why the pod CIDRs of the Node object cannot replace the old ones, or "".
func (s *Store) podCIDRsHeld(self model.Node, old []netip.Prefix) string {
	if len(self.PodCIDRs) == 0 {
		return "it has no podCIDRs"
	}
	trial := s.next
	trial.Self = self
	if rejected := nodepath.Resolve(&trial)[self.Name].Rejected; len(rejected) > 0 {
		// The old ones may be as bad by now: then there is nothing to hold on to.
		if trial.Self.PodCIDRs = old; len(nodepath.Resolve(&trial)[self.Name].Rejected) == 0 {
			return strings.Join(rejected, "; ")
		}
	}
	return ""
}

// inUse says whether an attachment has an address of the old pod CIDRs that is not in the new ones.
func (s *Store) inUse(old, now []netip.Prefix) bool {
	in := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, a := range s.next.Attachments {
		for _, ip := range a.IPs {
			if in(old, ip) && !in(now, ip) {
				return true
			}
		}
	}
	return false
}

// noteUsable remembers what of this node could be used.
func (s *Store) noteUsable(path model.Path) {
	if self := s.next.Self; len(self.Addrs) > 0 {
		s.usable.Addrs = self.Addrs
	}
	if len(path.PodCIDRs) > 0 && len(path.Rejected) == 0 {
		s.usable.PodCIDRs = s.next.Self.PodCIDRs
	}
}
