package host

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// ipv6DefaultMetric is the kernel's metric for IPv6 routes that set none.
const ipv6DefaultMetric = 1024

const mainTable = unix.RT_TABLE_MAIN

// routeKey identifies a route in the kernel.
type routeKey struct {
	table  int
	dst    netip.Prefix
	metric int
	// extra is 0 for all of Weft's routes. IPv4 allows several routes with equal destination and metric.
	extra int
}

// routeTo is the key of a desired route.
func routeTo(table int, dst netip.Prefix) routeKey {
	if dst.Addr().Is6() {
		return routeKey{table: table, dst: dst, metric: ipv6DefaultMetric}
	}
	return routeKey{table: table, dst: dst}
}

func (k routeKey) String() string {
	if k.table == mainTable {
		return k.dst.String()
	}
	return fmt.Sprintf("%s in table %d", k.dst, k.table)
}

func compareRouteKeys(a, b routeKey) int {
	return cmp.Or(cmp.Compare(a.table, b.table), comparePrefixes(a.dst, b.dst), cmp.Compare(a.metric, b.metric),
		cmp.Compare(a.extra, b.extra))
}

// route holds the other attributes of a route that Weft sets.
type route struct {
	gateway netip.Addr // invalid for on-link destinations
	source  netip.Addr
	link    int // 0 for an unreachable route, oddLink for one with attributes that Weft never sets
}

const oddLink = -1

// essential routes are those to the node's own pods and to the switch's own addresses, and those of Weft's own tables:
// without them the node cannot work.
func essential(k routeKey, r route, gateway int) bool {
	return k.table != mainTable || !r.gateway.IsValid() && (r.link == gateway || r.link == 0)
}

