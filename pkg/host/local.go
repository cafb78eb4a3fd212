package host

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// LocalAddrs lists the addresses that the links of this host have, sorted: those at which its processes are reached
// from outside of it. Loopback and IPv6 link-local addresses are left out.
func LocalAddrs() ([]netip.Addr, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this host: %w", err)
	}
	var list []netip.Addr
	for _, a := range all {
		if addr := prefix(a.IPNet).Addr(); reachable(addr) {
			list = append(list, addr)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list), nil
}

// reachable says whether others can send to an address. IPv4 has no addresses of one link alone for Linux: NodeLocal
// DNSCache has 169.254.20.10.
func reachable(a netip.Addr) bool {
	return a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && (a.Is4() || !a.IsLinkLocalUnicast())
}
