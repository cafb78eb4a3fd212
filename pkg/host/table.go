package host

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/fnv"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

// The parts of Weft's nftables table: chains and rules of fixed size, and sets and maps that grow with the cluster.

// The chains. Base chains see the packets of the comment.
const (
	preroutingChain  = "prerouting"   // first packets of connections from other hosts and pods, before routing
	outputChain      = "output"       // first packets of connections of the node's own processes
	servicesChain    = "services"     // both, when they are for an address of the node
	postroutingChain = "postrouting"  // first packets of connections that leave the node
	arrivedChain     = "arrived"      // every packet from other hosts and pods, after DNAT
	sentChain        = "sent-by-node" // every packet of the node's own processes
)

// Chains must be defined before a rule jumps to them.
var chains = slices.Concat([]knftables.Chain{
	{Name: servicesChain},
	{Name: divertChain},
	hooked(preroutingChain, knftables.NATType, knftables.PreroutingHook, knftables.DNATPriority),
	hooked(outputChain, knftables.NATType, knftables.OutputHook, knftables.DNATPriority),
	hooked(postroutingChain, knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority),
	// Before the host's own filters, which use the hooks input and forward. Conntrack comes earlier, so the reply of a
	// reject is part of the rejected connection.
	hooked(arrivedChain, knftables.FilterType, knftables.PreroutingHook, knftables.FilterPriority),
	hooked(sentChain, knftables.FilterType, knftables.OutputHook, knftables.FilterPriority),
}, podLinksChains, rawChains, divertChains)

func hooked(
	name string, kind knftables.BaseChainType, hook knftables.BaseChainHook, priority knftables.BaseChainPriority,
) knftables.Chain {
	return knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority}
}

// set is a set or, with a value type, a map of the table.
type set struct {
	name       string
	is4        bool
	key, value string // types
	interval   bool
	elements   func(d Desired, is4 bool) []element
	// removed are the translations that end when elements are deleted and added; nil when these cause no NAT, or NAT that
	// is recognizable as Weft's without memory.
	removed func(deleted, added []element) removedTranslations
}

// sets are in the order in which they are written. A hash set finds one of 10,000 elements as fast as one of ten.
var sets = forFamilies([]set{
	{name: "pods", key: "addr", interval: true, elements: pods},
	{name: "service-ports", key: "addr . inet_proto . inet_service", elements: servicePorts},
	{name: "neighbors", key: "mac . addr", elements: neighbors},
	{name: "fabric", key: "addr", interval: true, elements: fabric},
	{name: ipipSet(true), key: "addr . " + inner4Key, elements: innerSources(true)},
	{name: ipipSet(false), key: "addr . " + inner6Key, elements: innerSources(false)},
	{name: "routed", key: "addr", interval: true, elements: routed},
	{name: "nodes", key: "addr", elements: nodes, removed: nodeTranslationsRemoved},
	{name: "direct", key: "addr", interval: true, elements: direct, removed: directTranslationsRemoved},
	{name: "node-ports", key: "inet_proto . inet_service", value: "addr . inet_service", elements: nodePorts},
	{name: "host-ports", key: "inet_proto . inet_service", value: "addr . inet_service", elements: hostPorts},
	{
		name: "host-ports-at", key: "addr . inet_proto . inet_service", value: "addr . inet_service",
		elements: hostPortsAt,
	},
	{name: "host-port-pods", key: "addr . addr", elements: hostPortPods},
	{
		name: "external", key: "addr . inet_proto . inet_service", value: "addr . inet_service",
		elements: externalIPs, removed: externalTranslationsRemoved,
	},
})

// forFamilies are the sets of both families.
func forFamilies(list []set) (sets []set) {
	for _, s := range list {
		for _, f := range families {
			of := s
			of.name, of.is4 = s.name+"-"+f.suffix, f.is4
			of.key = strings.ReplaceAll(s.key, "addr", f.proto+"_addr")
			of.key = strings.ReplaceAll(of.key, "mac", "ether_addr")
			of.value = strings.ReplaceAll(s.value, "addr", f.proto+"_addr")
			sets = append(sets, of)
		}
	}
	return sets
}

