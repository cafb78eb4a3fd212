package flows

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// The widest ranges that one node may have. Wider ones are a mistake, or an attempt to draw other traffic into a tunnel:
// no cluster gives one node a whole 10.0.0.0/8, and an IPv6 /16 is more than a registry gives to anybody.
const (
	widestIPv4 = 8
	widestIPv6 = 16
)

// checkRange says why nobody's pods can have a range, or nil.
func checkRange(cidr netip.Prefix) error {
	widest := widestIPv6
	if cidr.Addr().Is4() {
		widest = widestIPv4
	}
	gateway := model.GatewayAddr(cidr)
	switch {
	case cidr.Bits() < widest:
		return fmt.Errorf("it is wider than a /%d", widest)
	case !cidr.Contains(gateway):
		return errors.New("it has no room for a gateway and a pod")
	case !cidr.Addr().IsGlobalUnicast() || !gateway.IsGlobalUnicast() || gateway.Is4In6():
		return errors.New("it is not of ordinary unicast addresses")
	}
	return nil
}

// checkOwn says why this node cannot use a pod CIDR of its own, or nil. Other nodes have no say in it.
func checkOwn(cidr netip.Prefix, self model.Node) error {
	if err := checkRange(cidr); err != nil {
		return err
	}
	for _, a := range self.Addrs {
		if cidr.Contains(a) {
			return fmt.Errorf("it contains the node's own address %s", a)
		}
	}
	return nil
}

// checkRemote says why a pod CIDR of another node cannot be used, or nil, as far as that node and this one can tell: what it
// depends on is what the other node's flows may depend on, for a change to cost only its own.
func checkRemote(cidr netip.Prefix, n, self model.Node) error {
	if err := checkOwn(cidr, n); err != nil {
		return err
	}
	for _, a := range self.Addrs {
		if cidr.Contains(a) {
			return fmt.Errorf("it contains this node's address %s", a)
		}
	}
	for _, own := range self.PodCIDRs {
		if cidr.Overlaps(own) && checkOwn(own, self) == nil {
			return fmt.Errorf("it overlaps this node's pod CIDR %s", own)
		}
	}
	return nil
}

// belongsTo says whether an address is one of a node's own, or in its pod CIDRs.
func belongsTo(n model.Node, a netip.Addr) bool {
	return slices.Contains(n.Addrs, a) || slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// PodCIDRs are the ranges of a snapshot that the node's own network may follow.
type PodCIDRs struct {
	// Own are this node's, Remote the other nodes' in the order of their names. No two of them overlap, and no address of
	// a node is in one of Remote.
	Own, Remote []netip.Prefix
	// OwnErr says which of this node's ranges are left out and why; RemoteErr names the other nodes' Node objects that
	// are at fault.
	OwnErr, RemoteErr error
}

// holder is a range, or an address as a range of one, with the name of the node that has it.
type holder struct {
	cidr netip.Prefix
	node string
}

func compareHolders(a, b holder) int { return a.cidr.Addr().Compare(b.cidr.Addr()) }

// UsablePodCIDRs judges all ranges of a snapshot. Where nodes' ranges overlap, this node and then the first by name has
// its own, as with flows. A foreign object cannot take this node's own ranges away: an address in one of them is reported
// and nothing else.
func UsablePodCIDRs(s *model.Snapshot) PodCIDRs {
	var u PodCIDRs
	var ownErrs, remoteErrs []error
	var taken []holder // sorted, without overlaps
	for _, cidr := range s.Self.PodCIDRs {
		if err := checkOwn(cidr, s.Self); err != nil {
			ownErrs = append(ownErrs, unusable(s.Self.Name, cidr, err))
			continue
		}
		u.Own = append(u.Own, cidr)
		taken = append(taken, holder{cidr, s.Self.Name})
	}
	slices.SortFunc(taken, compareHolders)
	names := slices.Sorted(maps.Keys(s.Nodes))
	var addrs []holder
	for _, name := range names {
		for _, a := range s.Nodes[name].Addrs {
			addrs = append(addrs, holder{netip.PrefixFrom(a, a.BitLen()), name})
			for _, own := range u.Own {
				if own.Contains(a) {
					remoteErrs = append(remoteErrs, fmt.Errorf("node %s: its address %s is in this node's pod CIDR %s: there is no way to it", name, a, own))
				}
			}
		}
	}
	slices.SortStableFunc(addrs, compareHolders)
	for _, name := range names {
		for _, cidr := range s.Nodes[name].PodCIDRs {
			err := checkRemote(cidr, s.Nodes[name], s.Self)
			if err == nil {
				if a, ok := overlapping(addrs, cidr); ok {
					err = fmt.Errorf("it contains the address %s of node %s", a.cidr.Addr(), a.node)
				} else if h, ok := overlapping(taken, cidr); ok {
					err = fmt.Errorf("it overlaps %s of node %s, which comes first", h.cidr, h.node)
				}
			}
			if err != nil {
				remoteErrs = append(remoteErrs, unusable(name, cidr, err))
				continue
			}
			u.Remote = append(u.Remote, cidr)
			h := holder{cidr, name}
			at, _ := slices.BinarySearchFunc(taken, h, compareHolders)
			taken = slices.Insert(taken, at, h)
		}
	}
	u.OwnErr, u.RemoteErr = errors.Join(ownErrs...), errors.Join(remoteErrs...)
	return u
}

// overlapping finds one of the sorted ranges that overlaps, if any does. Those do not overlap each other, or are single
// addresses: then only the neighbours of the range's first address can.
func overlapping(sorted []holder, cidr netip.Prefix) (holder, bool) {
	at, _ := slices.BinarySearchFunc(sorted, holder{cidr: cidr}, compareHolders)
	for _, h := range sorted[max(at-1, 0):min(at+1, len(sorted))] {
		if h.cidr.Overlaps(cidr) {
			return h, true
		}
	}
	return holder{}, false
}

func unusable(node string, cidr netip.Prefix, why error) error {
	return fmt.Errorf("node %s: pod CIDR %s is not used: %w", node, cidr, why)
}
