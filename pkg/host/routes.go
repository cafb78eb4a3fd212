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

// ipv6DefaultMetric is what the kernel gives IPv6 routes that ask for none.
const ipv6DefaultMetric = 1024

// fewRoutes is up to how many new routes the kernel is asked one by one whether somebody else has them.
const fewRoutes = 16

// routing keeps the routes right. There is one for each node, so it remembers which of ours the kernel
// has and, between two comparisons with the kernel, writes differences only.
type routing struct {
	mu sync.Mutex // Watch reads want and made
	// want are the routes of the last sync.
	want map[netip.Prefix]route
	// made are the routes that are in the kernel by our hand; nil when that is not known.
	made map[netip.Prefix]route
	// refused are those that could not be made. They are tried again with the next change or comparison.
	refused map[netip.Prefix]refusal
	// from is what want was made of.
	from ways
}

// ways is what routes depend on.
type ways struct {
	link                                   int
	podCIDRs, remotePodCIDRs, serviceCIDRs []netip.Prefix
}

func (w ways) equal(o ways) bool {
	return w.link == o.link && slices.Equal(w.podCIDRs, o.podCIDRs) && slices.Equal(w.remotePodCIDRs, o.remotePodCIDRs) &&
		slices.Equal(w.serviceCIDRs, o.serviceCIDRs)
}

type refusal struct {
	route route
	err   error
	order int
}

// route is what of a route is ours to decide.
type route struct {
	dst     netip.Prefix
	gateway netip.Addr // none for what is on the link
	source  netip.Addr
	link    int // 0 for a route that leads nowhere
	metric  int
	table   int // 0 for the main one
}

// essential routes are those without which the node cannot work: to its own pods and to the switch's own addresses.
func (r route) essential() bool { return !r.gateway.IsValid() }

