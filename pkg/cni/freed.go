package cni

import (
	"net/netip"
	"slices"
)

// maxFreed is how many freed addresses are remembered: more than a node of the default size (a /24) has. In a larger range
// rotation alone keeps a freed address from coming up soon.
const maxFreed = 1024

// freed remembers the addresses that were freed, in that order. Rotation is not enough: it gives an address again at once
// that is freed just before its turn. It belongs to the book's mutex.
type freed struct {
	order []netip.Addr
	has   map[netip.Addr]bool
}

// add notes that an address was freed last.
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

// remove forgets an address, which is in use again.
func (f *freed) remove(ip netip.Addr) {
	if f.has[ip] {
		delete(f.has, ip)
		f.order = slices.DeleteFunc(f.order, func(a netip.Addr) bool { return a == ip })
	}
}

// in lists the remembered addresses of a range, the one that was freed first first.
func (f *freed) in(cidr netip.Prefix) []netip.Addr {
	var list []netip.Addr
	for _, ip := range f.order {
		if cidr.Contains(ip) {
			list = append(list, ip)
		}
	}
	return list
}
