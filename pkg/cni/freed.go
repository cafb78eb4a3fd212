package cni

import (
	"net/netip"
	"slices"
)

// maxFreed bounds the remembered addresses: more than a node of the default size (a /24) has. In a larger range the
// rotation alone keeps a freed address from being reused soon.
const maxFreed = 1024

// freed holds the recently freed addresses in the order of their release. The rotation alone is not enough: it would
// reuse an address at once that is freed just before the rotation reaches it. Guarded by the mutex of allocations.
type freed struct {
	order []netip.Addr
	has   map[netip.Addr]bool
}

// add records that an address was freed last.
func (f *freed) add(ip netip.Addr) {
	if f.has == nil {
		f.has = map[netip.Addr]bool{}
	}
	f.remove(ip)
	f.order = append(f.order, ip)
	f.has[ip] = true
	if len(f.order) > maxFreed {
		f.remove(f.order[0])
	}
}

// remove drops an address, because it is in use again.
func (f *freed) remove(ip netip.Addr) {
	if f.has[ip] {
		delete(f.has, ip)
		f.order = slices.DeleteFunc(f.order, func(a netip.Addr) bool { return a == ip })
	}
}

// in lists the addresses of a range, the one that was freed first first.
func (f *freed) in(cidr netip.Prefix) []netip.Addr {
	var list []netip.Addr
	for _, ip := range f.order {
		if cidr.Contains(ip) {
			list = append(list, ip)
		}
	}
	return list
}
