package host

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"sigs.k8s.io/knftables"
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

// ruleKey is a routing rule of Weft's.
type ruleKey struct {
	family, priority, table int
	mark, mask              uint32
	// other describes a rule with attributes that Weft never sets.
	other string
}

// syncRules writes the routing rules for Services' external addresses. With compare, or to change something, it reads
// the kernel's rules first.
func (h *Host) syncRules(c *changes, d Desired, compare bool) error {
	var want []entry[ruleKey, struct{}]
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if _, ok := d.local(family == netlink.FAMILY_V4); ok {
			for _, k := range []ruleKey{
				{family: family, priority: serviceRulePriority, table: serviceTable, mark: serviceMark, mask: serviceMark},
				{family: family, priority: fallbackPriority, table: fallbackTable},
			} {
				want = append(want, entry[ruleKey, struct{}]{key: k})
			}
		}
	}
	h.rules.desire(want)
	if !compare && h.rules.inSync() {
		return nil
	}
	have, rules, err := ourRules()
	if err != nil {
		return err
	}
	return h.rules.sync(have, func(e entry[ruleKey, struct{}]) error {
		r := rules[e.key]
		if err := netlink.RuleDel(&r); err != nil {
			return fmt.Errorf("remove routing rule %s: %w", r, err)
		}
		c.add("routing rule of priority %d removed", e.key.priority)
		return nil
	}, func(e entry[ruleKey, struct{}], _ bool) error {
		r, k := netlink.NewRule(), e.key
		r.Family, r.Protocol, r.Priority, r.Table, r.Mark = k.family, uint8(RouteProtocol), k.priority, k.table, k.mark
		if k.mask != 0 {
			r.Mask = &k.mask
		}
		if err := netlink.RuleAdd(r); err != nil {
			return fmt.Errorf("add routing rule for packets to Services (priority %d): %w", k.priority, err)
		}
		c.add("routing rule of priority %d to table %d added", k.priority, k.table)
		return nil
	})
}

// ourRules are the kernel's rules with Weft's protocol number.
func ourRules() (keys map[ruleKey]struct{}, rules map[ruleKey]netlink.Rule, err error) {
	keys, rules = map[ruleKey]struct{}{}, map[ruleKey]netlink.Rule{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := netlink.RuleList(family)
		if err != nil {
			return nil, nil, fmt.Errorf("list routing rules: %w", err)
		}
		for _, r := range have {
			if r.Protocol != uint8(RouteProtocol) {
				continue
			}
			r.Family = family
			k := ruleKey{family: family, priority: r.Priority, table: r.Table, mark: r.Mark}
			if r.Mask != nil {
				k.mask = *r.Mask
			}
			if r.Src != nil || r.Dst != nil || r.IifName != "" || r.OifName != "" || r.Invert || r.IPProto != 0 {
				k.other = r.String()
			}
			keys[k], rules[k] = struct{}{}, r
		}
	}
	return keys, rules, nil
}