// family holds the parts of the rules that differ by address family.
type family struct {
	is4    bool
	header string // as rules match it: "ip saddr"
	proto  string // as meta nfproto has it
	suffix string // of the family's sets
	// notOffered are addresses of the node that never serve node ports.
	notOffered string
	redirect   string // matches an ICMP redirect
	loopback   string // addresses that only lo has
	linkLocal  string
}

var families = []family{
	{
		is4: true, header: "ip", proto: "ipv4", suffix: "v4", notOffered: "127.0.0.0/8", redirect: "icmp type redirect",
		loopback: "127.0.0.0/8", linkLocal: "169.254.0.0/16",
	},
	{
		is4: false, header: "ip6", proto: "ipv6", suffix: "v6", notOffered: "{ ::1 , fe80::/10 }",
		redirect: "icmpv6 type nd-redirect", loopback: "::1", linkLocal: "fe80::/10",
	},
}

// rules are the rules of all chains. They depend on the node and the configuration, never on pods or Services.
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
	// OVS' userspace datapath takes every packet to a tunnel's UDP port, including a reply to a masqueraded packet, so
	// masquerade to other ports. Without a range, the kernel keeps a privileged port privileged.
	masqueraded := func(comment string, words ...any) {
		beside := model.PortsBesideTunnels()
		ports := fmt.Sprintf(":%d-%d", beside.First, beside.Last)
		unprivileged := append(slices.Clone(words), "udp sport >=", model.FirstUnprivilegedPort)
		add(postroutingChain, comment+", UDP beside the tunnels' ports",
			append(unprivileged, "masquerade to", ports, "fully-random")...)
		add(postroutingChain, comment, append(slices.Clone(words), "masquerade fully-random")...)
	}
	for _, chain := range []string{preroutingChain, outputChain} {
		add(chain, "to addresses of the node: perhaps a Service", "fib daddr type local", "jump", servicesChain)
	}
	gateway := `"` + d.Gateway + `"`
	addPodLinksRule(add)
	addDivertRules(add, gateway)
	addReturnedRules(add, gateway)
	for _, f := range families {
		addTunnelRules(add, d, f)
		addIPIPRules(add, d, f)
		addWireGuardRules(add, d, f)
		local, ok := d.local(f.is4)
		if !ok {
			continue
		}
		addForgedRules(add, d, f)
		own, masquerade := model.GatewayAddr(local).String(), model.MasqueradeAddr(f.is4).String()
		// All other addresses of the node serve node ports, for clients that arrive on an uplink, for the node's
		// processes, and for pods through the gateway, whose packets return there with the same source and another
		// destination. Only the first rule matches the source: a packet that a Service has sent to an address of the
		// node must be delivered there, also when a hostNetwork pod listens at its Service's own node port or external
		// address.
		add(servicesChain, "out of a Service: not into another",
			f.header, "saddr", masquerade, "return")
		add(servicesChain, "not offered at loopback and link-local addresses",
			f.header, "daddr", f.notOffered, "return")
		// Without this rule, anyone who may write externalIPs with a node's address and a tunnel's port would receive
		// all nodes' packets.
		add(servicesChain, "tunnels: not a Service",
			append(append([]any{"meta nfproto", f.proto}, tunnelPorts...), "return")...)
		add(servicesChain, "external addresses that are the node's: to the switch",
			"dnat", f.header, "to", f.header, "daddr . meta l4proto . th dport map", "@external-"+f.suffix)
		nodePortAt := []any{"meta nfproto", f.proto}
		if at := d.nodePortAddrs(f.is4); len(at) > 0 {
			nodePortAt = []any{f.header, "daddr", nftSet(at)}
		}
		add(servicesChain, "node ports: to the switch", append(nodePortAt, "dnat", f.header, "to",
			"meta l4proto . th dport map", "@node-ports-"+f.suffix)...)
		addHostPortRules(add, f, own)

		// Other nodes accept from this node's tunnel only addresses that it owns on the pod network, so its other
		// addresses must not appear there. For the same reason the switch sees the node's own use of Services from the
		// gateway address. The switch decides about other clients' addresses, so they stay. Replies to the Masquerade
		// address are not the node's own connections, even when the kernel has no entry for them.
		from := func(r model.PortRange) string {
			return fmt.Sprintf("%s-%d", netip.AddrPortFrom(model.GatewayAddr(local), r.First), r.Last)
		}
		between := func(r model.PortRange) string { return fmt.Sprintf("%d-%d", r.First, r.Last) }
		// A client on the node itself keeps the one address that other nodes accept from node ports.
		if d.Address.IsValid() && d.Address.Is4() == f.is4 {
			add(postroutingChain, "node to its own node ports: from its own address",
				f.header, "saddr", d.Address.String(), f.header, "daddr", nftSet(model.NodePortPrefixes(f.is4)), "return")
		}
		away := []any{
			"oifname", gateway, f.header, "daddr !=", local.String(), f.header, "daddr !=", masquerade, "fib saddr type local",
		}
		snat := func(to string) []any { return []any{"snat", f.header, "to", to, "fully-random"} }
		transports := "meta l4proto { tcp, udp, sctp }"
		notOwn := slices.Concat(away, []any{f.header, "saddr !=", own})
		add(postroutingChain, "node to remote pods and Services, from a privileged port: from the gateway address",
			slices.Concat(notOwn, []any{transports, "th sport", privileged}, snat(from(model.OwnPrivilegedPorts)))...)
		add(postroutingChain, "node to remote pods and Services: from the gateway address",
			slices.Concat(notOwn, []any{transports}, snat(from(model.OwnPorts)))...)
		add(postroutingChain, "node to remote pods and Services, without ports: from the gateway address",
			slices.Concat(notOwn, snat(own))...)
		// A program may have bound a port that the switch uses for other clients' connections (see model.OwnPorts).
		fromPorts := func(r model.PortRange) []any {
			return slices.Concat(away, []any{f.header, "saddr", own, transports, "th sport", between(r)})
		}
		add(postroutingChain, "node to remote pods and Services: from a port of the node's own",
			slices.Concat(fromPorts(model.ForwardedPorts), snat(from(model.OwnPorts)))...)
		add(postroutingChain, "node to remote pods and Services: from a privileged port of the node's own",
			slices.Concat(fromPorts(model.ForwardedPrivilegedPorts), snat(from(model.OwnPrivilegedPorts)))...)
		// Whichever way leads to a pod, it sees the same source.
		addRoutedRules(add, gateway, own, masquerade, f)
		// The switch does not let pods send tunnel packets outside, but another Service proxy may translate a
		// destination to one after the switch, and a Service may have one as its endpoint. Masqueraded, such a packet
		// would look like the node's own tunnel packet.
		for _, p := range tunnelPackets {
			add(postroutingChain, "pods to "+p.over+" tunnels: never",
				slices.Concat([]any{f.header, "saddr", "{", local.String(), ",", masquerade, "}", "oifname !=", gateway,
					f.header, "daddr !=", "@routed-" + f.suffix}, p.match, []any{"drop"})...)
		}
		// The endpoint is a hostNetwork pod of another node, which has no route to the Masquerade address.
		masqueraded("out of a Service to another node: from the node's address",
			f.header, "saddr", masquerade, "oifname !=", gateway)
		// Other nodes drop packets with a pod's source address that arrive on an uplink.
		masqueraded("pods to other nodes: from the node's address",
			f.header, "saddr", local.String(), "oifname !=", gateway, f.header, "daddr", "@nodes-"+f.suffix)
		if d.Masquerade {
			masqueraded(toWorldComment,
				f.header, "saddr", local.String(), "oifname !=", gateway, f.header, "daddr !=", "@direct-"+f.suffix)
		}

		// Reject before routing: the Reject address is not local, so no process can listen there. The source of the
		// response is not a local address either, and so passes the rules above unchanged.
		reject := model.RejectAddr(f.is4).String()
		add(arrivedChain, "Services without endpoints, TCP",
			f.header, "daddr", reject, "meta l4proto tcp reject with tcp reset")
		add(arrivedChain, "Services without endpoints",
			f.header, "daddr", reject, "reject with icmpx port-unreachable")
		add(arrivedChain, "forged: these addresses never leave a node",
			"iifname !=", gateway, f.header, "saddr", nftSet(model.VirtualPrefixes(f.is4)), "drop")
		// The kernel does not translate packets without a conntrack entry: without these rules a reply would leave with
		// a virtual address, and a pod's packet with the pod's address. (Neighbor discovery is untracked and stays on
		// the link.)
		add(arrivedChain, "answers from node ports: of known connections only",
			"iifname", gateway, f.header, "saddr", nftSet(model.NodePortPrefixes(f.is4)), "ct state { invalid, new } drop")
		add(arrivedChain, "out of a Service to another node: not untranslated",
			"iifname", gateway, f.header, "saddr", masquerade, "ct state invalid drop")
		add(arrivedChain, "pods to other nodes: not untranslated",
			"iifname", gateway, f.header, "saddr", local.String(), f.header, "daddr", "@nodes-"+f.suffix,
			"ct state invalid drop")
		if d.Masquerade {
			add(arrivedChain, "pods to the world: not untranslated",
				"iifname", gateway, f.header, "saddr", local.String(), f.header, "daddr !=", "@direct-"+f.suffix,
				"fib daddr type != local", "ct state invalid drop")
		}
		// A pod's packet to a node port leaves by the interface that it came from, on purpose, so the kernel must not
		// send redirects.
		add(sentChain, "no redirects to pods",
			"oifname", gateway, f.redirect, "drop")
	}
	return list
}

