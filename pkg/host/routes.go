package host

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// ipv6DefaultMetric is the kernel's metric for IPv6 routes that set none.
const ipv6DefaultMetric = 1024

// maxRouteLookups is the maximum number of new routes that the kernel is queried for one by one.
const maxRouteLookups = 16

// routing writes the routes. There is one for each node, so it remembers which routes the kernel has and, between two
// comparisons with the kernel, writes differences only.
type routing struct {
	mu sync.Mutex // Watch reads want and installed
	// want are the routes of the last sync.
	want map[netip.Prefix]route
	// installed are Weft's routes in the kernel; nil when not known.
	installed map[netip.Prefix]route
	// failed are the routes that could not be added. They are retried with the next change or comparison.
	failed map[netip.Prefix]failedRoute
	// inputs are the values that want was computed from.
	inputs routeInputs
}

// routeInputs are the values that the routes depend on.
type routeInputs struct {
	link                   int
	podCIDRs, serviceCIDRs []netip.Prefix
	peers                  []route
}

func (w routeInputs) equal(o routeInputs) bool {
	return w.link == o.link && slices.Equal(w.podCIDRs, o.podCIDRs) && slices.Equal(w.peers, o.peers) &&
		slices.Equal(w.serviceCIDRs, o.serviceCIDRs)
}

type failedRoute struct {
	route route
	err   error
	order int
}

// route holds the attributes of a route that Weft sets.
type route struct {
	dst     netip.Prefix
	gateway netip.Addr // invalid for on-link destinations
	onlink  bool       // the gateway need not be in a subnet of the link
	source  netip.Addr
	link    int // 0 for an unreachable route
	metric  int
	table   int // 0 for the main one
}

// essential routes are those to the node's own pods and to the switch's own addresses: without them the node cannot
// work.
func (r route) essential() bool { return !r.gateway.IsValid() }

