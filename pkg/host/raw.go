package host

import (
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

// Chains that see packets before connection tracking and before any translation: addresses and ports are those on
// the wire, and what is dropped here costs no entry of a connection.
const (
	enteredChain = "entered"       // every packet from elsewhere
	leavingChain = "raw-from-node" // every packet that the node makes
)

var rawChains = []knftables.Chain{
	hooked(enteredChain, knftables.FilterType, knftables.PreroutingHook, knftables.RawPriority),
	hooked(leavingChain, knftables.FilterType, knftables.OutputHook, knftables.RawPriority),
}

var tunnelPorts = []any{"udp dport", "{", model.VXLAN.UDPPort(), ",", model.Geneve.UDPPort(), "}"}

// addForgedRules drops packets with a forged source, and loopback addresses on a link. Policies are evaluated on the
// source address and allow the node's own, so no other host may send with the address of a pod or of the node.
// rp_filter is no substitute: a loose one asks for any route back, and IPv6 has none.
func addForgedRules(add func(chain, comment string, words ...any), gateway string, f family) {
	others := []any{"iifname !=", "{", `"lo"`, ",", gateway, "}"}
	// portmap turns route_localnet on for weft0, and with it Linux would take these for the node's own. (The answers
	// to a hostPort's client at 127.0.0.1 have another destination as long as they are not translated back.)
	add(enteredChain, "loopback addresses: from the node alone",
		`iifname != "lo"`, f.header, "saddr", f.loopback, "drop")
	add(enteredChain, "loopback addresses: for the node alone",
		`iifname != "lo"`, f.header, "daddr", f.loopback, "drop")
	add(enteredChain, "forged: pods' packets come by tunnel or from this node",
		append(others, f.header, "saddr", "@pods-"+f.suffix, "drop")...)
	// Linux delivers the node's own multicasts to it as if its link had received them. Another host may have the same
	// link-local address on another link, and no router forwards it.
	words := slices.Concat(others, []any{
		f.header, "saddr !=", f.linkLocal, "fib saddr type local", "fib daddr type != { multicast, broadcast }", "drop",
	})
	add(enteredChain, "forged: the node's own addresses", words...)
}

// addTunnelRules keeps tunnel packets out of connection tracking: each outer source port would take an entry there,
// and a rule that translates a port of the node, as for a hostPort, would take the tunnels with it. Only nodes may
// send them.
func addTunnelRules(add func(chain, comment string, words ...any), f family) {
	local := append([]any{"meta nfproto", f.proto, "fib daddr type local"}, tunnelPorts...)
	add(enteredChain, "tunnels of nodes: not tracked, not translated",
		append(local[:len(local):len(local)], f.header, "saddr", "@nodes-"+f.suffix, "notrack accept")...)
	add(enteredChain, "tunnels of others: none", append(local[:len(local):len(local)], "drop")...)
	add(leavingChain, "tunnels to nodes: not tracked, not translated",
		slices.Concat([]any{f.header, "daddr", "@nodes-" + f.suffix}, tunnelPorts, []any{"notrack"})...)
}

// pods are the ranges of all pods and gateways. Ranges inside others are left out, as in direct.
func pods(d Desired, is4 bool) []element {
	return prefixElements(append(d.PodCIDRs[:len(d.PodCIDRs):len(d.PodCIDRs)], d.RemotePodCIDRs...), is4)
}

// nodes are the other nodes' addresses.
func nodes(d Desired, is4 bool) []element {
	list := make([]netip.Prefix, 0, len(d.Nodes))
	for _, a := range d.Nodes {
		list = append(list, single(a))
	}
	return prefixElements(list, is4)
}

// nodesGone: pods' packets get the node's address on their way to another node, even when those to elsewhere do not.
func nodesGone(went, _ []element) goneTranslations {
	var g goneTranslations
	for _, e := range went {
		g.direct = append(g.direct, e.prefix)
	}
	return g
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