// nftSet formats ranges as an anonymous set, as nft lists it.
func nftSet(ranges []netip.Prefix) string {
	var list []string
	for _, p := range ranges {
		list = append(list, element{prefix: p}.key()...)
	}
	return "{ " + strings.Join(list, ", ") + " }"
}

const toWorldComment = "pods to the world: from the node's address"

// masquerades reports whether rules, as text of rulesText, masquerade pods' packets to destinations outside.
func masquerades(rules string) bool { return strings.Contains(rules, toWorldComment) }

// everywhere are the ranges of all destinations.
var everywhere = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0),
	netip.PrefixFrom(netip.IPv6Unspecified(), 0)}

// element is an element of a set: a range, a link and an address, an address with that of a packet inside, an address
// as source and destination, a port, or an address and port with its target.
type element struct {
	mac      model.MAC
	prefix   netip.Prefix
	inner    netip.Addr // the source in a packet from the prefix
	pair     bool
	protocol model.Protocol
	port     uint16
	to       netip.AddrPort
}

func compareElements(a, b element) int {
	return cmp.Or(comparePrefixes(a.prefix, b.prefix), bytes.Compare(a.mac[:], b.mac[:]), a.inner.Compare(b.inner),
		cmp.Compare(a.protocol, b.protocol),
		cmp.Compare(a.port, b.port), a.to.Compare(b.to))
}

