package host

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

// A Service has an external address only at its own ports; the address's other ports belong to the host that has the
// address. So there is no route to it. nftables marks packets that the node sends, or forwards from other hosts, to a
// Service's protocol and port; a routing rule sends marked packets to a table whose default route leads to the switch.
const (
	// serviceMark is a single bit, so that it coexists with the marks of other programs. portmap and kube-proxy use the
	// bits above.
	serviceMark = 0x1000
	// serviceTable is the routing table; its number is also that of Weft's conntrack zone.
	serviceTable = 22373
	// serviceRulePriority comes after the local table and before all other usual rules.
	serviceRulePriority = 870
	// fallbackTable has routes to the addresses themselves and is looked up last. Without any route to an address, not
	// even a default one, a program's connect fails and nftables has no packet to mark.
	fallbackTable    = 22374
	fallbackPriority = 32900
)

// Chains that mark packets: after conntrack, which identifies replies, and before NAT and routing.
const (
	divertChain       = "to-services"
	divertInputChain  = "to-services-entered" // every packet from another host or a pod
	divertOutputChain = "to-services-sent"    // every packet of the node's own processes
	unmarkChain       = "unmarked"            // every packet that leaves
)

var divertChains = []knftables.Chain{
	hooked(divertInputChain, knftables.FilterType, knftables.PreroutingHook, knftables.ManglePriority),
	hooked(divertOutputChain, knftables.RouteType, knftables.OutputHook, knftables.ManglePriority),
	hooked(unmarkChain, knftables.FilterType, knftables.PostroutingHook, knftables.ManglePriority),
}

// addDivertRules marks packets to Services' external addresses and ports. Packets that pods send have passed the switch
// before.
func addDivertRules(add func(chain, comment string, words ...any), gateway string) {
	add(divertChain, "answers: not to a Service", "ct direction reply return")
	for _, f := range families {
		add(divertChain, "Services' ports at external addresses",
			f.header, "daddr . meta l4proto . th dport", "@service-ports-"+f.suffix,
			"meta mark set mark or", fmt.Sprintf("%#x", serviceMark))
	}
	add(divertInputChain, "from elsewhere: perhaps to a Service", "iifname !=", gateway, "jump", divertChain)
	add(divertOutputChain, "of the node: perhaps to a Service", "jump", divertChain)
	// A tunnel routes the outer packet by the mark of the inner one.
	add(unmarkChain, "not needed any more", "oifname", gateway, "meta mark and", fmt.Sprintf("%#x", serviceMark), "!= 0",
		"meta mark set mark and", fmt.Sprintf("%#x", ^uint32(serviceMark)))
}

// ServicePort is a port of an external IP or a load balancer's address.
type ServicePort struct {
	Addr     netip.Addr
	Protocol model.Protocol
	Port     uint16
}

func (p ServicePort) check() error {
	if !routable(p.Addr) || p.Protocol.Number() == 0 || p.Port == 0 {
		return fmt.Errorf("invalid Service port %d/%s at %s", p.Port, p.Protocol, p.Addr)
	}
	return nil
}

func compareServicePorts(a, b ServicePort) int {
	return compareElements(a.element(), b.element())
}

func (p ServicePort) element() element {
	return element{prefix: single(p.Addr), protocol: p.Protocol, port: p.Port}
}

func servicePorts(d Desired, is4 bool) []element {
	var list []element
	for _, p := range d.ServicePorts {
		if _, routed := d.local(is4); routed && p.Addr.Is4() == is4 {
			list = append(list, p.element())
		}
	}
	return list
}

// noTranslationsRemoved is for sets whose elements cause no NAT, or NAT that is recognizable as Weft's without memory.
func noTranslationsRemoved(_, _ []element) removedTranslations { return removedTranslations{} }

// diverted identifies a route in one of Weft's routing tables.
type diverted struct {
	table int
	dst   netip.Prefix
}

