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

// An external address is a Service's at the Service's ports alone: behind its other ports is whatever host has it. So
// no route leads there. nftables marks what the node sends, or forwards from elsewhere, to a Service's protocol and
// port; a rule for routing takes what is marked to a table whose default route is the switch.
const (
	// serviceMark is one bit, so that it gets along with what others mark. portmap and kube-proxy have the bits above.
	serviceMark = 0x1000
	// serviceTable is the routing table. The number is that of our zone for connections.
	serviceTable = 22373
	// serviceRulePriority is behind the table of the node's own addresses and before everything else that is usual.
	serviceRulePriority = 870
	// fallbackTable has the addresses themselves. It is asked last: where the node knows no route to an address, not
	// even a default one, no program could begin to send there, and nftables would have nothing to mark.
	fallbackTable    = 22374
	fallbackPriority = 32900
)

// Chains that mark. Later than connection tracking, which knows answers, and before translation and routing.
const (
	divertChain       = "to-services"
	divertInputChain  = "to-services-entered" // every packet from elsewhere
	divertOutputChain = "to-services-sent"    // every packet that the node makes
	unmarkChain       = "unmarked"            // every packet that leaves
)

var divertChains = []knftables.Chain{
	hooked(divertInputChain, knftables.FilterType, knftables.PreroutingHook, knftables.ManglePriority),
	hooked(divertOutputChain, knftables.RouteType, knftables.OutputHook, knftables.ManglePriority),
	hooked(unmarkChain, knftables.FilterType, knftables.PostroutingHook, knftables.ManglePriority),
}

// addDivertRules marks packets to Services' external addresses and ports. What pods send has been through the switch.
func addDivertRules(add func(chain, comment string, words ...any), gateway string) {
	add(divertChain, "answers: not to a Service", "ct direction reply return")
	for _, f := range families {
		add(divertChain, "Services' ports at external addresses",
			f.header, "daddr . meta l4proto . th dport", "@service-ports-"+f.suffix,
			"meta mark set mark or", fmt.Sprintf("%#x", serviceMark))
	}
	add(divertInputChain, "from elsewhere: perhaps to a Service", "iifname !=", gateway, "jump", divertChain)
	add(divertOutputChain, "of the node: perhaps to a Service", "jump", divertChain)
	// A tunnel routes by the mark of the packet inside.
	add(unmarkChain, "not needed any more", "oifname", gateway, "meta mark and", fmt.Sprintf("%#x", serviceMark), "!= 0",
		"meta mark set mark and", fmt.Sprintf("%#x", ^uint32(serviceMark)))
}

// ServicePort is a port of an external or LoadBalancer address.
type ServicePort struct {
	Addr     netip.Addr
	Protocol model.Protocol
	Port     uint16
}

func (p ServicePort) check() error {
	if !plain(p.Addr) || p.Protocol.Number() == 0 || p.Port == 0 {
		return fmt.Errorf("invalid port of a Service: %d/%s at %s", p.Port, p.Protocol, p.Addr)
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

// nothingGone is for sets whose elements stand for no translation of ours, or for one that only we make.
func nothingGone(_, _ []element) goneTranslations { return goneTranslations{} }

// diverted is a destination in one of our routing tables.
type diverted struct {
	table int
	dst   netip.Prefix
}

// divert keeps the routing tables for Services' external addresses and the rules that lead there. With compare it
// looks at the kernel; otherwise it trusts what it remembers.
func (h *Host) divert(c *changes, link netlink.Link, d Desired, compare bool) error {
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
		errs = append(errs, divertRules(c, d))
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

// divertRoutes are the routes of our tables.
func divertRoutes(d Desired, link int) map[diverted]route {
	want := make(map[diverted]route, len(d.ServicePorts)+2)
	add := func(table int, dst netip.Prefix) {
		is4 := dst.Addr().Is4()
		pods, ok := d.local(is4)
		if !ok {
			return
		}
		r := route{dst: dst, gateway: model.NodePortAddr(is4), source: model.GatewayAddr(pods), link: link, table: table}
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

// haveDiverted are the kernel's. Of two routes to one destination one is in the result, and then replaced or removed.
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

func divertRules(c *changes, d Desired) error {
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

// sameRoutingRule compares a rule of ours with one of the kernel's.
func sameRoutingRule(want, have netlink.Rule) bool {
	mask := func(r netlink.Rule) uint32 {
		if r.Mask == nil {
			return 0
		}
		return *r.Mask
	}
	return have.Src == nil && have.Dst == nil && have.IifName == "" && have.OifName == "" &&
		!have.Invert && have.IPProto == 0 && have.Priority == want.Priority && have.Table == want.Table && have.Mark == want.Mark && mask(have) == mask(want)
}
