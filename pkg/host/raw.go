package host

import (
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

// Chains before conntrack and NAT: addresses and ports are those on the wire, and a packet that is dropped here takes
// no conntrack entry.
const (
	enteredChain   = "entered"       // every packet from another host or a pod
	leavingChain   = "raw-from-node" // every packet of the node's own processes
	departingChain = "departing"     // every packet that leaves the node, before SNAT
)

var rawChains = []knftables.Chain{
	hooked(enteredChain, knftables.FilterType, knftables.PreroutingHook, knftables.RawPriority),
	hooked(leavingChain, knftables.FilterType, knftables.OutputHook, knftables.RawPriority),
	hooked(departingChain, knftables.FilterType, knftables.PostroutingHook, knftables.FilterPriority),
}

// tunnelPorts matches packets of the tunnels over UDP.
var tunnelPorts = func() []any {
	words := []any{"udp dport", "{"}
	for i, port := range model.TunnelUDPPorts() {
		if i > 0 {
			words = append(words, ",")
		}
		words = append(words, port)
	}
	return append(words, "}")
}()

// tunnelPackets match packets of the switch's tunnels, those over UDP and those with an IP protocol of their own: GRE.
// In GRE these are packets around Ethernet frames: a node's own GRE tunnels to other hosts carry IP. The type of what
// is inside, 0x6558, is where UDP has the destination port (RFC 2784, section 2.1).
// (nft list then shows nothing but that port.)
var tunnelPackets = func() []tunnelPacket {
	list := []tunnelPacket{{"UDP", tunnelPorts}}
	for _, protocol := range model.GRE.IPProtocols() {
		list = append(list, tunnelPacket{"GRE", []any{"meta l4proto", uint16(protocol), "th dport 0x6558"}})
	}
	return list
}()

type tunnelPacket struct {
	over  string // for comments
	match []any
}

// addForgedRules drops packets with a forged source, and packets with loopback addresses on a link. Policies match the
// source address and always allow the node's own, so no other host may send with the address of a pod or of the node.
// rp_filter does not replace these rules: loose mode accepts any source with a route, and IPv6 has no rp_filter.
func addForgedRules(add func(chain, comment string, words ...any), d Desired, f family) {
	gateway := `"` + d.Gateway + `"`
	others := []any{"iifname !=", "{", `"lo"`, ",", gateway, "}"}
	// portmap enables route_localnet on weft0, and Linux would then accept these packets as the node's own. (Replies to
	// a hostPort client at 127.0.0.1 have another destination until conntrack has translated them back.)
	add(enteredChain, "loopback addresses: from the node alone",
		`iifname != "lo"`, f.header, "saddr", f.loopback, "drop")
	add(enteredChain, "loopback addresses: for the node alone",
		`iifname != "lo"`, f.header, "daddr", f.loopback, "drop")
	addNeighborRules(add, d, f)
	add(enteredChain, "forged: pods' packets come by tunnel, from this node or a neighbor",
		append(others, f.header, "saddr", "@pods-"+f.suffix, "counter drop")...)
	// Linux loops the node's own multicasts back as if the link had received them. Another host may have the same
	// link-local address on another link, and no router forwards it.
	words := slices.Concat(others, []any{
		f.header, "saddr !=", f.linkLocal, "fib saddr type local", "fib daddr type != { multicast, broadcast }", "drop",
	})
	add(enteredChain, "forged: the node's own addresses", words...)
}

// addTunnelRules keeps tunnel packets out of conntrack: each outer source port would take an entry, and a NAT rule for
// a port of the node, such as a hostPort, would also translate the tunnels. Only nodes may send tunnel packets.
func addTunnelRules(add func(chain, comment string, words ...any), d Desired, f family) {
	for _, p := range tunnelPackets {
		local := slices.Concat([]any{"meta nfproto", f.proto, "fib daddr type local"}, p.match)
		if d.Strict {
			add(enteredChain, "not encrypted: no "+p.over+" tunnels", append(local, "counter drop")...)
			continue
		}
		add(enteredChain, p.over+" tunnels of nodes: not tracked, not translated",
			append(local[:len(local):len(local)], f.header, "saddr", "@nodes-"+f.suffix, "notrack accept")...)
		add(enteredChain, p.over+" tunnels of others: none", append(local[:len(local):len(local)], "drop")...)
		add(leavingChain, p.over+" tunnels to nodes: not tracked, not translated",
			slices.Concat([]any{f.header, "daddr", "@nodes-" + f.suffix}, p.match, []any{"notrack"})...)
	}
}

func prefixesOf(list []element) (prefixes ranges) {
	for _, e := range list {
		prefixes = append(prefixes, e.prefix)
	}
	return prefixes
}

func prefixElements(list []netip.Prefix, is4 bool) []element {
	var elements []element
	for _, p := range disjoint(list) {
		if p.Addr().Is4() == is4 {
			elements = append(elements, element{prefix: p})
		}
	}
	return elements
}
