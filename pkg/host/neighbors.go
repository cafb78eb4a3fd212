package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ResolveNeighbors makes the kernel send ARP requests or neighbor solicitations for the next hops to the given
// addresses, even when it knows them. The kernel does not need that, but OVS' userspace datapath does: it fills its own
// neighbor table for tunnels from the replies that it sees, and drops the first packet to an unknown next hop.
func ResolveNeighbors(addrs []netip.Addr) error {
	type hop struct {
		link int
		addr netip.Addr
	}
	known := map[hop]netlink.Neigh{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		neighbours, err := netlink.NeighList(0, family)
		if err != nil {
			return fmt.Errorf("list neighbors: %w", err)
		}
		for _, n := range neighbours {
			if a, ok := netip.AddrFromSlice(n.IP); ok {
				known[hop{n.LinkIndex, a.Unmap()}] = n
			}
		}
	}
	var errs []error
	asked := map[hop]bool{}
	for _, a := range addrs {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 {
			errs = append(errs, fmt.Errorf("find the route to node address %s: %w", a, err))
			continue
		}
		next := hop{routes[0].LinkIndex, a}
		if gw, ok := netip.AddrFromSlice(routes[0].Gw); ok {
			next.addr = gw.Unmap()
		}
		if asked[next] {
			continue
		}
		asked[next] = true
		// The kernel resolves an unknown neighbor by multicast (NTF_USE), and a known one by a unicast probe.
		n := netlink.Neigh{LinkIndex: next.link, IP: next.addr.AsSlice(), Flags: netlink.NTF_USE, State: netlink.NUD_NONE}
		if old, ok := known[next]; ok && len(old.HardwareAddr) > 0 {
			if old.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 {
				continue
			}
			n.Flags, n.State, n.HardwareAddr = 0, netlink.NUD_PROBE, old.HardwareAddr
		}
		if err := netlink.NeighSet(&n); err != nil {
			errs = append(errs, fmt.Errorf("resolve neighbor %s: %w", next.addr, err))
		}
	}
	return errors.Join(errs...)
}

// NextHops are the gateways of all host routes except Weft's.
func NextHops() ([]netip.Addr, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var list []netip.Addr
	for _, r := range routes {
		if r.Protocol == RouteProtocol {
			continue
		}
		hops := []net.IP{r.Gw}
		for _, path := range r.MultiPath {
			hops = append(hops, path.Gw)
		}
		for _, hop := range hops {
			if a, ok := netip.AddrFromSlice(hop); ok {
				list = append(list, a.Unmap())
			}
		}
	}
	return list, nil
}