// desiredRoutes are the routes to all pods and cluster IPs, one to each destination, in the order of Desired.
func desiredRoutes(d Desired, link int) []route {
	list := make([]route, 0, len(d.PodCIDRs)+len(d.RemotePodCIDRs)+len(d.ServiceCIDRs)+8)
	var source [2]netip.Addr // by family
	for _, p := range d.PodCIDRs {
		source[index(p.Addr().Is4())] = model.GatewayAddr(p)
	}
	add := func(dst netip.Prefix, via netip.Addr, link int) {
		r := route{dst: dst, gateway: via, source: source[index(dst.Addr().Is4())], link: link}
		if !r.source.IsValid() {
			return // not the node's family
		}
		if dst.Addr().Is6() {
			r.metric = ipv6DefaultMetric
		}
		if link == 0 {
			r.source = netip.Addr{}
		}
		list = append(list, r)
	}
	for _, p := range d.PodCIDRs {
		add(p, netip.Addr{}, link)
	}
	for _, is4 := range []bool{true, false} {
		// Replies to the Masquerade address have to reach the switch; and rp_filter asks for the way back.
		add(single(model.NodePortAddr(is4)), netip.Addr{}, link)
		add(model.UDPNodePorts(is4), model.NodePortAddr(is4), link)
		add(single(model.MasqueradeAddr(is4)), netip.Addr{}, link)
		// Never used as long as nftables rejects what comes for it. Without, nothing may follow the default route.
		add(single(model.RejectAddr(is4)), netip.Addr{}, 0)
	}
	for _, p := range d.RemotePodCIDRs {
		add(p, model.GatewayAddr(p), link)
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

// sync makes the routes first and removes the stale ones then, so that a change of one leaves no gap. One that cannot be
// made does not keep the others from it. With compare, or when it has to, it looks at the kernel first.
func (t *routing) sync(c *changes, link netlink.Link, d Desired, compare bool) error {
	err := t.write(c, link, d, compare)
	if err != nil {
		t.forget() // so that the next one tries again
	}
	return err
}

func (t *routing) write(c *changes, link netlink.Link, d Desired, compare bool) error {
	from := ways{link.Attrs().Index, d.PodCIDRs, d.RemotePodCIDRs, d.ServiceCIDRs}
	if !compare && t.made != nil && t.from.equal(from) {
		return t.report(c)
	}
	want := make(map[netip.Prefix]route, len(d.RemotePodCIDRs))
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
	t.from = from
	var have []netlink.Route
	ours := map[netip.Prefix]bool{} // whatever we have to these
	if compare || t.made == nil {
		var err error
		if have, err = ourRoutes(); err != nil {
			return err
		}
		ours = t.learn(have, want)
		compare = true
	}
	t.refused = map[netip.Prefix]refusal{}
	var missing []route
	for _, r := range order {
		if t.made[r.dst] != r {
			missing = append(missing, r)
		}
	}
	foreign, err := foreignRoutes(missing)
	if err != nil {
		return err
	}
	for _, r := range missing {
		old, replace := t.made[r.dst]
		t.note(r, true)
		if err := r.write(foreign[r.dst], replace || ours[r.dst]); err != nil {
			t.note(old, replace)
			if !replace {
				t.note(r, false)
			}
			t.refused[r.dst] = refusal{r, fmt.Errorf("add route to %s through %s: %w", r.dst, d.Gateway, err), len(t.refused)}
			continue
		}
		c.add("route to %s added", r.dst)
	}
	var stale []netlink.Route
	switch {
	case !compare:
		stale = t.unwanted(want)
	case len(missing) > 0:
		// Asked anew: what a new route replaced is gone, and deleting it nevertheless might hit the new one.
		if have, err = ourRoutes(); err != nil {
			return err
		}
		fallthrough
	default:
		stale = slices.DeleteFunc(have, func(k netlink.Route) bool { r := fromKernel(k); return want[r.dst] == r })
	}
	return errors.Join(t.remove(c, stale, compare), t.report(c))
}

// report says which routes could not be made.
func (t *routing) report(c *changes) error {
	var errs []error
	for _, r := range slices.SortedFunc(maps.Values(t.refused), func(a, b refusal) int {
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

// learn remembers which of the routes the kernel has. It returns all destinations to which there is one of ours, right or not.
func (t *routing) learn(have []netlink.Route, want map[netip.Prefix]route) map[netip.Prefix]bool {
	made, ours := make(map[netip.Prefix]route, len(have)), make(map[netip.Prefix]bool, len(have))
	for _, k := range have {
		r := fromKernel(k)
		ours[r.dst] = true
		if want[r.dst] == r {
			made[r.dst] = r
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.made = made
	return ours
}

// note says what of us is in the kernel, before it is done: Watch shall know the event that it causes.
func (t *routing) note(r route, made bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if made {
		t.made[r.dst] = r
	} else {
		delete(t.made, r.dst)
	}
}

// forget makes the next sync look at the kernel.
func (t *routing) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.made = nil
}

// unwanted are those that we made and that are not wanted any more.
func (t *routing) unwanted(want map[netip.Prefix]route) []netlink.Route {
	if len(t.made) <= len(want)-len(t.refused) {
		return nil
	}
	var list []netlink.Route
	for _, dst := range slices.SortedFunc(maps.Keys(t.made), comparePrefixes) {
		if _, ok := want[dst]; !ok {
			list = append(list, *t.made[dst].toKernel())
		}
	}
	return list
}

// remove removes routes of ours. They were seen in the kernel, or are remembered only.
func (t *routing) remove(c *changes, stale []netlink.Route, seen bool) error {
	var errs []error
	for _, k := range stale {
		dst := fromKernel(k).dst
		if _, wanted := t.want[dst]; !wanted {
			t.note(route{dst: dst}, false)
		}
		// What is gone already was removed by somebody else, or went with its link.
		if err := netlink.RouteDel(&k); err != nil && (seen || !errors.Is(err, unix.ESRCH)) {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", dst, err))
			continue
		}
		c.add("route to %s removed", dst)
	}
	return errors.Join(errs...)
}

// write makes the route. It replaces one of ours, or the one that the kernel makes of the gateway's address, but nobody
// else's.
func (r route) write(foreign []netlink.Route, ours bool) error {
	replace := ours
	for _, k := range foreign {
		if r.gateway.IsValid() || k.Protocol != unix.RTPROT_KERNEL || k.LinkIndex != r.link {
			return fmt.Errorf("there is one that is not Weft's, which stays: %s; remove it, or the object that claims its range", k)
		}
		replace = true
	}
	if replace {
		return netlink.RouteReplace(r.toKernel())
	}
	return netlink.RouteAdd(r.toKernel())
}

// foreignRoutes are the routes to exactly these destinations, at any metric, that are not ours.
func foreignRoutes(to []route) (map[netip.Prefix][]netlink.Route, error) {
	found := map[netip.Prefix][]netlink.Route{}
	if allFree(to) {
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

// allFree spares the list of all routes where it can: when there are few destinations, each a single address, and the kernel
// finds no route that is to just one of them. It may be false for no reason.
func allFree(to []route) bool {
	if len(to) > fewRoutes {
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
		// Other errors may come of a route that is there to refuse.
		if err != nil || len(found) != 1 || found[0].Table != unix.RT_TABLE_MAIN || found[0].Dst != nil && prefix(found[0].Dst) == r.dst {
			return false
		}
	}
	return true
}

func ourRoutes() ([]netlink.Route, error) {
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
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
		k.Flags = int(netlink.FLAG_ONLINK)
	default:
		k.Scope = netlink.SCOPE_LINK
	}
	return k
}

// fromKernel gives a route that is not as we make them a link that there is not, so that it equals none of ours.
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
	onlink := k.Flags&int(netlink.FLAG_ONLINK) != 0
	switch {
	case k.Table != unix.RT_TABLE_MAIN && k.Table != serviceTable && k.Table != fallbackTable:
		r.link = -1
	case k.Type == unix.RTN_UNREACHABLE:
		r.link = 0 // the kernel says loopback for IPv6
	case k.Type != unix.RTN_UNICAST, onlink != r.gateway.IsValid():
		r.link = -1
	}
	return r
}

// concerns is true for a change of our routes that is not our own doing, and for other routes to where ours lead, which may have
// replaced one.
func (t *routing) concerns(e netlink.RouteUpdate) bool {
	if e.Table == fallbackTable {
		return false // one changes with each Service's address, and where it matters at all a comparison is soon enough
	}
	if e.Dst == nil || e.Table == serviceTable {
		return e.Protocol == RouteProtocol
	}
	dst := prefix(e.Dst)
	t.mu.Lock()
	_, wanted := t.want[dst]
	made, ok := t.made[dst]
	t.mu.Unlock()
	switch {
	case e.Protocol != RouteProtocol:
		return wanted && e.Table == unix.RT_TABLE_MAIN
	case e.Type == unix.RTM_NEWROUTE:
		return !ok || made != fromKernel(e.Route)
	default:
		return ok && made == fromKernel(e.Route)
	}
}
