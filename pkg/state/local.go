package state

import (
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// MaxLocalAddrs is how many addresses of this node count. Each costs four flows.
const MaxLocalAddrs = 256

// SetLocalAddrs sets the addresses that this node's kernel has, sorted.
type SetLocalAddrs struct{ Addrs []netip.Addr }

func (c SetLocalAddrs) apply(s *Store) bool {
	if !slices.Equal(s.localAddrs, c.Addrs) {
		s.localAddrs, s.localsDirty = slices.Clone(c.Addrs), true
	}
	return false // see resolveLocals
}

// localsChanged is told of addresses that are a pod's, or were.
func (s *Store) localsChanged(ips []netip.Addr) {
	for _, ip := range ips {
		if _, local := slices.BinarySearchFunc(s.localAddrs, ip, netip.Addr.Compare); local {
			s.localsDirty = true
		}
	}
}

// resolveLocals finds the addresses that are this node's for policies: those that its kernel has, less those of pods,
// of Services, of other nodes and of Weft itself, and less those that policies know anyway. So no object can pass for
// the node that has one of its addresses.
func (s *Store) resolveLocals() {
	if !s.localsDirty && !s.differs.nodes {
		return
	}
	s.localsDirty = false
	var locals []netip.Addr
	if len(s.localAddrs) > 0 {
		taken := s.takenAddrs()
		for _, a := range s.localAddrs {
			if !taken(a) && len(locals) < MaxLocalAddrs {
				locals = append(locals, a)
			}
		}
	}
	if slices.Equal(locals, s.next.LocalAddrs) {
		return
	}
	s.next.LocalAddrs = locals
	s.next.Revision++
}

// takenAddrs says which addresses are not this node's alone.
func (s *Store) takenAddrs() func(netip.Addr) bool {
	others := map[netip.Addr]bool{}
	for _, n := range s.next.Nodes {
		for _, a := range n.Addrs {
			others[a] = true
		}
	}
	for _, a := range s.next.Self.Addrs {
		others[a] = true
	}
	for _, a := range s.next.Attachments {
		for _, ip := range a.IPs {
			others[ip] = true
		}
	}
	delegated := map[netip.Addr]bool{} // to a proxy, which is on the node
	for _, ips := range s.next.OtherProxies {
		for _, ip := range ips {
			delegated[ip] = true
		}
	}
	var ranges []netip.Prefix
	for _, path := range s.next.Paths {
		ranges = append(ranges, path.PodCIDRs...)
	}
	ranges = append(ranges, slices.Concat(model.VirtualPrefixes(true), model.VirtualPrefixes(false))...)
	within := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	return func(a netip.Addr) bool {
		return others[a] || within(ranges, a) || within(s.next.ServiceCIDRs, a) && !delegated[a]
	}
}