// comparePrefixes orders like netip.Prefix.Compare, which allocates for invalid prefixes.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// key is the element as nft lists it: a range of one address is that address.
func (e element) key() []string {
	var key []string
	if e.mac != (model.MAC{}) {
		key = append(key, e.mac.String())
	}
	switch {
	case !e.prefix.IsValid():
	case e.prefix.IsSingleIP():
		key = append(key, e.prefix.Addr().String())
	default:
		key = append(key, e.prefix.String())
	}
	if e.inner.IsValid() {
		key = append(key, innerText(e.inner))
	}
	if e.pair {
		key = append(key, key...)
	}
	if e.protocol != "" {
		key = append(key, strings.ToLower(string(e.protocol)), strconv.Itoa(int(e.port)))
	}
	return key
}

func (e element) at() netip.AddrPort { return netip.AddrPortFrom(e.prefix.Addr(), e.port) }

// udp are the elements of UDP ports.
func udp(list []element) iter.Seq[element] {
	return func(yield func(element) bool) {
		for _, e := range list {
			if e.protocol == model.UDP && !yield(e) {
				return
			}
		}
	}
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

func (s set) object() knftables.Object {
	if s.value != "" {
		return &knftables.Map{Name: s.name, Type: s.key + " : " + s.value}
	}
	o := &knftables.Set{Name: s.name, Type: s.key}
	for _, inner := range []string{inner4Key, inner6Key} {
		if outer, found := strings.CutSuffix(s.key, " . "+inner); found {
			header := map[string]string{"ipv4_addr": "ip", "ipv6_addr": "ip6"}[outer]
			o.Type, o.TypeOf = "", header+" saddr . "+innerSource(s.is4, inner == inner4Key)
		}
	}
	if s.interval {
		o.Flags = []knftables.SetFlag{knftables.IntervalFlag}
	}
	return o
}

func (s set) element(e element) *knftables.Element {
	if s.value == "" {
		return &knftables.Element{Set: s.name, Key: e.key()}
	}
	value := []string{e.to.Addr().String(), strconv.Itoa(int(e.to.Port()))}
	return &knftables.Element{Map: s.name, Key: e.key(), Value: value}
}

// parse is the inverse of element. It is false for elements that Weft never writes, such as ranges that are not
// prefixes.
func (s set) parse(k *knftables.Element) (e element, ok bool) {
	fields := strings.Split(s.key, " . ")
	if len(k.Key) != len(fields) || (len(k.Value) == 2) != (s.value != "") {
		return e, false
	}
	for i, text := range k.Key {
		switch fields[i] {
		case "inet_proto":
			// nft takes the protocols' names from /etc/protocols, if that exists, and otherwise prints numbers.
			for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
				if strings.EqualFold(text, string(p)) || text == strconv.Itoa(int(p.Number())) {
					e.protocol = p
				}
			}
			ok = e.protocol != ""
		case "ether_addr":
			mac, err := model.ParseMAC(text)
			e.mac, ok = mac, err == nil
		case inner4Key, inner6Key:
			e.inner, ok = parseInner(text, fields[i] == inner4Key)
		case "inet_service":
			e.port, ok = parsePort(text)
		default: // an address; the second one is the same
			e.pair = i > 0 && e.mac == model.MAC{}
			e.prefix, ok = parsePrefix(text)
			ok = ok && (!e.pair || text == k.Key[0])
		}
		if !ok {
			return e, false
		}
	}
	if s.value != "" {
		to, err := netip.ParseAddr(k.Value[0])
		port, ok := parsePort(k.Value[1])
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

// direct are the destinations that see pods' own addresses: all pods, and the configured exceptions. Ranges inside
// others are removed, because an interval set rejects overlaps.
func direct(d Desired, is4 bool) []element {
	return prefixElements(slices.Concat(d.PodCIDRs, d.peerPodCIDRs(), d.NoMasquerade), is4)
}

func directTranslationsRemoved(_, added []element) removedTranslations {
	return removedTranslations{direct: prefixesOf(added)}
}

func externalTranslationsRemoved(deleted, _ []element) removedTranslations {
	g := removedTranslations{external: map[netip.AddrPort]netip.AddrPort{}}
	for e := range udp(deleted) {
		g.external[e.at()] = e.to
	}
	return g
}
