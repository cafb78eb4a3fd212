package host

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

// What our nftables table is made of: chains, rules that do not grow with the cluster, and sets and maps that do.

// Our chains. Those with a hook see the packets that the comment says.
const (
	preroutingChain  = "prerouting"   // first packets of connections from elsewhere, before routing
	outputChain      = "output"       // first packets of connections of the node's own processes
	servicesChain    = "services"     // both, when they are for an address of the node
	postroutingChain = "postrouting"  // first packets of connections that leave the node
	arrivedChain     = "arrived"      // every packet from elsewhere, after translation of its destination
	sentChain        = "sent-by-node" // every packet that the node makes
)

// Chains that are jumped to come first.
var chains = slices.Concat([]knftables.Chain{
	{Name: servicesChain},
	{Name: divertChain},
	hooked(preroutingChain, knftables.NATType, knftables.PreroutingHook, knftables.DNATPriority),
	hooked(outputChain, knftables.NATType, knftables.OutputHook, knftables.DNATPriority),
	hooked(postroutingChain, knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority),
	// Before the host's own filters, which are in the hooks input and forward. Connection tracking comes earlier: what we answer
	// to a connection that it knows is part of that connection.
	hooked(arrivedChain, knftables.FilterType, knftables.PreroutingHook, knftables.FilterPriority),
	hooked(sentChain, knftables.FilterType, knftables.OutputHook, knftables.FilterPriority),
}, rawChains, divertChains)

func hooked(name string, kind knftables.BaseChainType, hook knftables.BaseChainHook, priority knftables.BaseChainPriority) knftables.Chain {
	return knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority}
}

// set is one of our sets or, when it has values, maps.
type set struct {
	name       string
	is4        bool
	key, value string // types
	interval   bool
	elements   func(d Desired, is4 bool) []element
	// gone are the translations that are not made any more when these elements went and those came.
	gone func(went, came []element) goneTranslations
}

// sets are in the order in which they are written. A hash set finds an element among 10,000 as fast as among ten.
var sets = []set{
	{name: "pods-v4", is4: true, key: "ipv4_addr", interval: true, elements: pods, gone: nothingGone},
	{name: "pods-v6", key: "ipv6_addr", interval: true, elements: pods, gone: nothingGone},
	{name: "service-ports-v4", is4: true, key: "ipv4_addr . inet_proto . inet_service", elements: servicePorts, gone: nothingGone},
	{name: "service-ports-v6", key: "ipv6_addr . inet_proto . inet_service", elements: servicePorts, gone: nothingGone},
	{name: "nodes-v4", is4: true, key: "ipv4_addr", elements: nodes, gone: nodesGone},
	{name: "nodes-v6", key: "ipv6_addr", elements: nodes, gone: nodesGone},
	{name: "direct-v4", is4: true, key: "ipv4_addr", interval: true, elements: direct, gone: directGone},
	{name: "direct-v6", key: "ipv6_addr", interval: true, elements: direct, gone: directGone},
	{
		name: "node-ports-v4", is4: true, key: "inet_proto . inet_service", value: "ipv4_addr . inet_service",
		elements: nodePorts, gone: nothingGone,
	},
	{
		name: "node-ports-v6", key: "inet_proto . inet_service", value: "ipv6_addr . inet_service",
		elements: nodePorts, gone: nothingGone,
	},
	{name: "host-ports-v4", is4: true, key: "inet_proto . inet_service", value: "ipv4_addr . inet_service", elements: hostPorts, gone: nothingGone},
	{name: "host-ports-v6", key: "inet_proto . inet_service", value: "ipv6_addr . inet_service", elements: hostPorts, gone: nothingGone},
	{
		name: "host-ports-at-v4", is4: true, key: "ipv4_addr . inet_proto . inet_service", value: "ipv4_addr . inet_service",
		elements: hostPortsAt, gone: nothingGone,
	},
	{
		name: "host-ports-at-v6", key: "ipv6_addr . inet_proto . inet_service", value: "ipv6_addr . inet_service",
		elements: hostPortsAt, gone: nothingGone,
	},
	{name: "host-port-pods-v4", is4: true, key: "ipv4_addr . ipv4_addr", elements: hostPortPods, gone: nothingGone},
	{name: "host-port-pods-v6", key: "ipv6_addr . ipv6_addr", elements: hostPortPods, gone: nothingGone},
	{name: "external-v4", is4: true, key: "ipv4_addr . inet_proto . inet_service", value: "ipv4_addr . inet_service", elements: externalIPs, gone: externalGone},
	{name: "external-v6", key: "ipv6_addr . inet_proto . inet_service", value: "ipv6_addr . inet_service", elements: externalIPs, gone: externalGone},
}

