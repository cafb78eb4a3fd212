package state

import (
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
)

// SetClusterCIDRs sets the ranges that all pod CIDRs must be in; none means no limit.
type SetClusterCIDRs struct{ CIDRs []netip.Prefix }

func (c SetClusterCIDRs) apply(s *Store) bool {
	if slices.Equal(s.next.ClusterCIDRs, c.CIDRs) {
		return false
	}
	s.next.ClusterCIDRs, s.pathsDirty = c.CIDRs, true
	return true
}

// resolvePaths resolves the paths of all nodes once for all changes since the last time, and marks dirty what reads a
// path that is different now.
func (s *Store) resolvePaths() {
	if !s.pathsDirty {
		return
	}
	s.pathsDirty = false
	s.resolveSelf()
	before, now := s.next.Paths, nodepath.Resolve(&s.next)
	s.noteUsable(now[s.next.Self.Name])
	changed := false
	note := func(name string) {
		changed = true
		s.resolver.SetPodCIDRs(name, now[name].PodCIDRs)
		if name != s.next.Self.Name {
			s.changed[model.NodeOwner(name)] = true
		}
	}
	for name, path := range now {
		if !path.Equal(before[name]) {
			note(name)
		}
	}
	for name := range before {
		if _, known := now[name]; !known {
			note(name)
		}
	}
	if changed {
		s.next.Paths, s.differs.nodes = now, true
		s.next.Revision++
	}
}
