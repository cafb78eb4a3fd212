package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

// An external address is a Service's at the Service's ports alone: behind its other ports is whatever host has it. So no
// route leads there. nftables marks what the node sends, or forwards from elsewhere, to a Service's protocol and port; a
// rule for routing takes what is marked to a table whose default route is the switch.
const (
	// serviceMark is one bit, so that it gets along with what others mark. portmap and kube-proxy have the bits above.
	serviceMark = 0x1000
	// serviceTable is the routing table. The number is that of our zone for connections.
	serviceTable = 22373
	// serviceRulePriority is behind the table of the node's own addresses and before everything else that is usual.
	serviceRulePriority = 870
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
			f.header, "daddr . meta l4proto . th dport", "@service-ports-"+f.suffix, "meta mark set mark or", fmt.Sprintf("%#x", serviceMark))
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

// divert keeps the routing table for Services' external addresses and the rules that lead there.
func divert(c *changes, link netlink.Link, d Desired) error {
	return errors.Join(divertRoutes(c, link, d), divertRules(c, d))
}

func divertRoutes(c *changes, link netlink.Link, d Desired) error {
	have, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: serviceTable}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes of table %d: %w", serviceTable, err)
	}
	var errs []error
	for _, is4 := range []bool{true, false} {
		pods, ok := d.local(is4)
		if !ok {
			continue
		}
		want := route{
			dst: netip.PrefixFrom(ofFamily(is4), 0), gateway: model.NodePortAddr(is4), source: model.GatewayAddr(pods),
			link: link.Attrs().Index, table: serviceTable,
		}
		if !is4 {
			want.metric = ipv6DefaultMetric
		}
		kept := slices.DeleteFunc(have, func(k netlink.Route) bool { return fromKernel(k) == want })
		if len(kept) < len(have) {
			have = kept
			continue
		}
		if err := netlink.RouteReplace(want.toKernel()); err != nil {
			errs = append(errs, fmt.Errorf("add default route of table %d through %s: %w", serviceTable, d.Gateway, err))
			continue
		}
		c.add("default route of table %d to %s added", serviceTable, want.gateway)
		have = slices.DeleteFunc(have, func(k netlink.Route) bool { // replaced
			r := fromKernel(k)
			return r.dst == want.dst && r.metric == want.metric
		})
	}
	for _, k := range have {
		if k.Protocol != RouteProtocol {
			continue
		}
		if err := netlink.RouteDel(&k); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove a route of table %d: %w", serviceTable, err))
			continue
		}
		c.add("route of table %d to %s removed", serviceTable, fromKernel(k).dst)
	}
	return errors.Join(errs...)
}

func ofFamily(is4 bool) netip.Addr {
	if is4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
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
		_, missing := d.local(is4)
		for _, r := range have {
			if r.Protocol != uint8(RouteProtocol) {
				continue
			}
			plain := r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == "" && !r.Invert && r.IPProto == 0
			if missing && plain && r.Priority == serviceRulePriority && r.Table == serviceTable && r.Mark == serviceMark && r.Mask != nil && *r.Mask == mask {
				missing = false
				continue
			}
			r.Family = family
			if err := netlink.RuleDel(&r); err != nil {
				errs = append(errs, fmt.Errorf("remove routing rule %s: %w", r, err))
				continue
			}
			c.add("routing rule of priority %d removed", r.Priority)
		}
		if !missing {
			continue
		}
		r := netlink.NewRule()
		r.Family, r.Priority, r.Mark, r.Mask, r.Table, r.Protocol = family, serviceRulePriority, serviceMark, &mask, serviceTable, uint8(RouteProtocol)
		if err := netlink.RuleAdd(r); err != nil {
			errs = append(errs, fmt.Errorf("add routing rule for packets to Services (fwmark %#x): %w", serviceMark, err))
			continue
		}
		c.add("routing rule for packets to Services added (fwmark %#x to table %d)", serviceMark, serviceTable)
	}
	return errors.Join(errs...)
}