// family is one address family's part of the rules.
type family struct {
	is4    bool
	header string // as rules match it: "ip saddr"
	proto  string // as meta nfproto has it
	suffix string // of the family's sets
	// notOffered are addresses of the node at which there are no node ports.
	notOffered string
	redirect   string // matches an ICMP redirect
	loopback   string // addresses that no link has but lo
	linkLocal  string
}

var families = []family{
	{
		is4: true, header: "ip", proto: "ipv4", suffix: "v4", notOffered: "127.0.0.0/8", redirect: "icmp type redirect",
		loopback: "127.0.0.0/8", linkLocal: "169.254.0.0/16",
	},
	{
		is4: false, header: "ip6", proto: "ipv6", suffix: "v6", notOffered: "{ ::1 , fe80::/10 }", redirect: "icmpv6 type nd-redirect",
		loopback: "::1", linkLocal: "fe80::/10",
	},
}

// rules are all chains'. They depend on the node and the configuration, not on pods or Services.
func rules(d Desired) []*knftables.Rule {
	var list []*knftables.Rule
	add := func(chain, comment string, words ...any) {
		text := knftables.Concat(words...)
		sum := fnv.New32a()
		sum.Write([]byte(text))
		list = append(list, &knftables.Rule{
			Chain:   chain,
			Rule:    text,
			Comment: knftables.PtrTo(fmt.Sprintf("%s (%08x)", comment, sum.Sum32())),
		})
	}
	privileged := fmt.Sprintf("< %d", model.FirstUnprivilegedPort)
	// Open vSwitch's userspace datapath takes whatever comes to a tunnel's UDP port, an answer to a masqueraded
	// packet, too. Without a range, the kernel keeps a privileged port privileged.
	masqueraded := func(comment string, words ...any) {
		ports := fmt.Sprintf(":%d-65535", max(model.Geneve.UDPPort(), model.VXLAN.UDPPort())+1)
		add(postroutingChain, comment+", UDP beside the tunnels' ports", append(slices.Clone(words), "udp sport >=", model.FirstUnprivilegedPort, "masquerade to", ports, "fully-random")...)
		add(postroutingChain, comment, append(slices.Clone(words), "masquerade fully-random")...)
	}
	for _, chain := range []string{preroutingChain, outputChain} {
		add(chain, "to addresses of the node: perhaps a Service", "fib daddr type local", "jump", servicesChain)
	}
	gateway := `"` + d.Gateway + `"`
	addDivertRules(add, gateway)
	for _, f := range families {
		addTunnelRules(add, f)
		local, ok := d.local(f.is4)
		if !ok {
			continue
		}
		addForgedRules(add, gateway, f)
		own, masquerade := model.GatewayAddr(local).String(), model.MasqueradeAddr(f.is4).String()
		// Node ports are offered at all other addresses of the node, to whoever comes: by an uplink, as a process of the node, or
		// as a pod through the gateway, whose packets go back there with their source and another destination. No rule here
		// looks at the source except the first: what a Service has led to an address of the node must arrive there, also when
		// a hostNetwork pod listens at its Service's own node port or external address.
		add(servicesChain, "out of a Service: not into another",
			f.header, "saddr", masquerade, "return")
		add(servicesChain, "not offered at loopback and link-local addresses",
			f.header, "daddr", f.notOffered, "return")
		// Anybody may write an address of the node and a tunnel's port into externalIPs, and would have all nodes' packets.
		add(servicesChain, "tunnels: not a Service",
			"meta nfproto", f.proto, "udp dport", "{", model.VXLAN.UDPPort(), ",", model.Geneve.UDPPort(), "}", "return")
		add(servicesChain, "external addresses that are the node's: to the switch",
			"dnat", f.header, "to", f.header, "daddr . meta l4proto . th dport map", "@external-"+f.suffix)
		nodePortAt := []any{"meta nfproto", f.proto}
		if at := d.nodePortAddrs(f.is4); len(at) > 0 {
			nodePortAt = []any{f.header, "daddr", oneOf(at)}
		}
		add(servicesChain, "node ports: to the switch", append(nodePortAt, "dnat", f.header, "to", "meta l4proto . th dport map", "@node-ports-"+f.suffix)...)
		addHostPortRules(add, f, own)

		// Other nodes accept from our tunnel only what this node owns, so the node's other addresses must not appear there.
		// For the same reason the switch sees the node's own use of Services come from the gateway address. The sources of
		// others stay, for the switch to decide about. Answers to the Masquerade address are no connections of
		// the node's, even when the kernel has forgotten them.
		from := func(r model.PortRange) string {
			return fmt.Sprintf("%s-%d", netip.AddrPortFrom(model.GatewayAddr(local), r.First), r.Last)
		}
		between := func(r model.PortRange) string { return fmt.Sprintf("%d-%d", r.First, r.Last) }
		// A node port's client of the node itself keeps the one address that others do accept.
		if d.Address.IsValid() && d.Address.Is4() == f.is4 {
			add(postroutingChain, "node to its own node ports: from its own address",
				f.header, "saddr", d.Address.String(), f.header, "daddr", oneOf(model.NodePortPrefixes(f.is4)), "return")
		}
		away := []any{"oifname", gateway, f.header, "daddr !=", local.String(), f.header, "daddr !=", masquerade, "fib saddr type local"}
		transports := "meta l4proto { tcp, udp, sctp }"
		add(postroutingChain, "node to remote pods and Services, from a privileged port: from the gateway address",
			slices.Concat(away, []any{f.header, "saddr !=", own, transports, "th sport", privileged, "snat", f.header, "to", from(model.OwnPrivilegedPorts), "fully-random"})...)
		add(postroutingChain, "node to remote pods and Services: from the gateway address",
			slices.Concat(away, []any{f.header, "saddr !=", own, transports, "snat", f.header, "to", from(model.OwnPorts), "fully-random"})...)
		add(postroutingChain, "node to remote pods and Services, without ports: from the gateway address",
			slices.Concat(away, []any{f.header, "saddr !=", own, "snat", f.header, "to", own, "fully-random"})...)
		// A program may have chosen a port that the switch gives to others' connections (see model.OwnPorts).
		add(postroutingChain, "node to remote pods and Services: from a port of the node's own",
			slices.Concat(away, []any{f.header, "saddr", own, transports, "th sport", between(model.ForwardedPorts), "snat", f.header, "to", from(model.OwnPorts), "fully-random"})...)
		add(postroutingChain, "node to remote pods and Services: from a privileged port of the node's own",
			slices.Concat(away, []any{f.header, "saddr", own, transports, "th sport", between(model.ForwardedPrivilegedPorts), "snat", f.header, "to", from(model.OwnPrivilegedPorts), "fully-random"})...)
		// The switch does not let pods write to tunnel ports outside, but a Service's address may be translated to one after
		// it, and a Service may have one as its endpoint. In the node's name it would pass for the node's own tunnel packet.
		add(postroutingChain, "pods to tunnel ports: never",
			f.header, "saddr", "{", local.String(), ",", masquerade, "}", "oifname !=", gateway, "udp dport", "{", model.VXLAN.UDPPort(), ",", model.Geneve.UDPPort(), "}", "drop")
		// The endpoint is a hostNetwork pod of another node. That one knows no way to the Masquerade address.
		masqueraded("out of a Service to another node: from the node's address",
			f.header, "saddr", masquerade, "oifname !=", gateway)
		// Other nodes take no packet with a pod's source from an uplink.
		masqueraded("pods to other nodes: from the node's address",
			f.header, "saddr", local.String(), "oifname !=", gateway, f.header, "daddr", "@nodes-"+f.suffix)
		if d.Masquerade {
			masqueraded(toWorldComment,
				f.header, "saddr", local.String(), "oifname !=", gateway, f.header, "daddr !=", "@direct-"+f.suffix)
		}

		// Rejected before it is routed: the Reject address is not the node's, so no process can listen there. The answer's
		// source is not an address of the node either, and so passes the rules above as it is.
		reject := model.RejectAddr(f.is4).String()
		add(arrivedChain, "Services without endpoints, TCP",
			f.header, "daddr", reject, "meta l4proto tcp reject with tcp reset")
		add(arrivedChain, "Services without endpoints",
			f.header, "daddr", reject, "reject with icmpx port-unreachable")
		add(arrivedChain, "forged: these addresses never leave a node",
			"iifname !=", gateway, f.header, "saddr", oneOf(model.VirtualPrefixes(f.is4)), "drop")
		// What connection tracking has no connection for, it does not translate: without these rules an answer would leave with an
		// address of ours, and a pod's packet with the pod's. (Neighbour discovery is untracked, and stays on the link.)
		add(arrivedChain, "answers from node ports: of known connections only",
			"iifname", gateway, f.header, "saddr", oneOf(model.NodePortPrefixes(f.is4)), "ct state { invalid, new } drop")
		add(arrivedChain, "out of a Service to another node: not untranslated",
			"iifname", gateway, f.header, "saddr", masquerade, "ct state invalid drop")
		add(arrivedChain, "pods to other nodes: not untranslated",
			"iifname", gateway, f.header, "saddr", local.String(), f.header, "daddr", "@nodes-"+f.suffix, "ct state invalid drop")
		if d.Masquerade {
			add(arrivedChain, "pods to the world: not untranslated",
				"iifname", gateway, f.header, "saddr", local.String(), f.header, "daddr !=", "@direct-"+f.suffix, "fib daddr type != local", "ct state invalid drop")
		}
		// A pod's packet to a node port leaves by where it came from, which is right, so the pod shall not be told of a shorter way.
		add(sentChain, "no redirects to pods",
			"oifname", gateway, f.redirect, "drop")
	}
	return list
}