// desiredRoutes are the routes to all pods and cluster IPs, in the order of Desired. It may return several for one
// destination, of which the first counts.
func desiredRoutes(d Desired, link int) []route {
	list := make([]route, 0, len(d.PodCIDRs)+2*len(d.Peers)+len(d.ServiceCIDRs)+8)
	var source [2]netip.Addr // by family
	for _, p := range d.PodCIDRs {
		source[index(p.Addr().Is4())] = model.GatewayAddr(p)
	}
	complete := func(r route) {
		r.source = source[index(r.dst.Addr().Is4())]
		if !r.source.IsValid() {
			return // not the node's family
		}
		if r.dst.Addr().Is6() {
			r.metric = ipv6DefaultMetric
		}
		if r.link == 0 {
			r.source = netip.Addr{}
		}
		list = append(list, r)
	}
	add := func(dst netip.Prefix, via netip.Addr, link int) {
		complete(route{dst: dst, gateway: via, onlink: via.IsValid(), link: link})
	}
	for _, p := range d.PodCIDRs {
		add(p, netip.Addr{}, link)
	}
	for _, is4 := range []bool{true, false} {
		// Replies to the Masquerade address must reach the switch; and rp_filter needs the reverse route.
		add(single(model.NodePortAddr(is4)), netip.Addr{}, link)
		add(model.UDPNodePorts(is4), model.NodePortAddr(is4), link)
		add(single(model.MasqueradeAddr(is4)), netip.Addr{}, link)
		// Not used while nftables rejects packets to this address. Otherwise it keeps them from the default route.
		add(single(model.RejectAddr(is4)), netip.Addr{}, 0)
	}
	for _, r := range d.peerRoutes(link) {
		complete(r)
	}
	for _, p := range d.ServiceCIDRs {
		add(p, model.NodePortAddr(p.Addr().Is4()), link)
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

// sync adds the missing routes first and then removes the stale ones, so that a changed route leaves no gap. A route
// that cannot be added does not keep others from it. With compare, or when its memory is not reliable, it reads the
// kernel's routes first.
func (t *routing) sync(c *changes, link netlink.Link, d Desired, compare bool) error {
	err := t.write(c, link, d, compare)
	if err != nil {
		t.invalidate() // the next sync compares with the kernel
	}
	return err
}

func (t *routing) write(c *changes, link netlink.Link, d Desired, compare bool) error {
	inputs := routeInputs{link.Attrs().Index, d.PodCIDRs, d.ServiceCIDRs, d.peerRoutes(link.Attrs().Index)}
	if !compare && t.installed != nil && t.inputs.equal(inputs) {
		return t.report(c)
	}
	want := make(map[netip.Prefix]route, 2*len(d.Peers))
	order := slices.DeleteFunc(desiredRoutes(d, link.Attrs().Index), func(r route) bool {
		_, twice := want[r.dst]
		if !twice {
			want[r.dst] = r
		}
		return twice
	})
	t.mu.Lock()
	t.want = want
	t.mu.Unlock()
	t.inputs = inputs
	var have []netlink.Route
	ours := map[netip.Prefix]bool{} // destinations with any route of Weft's
	if compare || t.installed == nil {
		var err error
		if have, err = ourRoutes(); err != nil {
			return err
		}
		ours = t.syncFromKernel(have, want)
		compare = true
	}
	t.failed = map[netip.Prefix]failedRoute{}
	var missing []route
	for _, r := range order {
		if t.installed[r.dst] != r {
			missing = append(missing, r)
		}
	}
	foreign, err := foreignRoutes(missing)
	if err != nil {
		return err
	}
	for _, r := range missing {
		old, replace := t.installed[r.dst]
		t.setInstalled(r, true)
		if err := r.write(foreign[r.dst], replace || ours[r.dst]); err != nil {
			t.setInstalled(old, replace)
			if !replace {
				t.setInstalled(r, false)
			}
			t.failed[r.dst] = failedRoute{r, fmt.Errorf("add route to %s through %s: %w", r.dst, d.Gateway, err), len(t.failed)}
			continue
		}
		c.add("route to %s added", r.dst)
	}
	var stale []netlink.Route
	switch {
	case !compare:
		stale = t.staleInstalled(want)
	case len(missing) > 0:
		// List again: a replaced route no longer exists, and deleting it could match its replacement.
		if have, err = ourRoutes(); err != nil {
			return err
		}
		fallthrough
	default:
		stale = slices.DeleteFunc(have, func(k netlink.Route) bool { r := fromKernel(k); return want[r.dst] == r })
	}
	return errors.Join(t.remove(c, stale, compare), t.report(c))
}

// report returns the errors of essential routes, and adds those of the others to c.unrouted.
func (t *routing) report(c *changes) error {
	var errs []error
	for _, r := range slices.SortedFunc(maps.Values(t.failed), func(a, b failedRoute) int {
		return cmp.Or(cmp.Compare(a.order, b.order), comparePrefixes(a.route.dst, b.route.dst))
	}) {
		if r.route.essential() {
			errs = append(errs, r.err)
		} else {
			c.unrouted = append(c.unrouted, r.err)
		}
	}
	return errors.Join(errs...)
}

// syncFromKernel sets installed to the desired routes that the kernel has. It returns all destinations with a route of
// Weft's, correct or not.
func (t *routing) syncFromKernel(have []netlink.Route, want map[netip.Prefix]route) map[netip.Prefix]bool {
	installed, ours := make(map[netip.Prefix]route, len(have)), make(map[netip.Prefix]bool, len(have))
	for _, k := range have {
		r := fromKernel(k)
		ours[r.dst] = true
		if want[r.dst] == r {
			installed[r.dst] = r
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.installed = installed
	return ours
}

// setInstalled records a route before it is written or deleted, so that Watch recognizes the resulting event as Weft's
// own.
func (t *routing) setInstalled(r route, installed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if installed {
		t.installed[r.dst] = r
	} else {
		delete(t.installed, r.dst)
	}
}

// invalidate makes the next sync compare with the kernel.
func (t *routing) invalidate() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.installed = nil
}

// staleInstalled are the installed routes that are not desired.
func (t *routing) staleInstalled(want map[netip.Prefix]route) []netlink.Route {
	if len(t.installed) <= len(want)-len(t.failed) {
		return nil
	}
	var list []netlink.Route
	for _, dst := range slices.SortedFunc(maps.Keys(t.installed), comparePrefixes) {
		if _, ok := want[dst]; !ok {
			list = append(list, *t.installed[dst].toKernel())
		}
	}
	return list
}

// remove deletes routes of Weft's, which were read from the kernel (seen) or are only remembered.
func (t *routing) remove(c *changes, stale []netlink.Route, seen bool) error {
	var errs []error
	for _, k := range stale {
		dst := fromKernel(k).dst
		if _, wanted := t.want[dst]; !wanted {
			t.setInstalled(route{dst: dst}, false)
		}
		// A remembered route may have been deleted by another program, or with its link.
		if err := netlink.RouteDel(&k); err != nil && (seen || !errors.Is(err, unix.ESRCH)) {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", dst, err))
			continue
		}
		c.add("route to %s removed", dst)
	}
	return errors.Join(errs...)
}

// write adds the route. It replaces Weft's own route, or the one that the kernel adds with the gateway's address, but
// never a foreign one.
func (r route) write(foreign []netlink.Route, ours bool) error {
	replace := ours
	for _, k := range foreign {
		if r.gateway.IsValid() || k.Protocol != unix.RTPROT_KERNEL || k.LinkIndex != r.link {
			return fmt.Errorf("a route that is not Weft's exists and stays: %s; remove it, or the object that claims its range",
				k)
		}
		replace = true
	}
	if replace {
		return netlink.RouteReplace(r.toKernel())
	}
	return netlink.RouteAdd(r.toKernel())
}

// foreignRoutes are the routes of other programs to exactly these destinations, at any metric.
func foreignRoutes(to []route) (map[netip.Prefix][]netlink.Route, error) {
	found := map[netip.Prefix][]netlink.Route{}
	if noneExists(to) {
		return found, nil
	}
	sought := make(map[netip.Prefix]bool, len(to))
	for _, r := range to {
		sought[r.dst] = true
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

// noneExists reports, where that is cheap, that no route exists to exactly these destinations: there are few, each is a
// single address, and the kernel's lookup finds a route to a larger range. It saves a dump of all routes. It may return
// false although none exists.
func noneExists(to []route) bool {
	if len(to) > maxRouteLookups {
		return false
	}
	for _, r := range to {
		if !r.dst.IsSingleIP() {
			return false
		}
		found, err := netlink.RouteGetWithOptions(r.dst.Addr().AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
		if errors.Is(err, unix.ENETUNREACH) {
			continue // not even a default route
		}
		// Other errors may come from an unreachable or prohibit route.
		if err != nil || len(found) != 1 || found[0].Table != unix.RT_TABLE_MAIN ||
			found[0].Dst != nil && prefix(found[0].Dst) == r.dst {
			return false
		}
	}
	return true
}

func ourRoutes() ([]netlink.Route, error) {
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: RouteProtocol},
		netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return list, nil
}

func (r route) toKernel() *netlink.Route {
	k := &netlink.Route{
		Dst:       ipNet(r.dst),
		Src:       r.source.AsSlice(),
		LinkIndex: r.link,
		Protocol:  RouteProtocol,
		Priority:  r.metric,
		Table:     r.table,
	}
	switch {
	case r.link == 0:
		k.Type = unix.RTN_UNREACHABLE
	case r.gateway.IsValid():
		k.Gw = r.gateway.AsSlice()
		if r.onlink {
			k.Flags = int(netlink.FLAG_ONLINK)
		}
	default:
		k.Scope = netlink.SCOPE_LINK
	}
	return k
}

// fromKernel converts a route. One with attributes that Weft never sets gets an invalid link, so that it equals no
// desired route.
func fromKernel(k netlink.Route) route {
	r := route{link: k.LinkIndex, metric: k.Priority}
	if k.Table == serviceTable || k.Table == fallbackTable {
		r.table = k.Table
	}
	if k.Dst != nil {
		r.dst = prefix(k.Dst)
	}
	if a, ok := netip.AddrFromSlice(k.Gw); ok {
		r.gateway = a.Unmap()
	}
	if a, ok := netip.AddrFromSlice(k.Src); ok {
		r.source = a.Unmap()
	}
	r.onlink = k.Flags&int(netlink.FLAG_ONLINK) != 0
	switch {
	case k.Table != unix.RT_TABLE_MAIN && k.Table != serviceTable && k.Table != fallbackTable:
		r.link = -1
	case k.Type == unix.RTN_UNREACHABLE:
		r.link = 0 // the kernel reports loopback for IPv6
	case k.Type != unix.RTN_UNICAST:
		r.link = -1
	}
	return r
}

// relevant reports whether the event is a change of Weft's routes by another program, or a foreign route to a desired
// destination, which may have replaced Weft's.
func (t *routing) relevant(e netlink.RouteUpdate) bool {
	if e.Table == fallbackTable {
		return false // one changes with each Service's address, and the periodic comparison is soon enough
	}
	if e.Dst == nil || e.Table == serviceTable {
		return e.Protocol == RouteProtocol
	}
	dst := prefix(e.Dst)
	t.mu.Lock()
	_, wanted := t.want[dst]
	installed, ok := t.installed[dst]
	t.mu.Unlock()
	switch {
	case e.Protocol != RouteProtocol:
		return wanted && e.Table == unix.RT_TABLE_MAIN
	case e.Type == unix.RTM_NEWROUTE:
		return !ok || installed != fromKernel(e.Route)
	default:
		return ok && installed == fromKernel(e.Route)
	}
}