// desiredRoutes are the routes to all pods and cluster IPs, and those of Weft's own tables, in the order in which they
// are written. Of several to one destination the first counts. A route through an uplink that does not exist is
// unreachable, so that pods' packets do not leave in another way.
func desiredRoutes(d Desired, gateway int) []entry[routeKey, route] {
	peers := d.toSwitch()
	inMain := len(d.PodCIDRs) + len(peers) + len(d.ServiceCIDRs) + 8
	list := make([]entry[routeKey, route], 0, inMain+len(d.ServicePorts)+len(everywhere))
	seen := make(map[netip.Prefix]bool, inMain)
	var source [2]netip.Addr // by family
	for _, p := range d.PodCIDRs {
		source[index(p.Addr().Is4())] = model.GatewayAddr(p)
	}
	addTo := func(table int, dst netip.Prefix, via netip.Addr, link int) {
		r := route{gateway: via, source: source[index(dst.Addr().Is4())], link: link}
		if !r.source.IsValid() {
			return // not the node's family
		}
		if link == 0 {
			r = route{}
		}
		list = append(list, entry[routeKey, route]{r, routeTo(table, dst)})
	}
	add := func(dst netip.Prefix, via netip.Addr, link int) {
		if !seen[dst] {
			seen[dst] = true
			addTo(mainTable, dst, via, link)
		}
	}
	for _, p := range d.PodCIDRs {
		add(p, netip.Addr{}, gateway)
	}
	for _, is4 := range []bool{true, false} {
		// Replies to the Masquerade address must reach the switch; and rp_filter needs the reverse route.
		add(single(model.NodePortAddr(is4)), netip.Addr{}, gateway)
		add(model.UDPNodePorts(is4), model.NodePortAddr(is4), gateway)
		add(single(model.MasqueradeAddr(is4)), netip.Addr{}, gateway)
		// Not used while nftables rejects packets to this address. Otherwise it keeps them from the default route.
		add(single(model.RejectAddr(is4)), netip.Addr{}, 0)
	}
	for hop := range d.directHops() {
		if hop.NextHop.IsValid() {
			add(hop.CIDR, hop.NextHop, d.uplinks[hop.Local].index)
		}
	}
	for _, r := range d.ipipRoutes() { // without the device they are unreachable
		add(r.cidr, r.via, d.ipip[r.device])
	}
	for _, p := range d.encryptedPodCIDRs() { // without the device they are unreachable
		add(p, netip.Addr{}, d.wireGuard)
	}
	for _, p := range peers {
		add(p, model.GatewayAddr(p), gateway)
	}
	for _, p := range d.ServiceCIDRs {
		add(p, model.NodePortAddr(p.Addr().Is4()), gateway)
	}
	for _, all := range everywhere {
		addTo(serviceTable, all, model.NodePortAddr(all.Addr().Is4()), gateway)
	}
	for i, p := range d.ServicePorts { // sorted by address
		if i == 0 || p.Addr != d.ServicePorts[i-1].Addr {
			addTo(fallbackTable, single(p.Addr), model.NodePortAddr(p.Addr.Is4()), gateway)
		}
	}
	return list
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func index(is4 bool) int {
	if is4 {
		return 0
	}
	return 1
}

// syncRoutes adds the missing routes first and then removes the stale ones, so that a changed route leaves no gap. A
// route that cannot be added does not keep others from it. With compare, or after an error, it reads the kernel's
// routes first.
func (h *Host) syncRoutes(c *changes, d Desired, gateway int, compare bool) error {
	t := h.routes
	t.desire(desiredRoutes(d, gateway))
	compare = compare || !t.known
	if compare {
		have, err := ourRoutes(t)
		if err != nil {
			return err
		}
		t.learn(have)
	}
	foreign, err := foreignRoutes(t.missing())
	if err != nil {
		return err
	}
	names := map[int]string{d.wireGuard: model.WireGuardName, gateway: d.Gateway}
	names[0] = "no link"
	for name, index := range d.ipip {
		names[index] = name
	}
	for _, u := range d.uplinks {
		names[u.index] = u.name
	}
	t.add(func(e entry[routeKey, route], replace bool) error {
		if err := writeRoute(e.key, e.value, foreign[e.key.dst], replace); err != nil {
			return fmt.Errorf("add route to %s through %s: %w", e.key, names[e.value.link], err)
		}
		c.add("route to %s added", e.key)
		return nil
	})
	errs := []error{t.prune(func(e entry[routeKey, route]) error {
		// A remembered route may have been deleted by another program, or with its link.
		if err := netlink.RouteDel(deletion(e.key, e.value)); err != nil && (compare || !errors.Is(err, unix.ESRCH)) {
			return fmt.Errorf("remove route to %s: %w", e.key, err)
		}
		c.add("route to %s removed", e.key)
		return nil
	})}
	for e, err := range t.failures() {
		if essential(e.key, e.value, gateway) {
			errs = append(errs, err)
		} else {
			c.unrouted = append(c.unrouted, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.forget() // the next Sync compares with the kernel
		return err
	}
	return nil
}

// writeRoute adds the route. It replaces Weft's own route, or the one that the kernel adds with the gateway's address,
// but never a foreign one in the main table.
func writeRoute(k routeKey, r route, foreign []netlink.Route, replace bool) error {
	if k.table != mainTable {
		return netlink.RouteReplace(toKernel(k, r))
	}
	for _, f := range foreign {
		if r.gateway.IsValid() || f.Protocol != unix.RTPROT_KERNEL || f.LinkIndex != r.link {
			return fmt.Errorf("a route that is not Weft's exists and stays: %s; remove it, or the object that claims its range",
				f)
		}
		replace = true
	}
	if !replace {
		return netlink.RouteAdd(toKernel(k, r))
	}
	err := netlink.RouteReplace(toKernel(k, r))
	// IPv6 rejects a next hop inside the destination while the route there leads through another link.
	if errors.Is(err, unix.EINVAL) && netlink.RouteDel(deletion(k, route{link: oddLink})) == nil {
		err = netlink.RouteAdd(toKernel(k, r))
	}
	return err
}

// foreignRoutes are the main table's routes of other programs to exactly these destinations, at any metric.
func foreignRoutes(to []entry[routeKey, route]) (map[netip.Prefix][]netlink.Route, error) {
	found := map[netip.Prefix][]netlink.Route{}
	to = slices.DeleteFunc(to, func(e entry[routeKey, route]) bool { return e.key.table != mainTable })
	if len(to) == 0 {
		return found, nil
	}
	sought := make(map[netip.Prefix]bool, len(to))
	for _, e := range to {
		sought[e.key.dst] = true
	}
	err := netlink.RouteListFilteredIter(netlink.FAMILY_ALL, &netlink.Route{}, 0, func(k netlink.Route) bool {
		if k.Dst != nil && k.Protocol != RouteProtocol && sought[prefix(k.Dst)] {
			found[prefix(k.Dst)] = append(found[prefix(k.Dst)], k)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return found, nil
}

// ourRoutes are Weft's routes in the main table and in its own ones.
func ourRoutes(t *tracker[routeKey, route]) (map[routeKey]route, error) {
	have := map[routeKey]route{}
	filter := &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_UNSPEC}
	err := netlink.RouteListFilteredIter(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE,
		func(k netlink.Route) bool {
			key, r := fromKernel(k)
			if !ownTable(key.table) {
				return true
			}
			if old, exists := have[key]; exists {
				if want, desired := t.desired[key]; desired && want == r { // the other one is removed
					have[key], r = r, old
				}
				for exists {
					key.extra++
					_, exists = have[key]
				}
			}
			have[key] = r
			return true
		})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return have, nil
}

// ownTable reports whether Weft has routes in the table.
func ownTable(table int) bool {
	return table == mainTable || table == serviceTable || table == fallbackTable
}

func toKernel(key routeKey, r route) *netlink.Route {
	k := &netlink.Route{
		Dst:      ipNet(key.dst),
		Protocol: RouteProtocol,
		Priority: key.metric,
		Table:    key.table,
	}
	if r.link == oddLink {
		return k
	}
	k.Src, k.LinkIndex = r.source.AsSlice(), r.link
	switch {
	case r.link == 0:
		k.Type = unix.RTN_UNREACHABLE
	case r.gateway.IsValid():
		k.Gw = r.gateway.AsSlice()
		k.Flags = int(netlink.FLAG_ONLINK)
	default:
		k.Scope = netlink.SCOPE_LINK
	}
	return k
}

// deletion matches a route, and an odd one by its key alone.
func deletion(key routeKey, r route) *netlink.Route {
	k := toKernel(key, r)
	k.Scope = unix.RT_SCOPE_NOWHERE // any
	return k
}

// fromKernel converts a route. One with attributes that Weft never sets gets an invalid link, so that it equals no
// desired route.
func fromKernel(k netlink.Route) (routeKey, route) {
	key, r := routeKey{table: k.Table, metric: k.Priority}, route{link: k.LinkIndex}
	if k.Dst != nil {
		key.dst = prefix(k.Dst)
	}
	if a, ok := netip.AddrFromSlice(k.Gw); ok {
		r.gateway = a.Unmap()
	}
	if a, ok := netip.AddrFromSlice(k.Src); ok {
		r.source = a.Unmap()
	}
	onlink := k.Flags&int(netlink.FLAG_ONLINK) != 0
	switch {
	case k.Type == unix.RTN_UNREACHABLE:
		r.link = 0 // the kernel reports loopback for IPv6
	case k.Type != unix.RTN_UNICAST, len(k.MultiPath) > 0, onlink != r.gateway.IsValid():
		r.link = oddLink
	}
	return key, r
}

// routeRelevant reports whether the event is a change of Weft's routes by another program, or a foreign route to a
// desired destination, which may have replaced Weft's.
func (h *Host) routeRelevant(e netlink.RouteUpdate) bool {
	key, r := fromKernel(e.Route)
	switch {
	case !ownTable(key.table):
		return false
	case e.Protocol != RouteProtocol:
		return key.table == mainTable && h.routes.wants(routeTo(mainTable, key.dst))
	case e.Type == unix.RTM_NEWROUTE:
		return !h.routes.has(key, r)
	default:
		return h.routes.has(key, r)
	}
}
