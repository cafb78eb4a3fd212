package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LocalAddrs lists the addresses of the host's links, sorted, at which other hosts reach its processes: without
// loopback and IPv6 link-local addresses.
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

// IsLocal reports whether the host's kernel takes the address for its own. When the kernel does not answer, it does.
func IsLocal(a netip.Addr) bool {
	routes, err := netlink.RouteGet(a.AsSlice())
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return false
	case err != nil || len(routes) == 0:
		return true
	}
	return routes[0].Type == unix.RTN_LOCAL
}

// reachable reports whether other hosts can send to the address. IPv4 link-local addresses count, because Linux does
// not limit them to one link: NodeLocal DNSCache uses 169.254.20.10. IPv4-compatible ones do not: the kernel gives one
// to each sit device.
func reachable(a netip.Addr) bool {
	if ipv4Compatible.Contains(a) {
		return false
	}
	return a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && (a.Is4() || !a.IsLinkLocalUnicast())
}

var ipv4Compatible = netip.MustParsePrefix("::/96")
