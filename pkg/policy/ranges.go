package policy

import (
	"cmp"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// portRange is an inclusive range of ports of one protocol. A protocol without ports is the range of all, including 0.
type portRange struct {
	protocol Protocol
	from, to uint16
}

func (p Port) protocol() Protocol { return cmp.Or(p.Protocol, TCP) }

// ranges returns the numeric ports as sorted, disjoint, maximal ranges. Named ports are left out, because their numbers
// depend on the pod.
func ranges(ports []Port) []portRange {
	var all []portRange
	for _, p := range ports {
		switch {
		case p.Name != "":
		case p.Number == 0:
			all = append(all, portRange{p.protocol(), 0, 0xffff})
		default:
			all = append(all, portRange{p.protocol(), p.Number, max(p.Number, p.EndPort)})
		}
	}
	return merge(all)
}

// merge sorts ranges and joins those that overlap or are adjacent.
func merge(all []portRange) []portRange {
	slices.SortFunc(all, func(a, b portRange) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
	var merged []portRange
	for _, r := range all {
		if n := len(merged) - 1; n >= 0 && merged[n].protocol == r.protocol && int(r.from) <= int(merged[n].to)+1 {
			merged[n].to = max(merged[n].to, r.to)
		} else {
			merged = append(merged, r)
		}
	}
	return merged
}

func (r portRange) contains(protocol Protocol, number uint16) bool {
	return r.protocol == protocol && r.from <= number && number <= r.to
}

// matches splits ranges into the fewest masked matches: each is the largest aligned block that begins at the end of the
// previous one.
func matches(all []portRange) []model.PortMatch {
	var out []model.PortMatch
	for _, r := range all {
		for from, end := uint32(r.from), uint32(r.to)+1; from < end; {
			size := uint32(1) << min(bits.TrailingZeros32(from|1<<16), bits.Len32(end-from)-1)
			out = append(out, model.PortMatch{Protocol: r.protocol, Port: uint16(from), Mask: uint16(0x10000 - size)})
			from += size
		}
	}
	return out
}

// maxRanges bounds the ranges that the exceptions of one policy may expand to, checked before expansion: at most about
// 40 MB and half a second.
const maxRanges = 1_000_000

// mostRanges is an upper bound of the number of prefixes: an exception splits the block once for each bit of difference
// in length.
func (b IPBlock) mostRanges() int {
	most := 1
	for _, e := range b.Except {
		if e.Overlaps(b.CIDR) {
			most += max(0, e.Bits()-b.CIDR.Bits())
		}
	}
	return most
}

// prefixes returns the addresses of a block as sorted ranges: the CIDR is halved until no part contains an exception.
func (b IPBlock) prefixes() []netip.Prefix { return subtract(b.CIDR.Masked(), b.Except, nil) }

func subtract(p netip.Prefix, except, out []netip.Prefix) []netip.Prefix {
	var inside []netip.Prefix
	for _, e := range except {
		if e.Bits() <= p.Bits() && e.Contains(p.Addr()) {
			return out
		}
		if p.Overlaps(e) {
			inside = append(inside, e)
		}
	}
	if len(inside) == 0 {
		return append(out, p)
	}
	low, high := halves(p)
	return subtract(high, inside, subtract(low, inside, out))
}

// halves splits a range of more than one address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	raw := p.Addr().AsSlice()
	raw[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(raw) // the length is unchanged
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(upper, p.Bits()+1)
}

// comparePrefixes orders by address, and wider ranges before those inside them.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// disjoint removes ranges inside others from sorted ranges. Prefixes cannot overlap otherwise. It may reuse the slice.
func disjoint(sorted []netip.Prefix) []netip.Prefix {
	out := sorted[:0]
	for _, p := range sorted {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// union merges sorted, disjoint lists into one. A single list is returned unchanged, because it is shared.
func union(lists [][]netip.Prefix) []netip.Prefix {
	lists = slices.DeleteFunc(lists, func(l []netip.Prefix) bool { return len(l) == 0 })
	switch len(lists) {
	case 0:
		return nil
	case 1:
		return lists[0]
	}
	all := slices.Concat(lists...)
	slices.SortFunc(all, comparePrefixes)
	return disjoint(all)
}

// covers reports whether sorted, disjoint ranges contain an address.
func covers(sorted []netip.Prefix, a netip.Addr) bool {
	at, found := slices.BinarySearchFunc(sorted, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	return found || at > 0 && sorted[at-1].Contains(a)
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