// syncDivert writes the routing tables and rules for Services' external addresses. With compare it reads them from the
// kernel first; otherwise it relies on the routes that it remembers.
func (h *Host) syncDivert(c *changes, link netlink.Link, d Desired, compare bool) error {
	compare = compare || h.diverted == nil
	want := divertRoutes(d, link.Attrs().Index)
	if !compare && maps.Equal(want, h.diverted) {
		return nil
	}
	have := h.diverted
	var errs []error
	if compare {
		var err error
		if have, err = haveDiverted(); err != nil {
			return err
		}
		errs = append(errs, syncDivertRules(c, d))
	}
	for at, r := range want {
		old, replace := have[at]
		if old == r {
			continue
		}
		if replace && old.metric != r.metric {
			errs = append(errs, remove(old))
		}
		if err := netlink.RouteReplace(r.toKernel()); err != nil {
			errs = append(errs, fmt.Errorf("add route to %s in table %d: %w", at.dst, at.table, err))
			continue
		}
		c.add("route to %s in table %d added", at.dst, at.table)
	}
	for at, r := range have {
		if _, wanted := want[at]; wanted {
			continue
		}
		errs = append(errs, remove(r))
		c.add("route to %s in table %d removed", at.dst, at.table)
	}
	err := errors.Join(errs...)
	h.diverted = want
	if err != nil {
		h.diverted = nil
	}
	return err
}

func remove(r route) error {
	if err := netlink.RouteDel(r.toKernel()); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route to %s in table %d: %w", r.dst, r.table, err)
	}
	return nil
}

// divertRoutes are the desired routes of these tables.
func divertRoutes(d Desired, link int) map[diverted]route {
	want := make(map[diverted]route, len(d.ServicePorts)+2)
	add := func(table int, dst netip.Prefix) {
		is4 := dst.Addr().Is4()
		pods, ok := d.local(is4)
		if !ok {
			return
		}
		r := route{
			dst: dst, gateway: model.NodePortAddr(is4), onlink: true, source: model.GatewayAddr(pods), link: link, table: table,
		}
		if !is4 {
			r.metric = ipv6DefaultMetric
		}
		want[diverted{table, dst}] = r
	}
	for _, all := range everywhere {
		add(serviceTable, all)
	}
	for _, p := range d.ServicePorts {
		add(fallbackTable, single(p.Addr))
	}
	return want
}

// haveDiverted are the kernel's routes of these tables. Of two routes to one destination it returns one, which is then
// replaced or removed.
func haveDiverted() (map[diverted]route, error) {
	have := map[diverted]route{}
	for _, table := range []int{serviceTable, fallbackTable} {
		filter := &netlink.Route{Table: table, Protocol: RouteProtocol}
		list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return nil, fmt.Errorf("list routes of table %d: %w", table, err)
		}
		for _, k := range list {
			r := fromKernel(k)
			have[diverted{table, r.dst}] = r
		}
	}
	return have, nil
}

func syncDivertRules(c *changes, d Desired) error {
	mask := uint32(serviceMark)
	var errs []error
	for family, is4 := range map[int]bool{netlink.FAMILY_V4: true, netlink.FAMILY_V6: false} {
		have, err := netlink.RuleList(family)
		if err != nil {
			errs = append(errs, fmt.Errorf("list routing rules: %w", err))
			continue
		}
		var want []netlink.Rule
		if _, ok := d.local(is4); ok {
			marked, last := netlink.NewRule(), netlink.NewRule()
			marked.Priority, marked.Mark, marked.Mask, marked.Table = serviceRulePriority, serviceMark, &mask, serviceTable
			last.Priority, last.Table = fallbackPriority, fallbackTable
			want = []netlink.Rule{*marked, *last}
		}
		for _, r := range have {
			if r.Protocol != uint8(RouteProtocol) {
				continue
			}
			others := slices.DeleteFunc(slices.Clone(want), func(w netlink.Rule) bool { return sameRoutingRule(w, r) })
			if len(others) < len(want) {
				want = others
				continue
			}
			r.Family = family
			if err := netlink.RuleDel(&r); err != nil {
				errs = append(errs, fmt.Errorf("remove routing rule %s: %w", r, err))
				continue
			}
			c.add("routing rule of priority %d removed", r.Priority)
		}
		for _, r := range want {
			r.Family, r.Protocol = family, uint8(RouteProtocol)
			if err := netlink.RuleAdd(&r); err != nil {
				errs = append(errs, fmt.Errorf("add routing rule for packets to Services (priority %d): %w", r.Priority, err))
				continue
			}
			c.add("routing rule of priority %d to table %d added", r.Priority, r.Table)
		}
	}
	return errors.Join(errs...)
}

// sameRoutingRule compares a desired rule with one of the kernel.
func sameRoutingRule(want, have netlink.Rule) bool {
	mask := func(r netlink.Rule) uint32 {
		if r.Mask == nil {
			return 0
		}
		return *r.Mask
	}
	return have.Src == nil && have.Dst == nil && have.IifName == "" && have.OifName == "" && !have.Invert &&
		have.IPProto == 0 && have.Priority == want.Priority && have.Table == want.Table &&
		have.Mark == want.Mark && mask(have) == mask(want)
}