// oneOf is a set of ranges as nft lists it.
func oneOf(ranges []netip.Prefix) string {
	var list []string
	for _, p := range ranges {
		list = append(list, element{prefix: p}.key()...)
	}
	return "{ " + strings.Join(list, ", ") + " }"
}

const toWorldComment = "pods to the world: from the node's address"

// toWorld tells whether a rule of ours gives pods' packets an address of the node.
func toWorld(r *knftables.Rule) bool {
	return r.Comment != nil && strings.HasPrefix(*r.Comment, toWorldComment)
}

// everywhere is all destinations.
var everywhere = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}

// element is an element of one of our sets: a range, an address as source and destination, a port, or a port at an
// address and where it leads.
type element struct {
	prefix   netip.Prefix
	pair     bool
	protocol model.Protocol
	port     uint16
	to       netip.AddrPort
}

func compareElements(a, b element) int {
	return cmp.Or(comparePrefixes(a.prefix, b.prefix), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port), a.to.Compare(b.to))
}

// comparePrefixes orders like netip.Prefix.Compare, which allocates for those that are not valid.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// key writes the element as nft lists it: a range of one address is that address.
func (e element) key() []string {
	var key []string
	switch {
	case !e.prefix.IsValid():
	case e.prefix.IsSingleIP():
		key = append(key, e.prefix.Addr().String())
	default:
		key = append(key, e.prefix.String())
	}
	if e.pair {
		key = append(key, key...)
	}
	if e.protocol != "" {
		key = append(key, strings.ToLower(string(e.protocol)), strconv.Itoa(int(e.port)))
	}
	return key
}

