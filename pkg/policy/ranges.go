package policy

import (
	"cmp"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// portRange is an inclusive range of one protocol's ports. All of them, 0 among them, is what a protocol alone stands for.
type portRange struct {
	protocol Protocol
	from, to uint16
}

func (p Port) protocol() Protocol { return cmp.Or(p.Protocol, TCP) }

// ranges gives the ports that need no pod to be understood: all but those with a name. They are sorted, disjoint and as wide
// as can be.
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

// merge sorts ranges and makes one of those that overlap or touch.
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

// matches cuts ranges into the fewest values with masks: each the largest aligned block that begins where the one before
// ended.
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

// maxRanges bounds what the exceptions of one policy may cost, before they are expanded: at most about 40 MB and half
// a second.
const maxRanges = 1_000_000

// mostRanges is an upper bound of the number of prefixes: each exception halves the block once for each bit between
// them.
func (b IPBlock) mostRanges() int {
	most := 1
	for _, e := range b.Except {
		if e.Overlaps(b.CIDR) {
			most += max(0, e.Bits()-b.CIDR.Bits())
		}
	}
	return most
}

// prefixes gives the addresses of a block as ranges, sorted: the CIDR is halved until no exception is left in a part.
func (b IPBlock) prefixes() []netip.Prefix { return without(b.CIDR.Masked(), b.Except, nil) }

func without(p netip.Prefix, except, out []netip.Prefix) []netip.Prefix {
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
	return without(high, inside, without(low, inside, out))
}

// halves of a range that has more than one address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	raw := p.Addr().AsSlice()
	raw[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(raw) // as long as it was
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(upper, p.Bits()+1)
}

// comparePrefixes sorts by address, and wider ranges before those inside them.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// disjoint drops from sorted ranges those that lie in others. Ranges of addresses overlap in no other way. It may reuse the
// slice.
func disjoint(sorted []netip.Prefix) []netip.Prefix {
	out := sorted[:0]
	for _, p := range sorted {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// unite makes one sorted, disjoint list of several such. A list that stands alone is returned as it is: it is shared.
func unite(lists [][]netip.Prefix) []netip.Prefix {
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

// covers says whether sorted, disjoint ranges hold an address.
func covers(sorted []netip.Prefix, a netip.Addr) bool {
	at, found := slices.BinarySearchFunc(sorted, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	return found || at > 0 && sorted[at-1].Contains(a)
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