func (e element) String() string {
	text := strings.Join(e.key(), " . ")
	if e.to.IsValid() {
		text += " : " + e.to.String()
	}
	return text
}

func (s set) kind() string {
	if s.value != "" {
		return "map"
	}
	return "set"
}

// isPair says whether the elements are pairs of addresses.
func (s set) isPair() bool { return strings.Count(s.key, "_addr") == 2 }

func (s set) object() knftables.Object {
	if s.value != "" {
		return &knftables.Map{Name: s.name, Type: s.key + " : " + s.value}
	}
	o := &knftables.Set{Name: s.name, Type: s.key}
	if s.interval {
		o.Flags = []knftables.SetFlag{knftables.IntervalFlag}
	}
	return o
}

func (s set) element(e element) *knftables.Element {
	if s.value == "" {
		return &knftables.Element{Set: s.name, Key: e.key()}
	}
	return &knftables.Element{Map: s.name, Key: e.key(), Value: []string{e.to.Addr().String(), strconv.Itoa(int(e.to.Port()))}}
}

// parse is the inverse of element. It is false for what we never write, such as ranges that are not prefixes.
func (s set) parse(k *knftables.Element) (e element, ok bool) {
	key, value := k.Key, k.Value
	if s.isPair() {
		if len(key) != 2 || key[0] != key[1] {
			return e, false
		}
		e.pair = true
		e.prefix, ok = parsePrefix(key[0])
		return e, ok
	}
	if len(key) != 2 { // an address comes first
		if e.prefix, ok = parsePrefix(key[0]); !ok {
			return e, false
		}
		key = key[1:]
	}
	if len(key) > 0 {
		if len(key) != 2 {
			return e, false
		}
		// nft knows the protocols' names from /etc/protocols, if there is one.
		for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
			if strings.EqualFold(key[0], string(p)) || key[0] == strconv.Itoa(int(p.Number())) {
				e.protocol = p
			}
		}
		if e.port, ok = parsePort(key[1]); !ok || e.protocol == "" {
			return e, false
		}
	}
	if len(value) > 0 {
		if len(value) != 2 {
			return e, false
		}
		to, err := netip.ParseAddr(value[0])
		port, ok := parsePort(value[1])
		if err != nil || !ok {
			return e, false
		}
		e.to = netip.AddrPortFrom(to, port)
	}
	return e, true
}

func parsePrefix(s string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p, true
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	return single(a), true
}

func parsePort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}

// direct are the destinations that see pods' own addresses: all pods, and the configured exceptions. Ranges inside others
// are left out, because an interval set takes no overlap.
func direct(d Desired, is4 bool) []element {
	return prefixElements(slices.Concat(d.PodCIDRs, d.RemotePodCIDRs, d.NoMasquerade), is4)
}

func directGone(_, came []element) goneTranslations {
	var g goneTranslations
	for _, e := range came {
		g.direct = append(g.direct, e.prefix)
	}
	return g
}

func nodePorts(d Desired, is4 bool) []element {
	list := make([]element, 0, len(d.NodePorts))
	for _, p := range d.NodePorts {
		if p.IPv6 != is4 {
			list = append(list, element{protocol: p.Protocol, port: p.Port, to: model.NodePortAt(is4, p.Protocol, p.Port)})
		}
	}
	return list
}

func externalIPs(d Desired, is4 bool) []element {
	var list []element
	for _, e := range d.ExternalIPs {
		if e.Addr.Is4() == is4 {
			list = append(list, element{prefix: single(e.Addr), protocol: e.Protocol, port: e.Port, to: e.To})
		}
	}
	return list
}

func externalGone(went, _ []element) goneTranslations {
	g := goneTranslations{external: map[netip.AddrPort]netip.AddrPort{}}
	for _, e := range went {
		if e.protocol == model.UDP {
			g.external[netip.AddrPortFrom(e.prefix.Addr(), e.port)] = e.to
		}
	}
	return g
}
