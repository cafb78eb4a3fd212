package model

import "net/netip"

// Addresses that every node uses and that never leave it; docs/architecture.md has the table. They are link-local in IPv4 and of a
// unique local prefix in IPv6.
var (
	nodePort4, nodePort6     = netip.MustParseAddr("169.254.87.1"), netip.MustParseAddr("fd57:6566:7400::1")
	masquerade4, masquerade6 = netip.MustParseAddr("169.254.87.2"), netip.MustParseAddr("fd57:6566:7400::2")
	reject4, reject6         = netip.MustParseAddr("169.254.87.3"), netip.MustParseAddr("fd57:6566:7400::3")
)

// NodePortAddr is where the node's own network sends what came for a node port: the switch balances it.
func NodePortAddr(is4 bool) netip.Addr { return ofFamily(is4, nodePort4, nodePort6) }

// MasqueradeAddr is the source of a packet that a Service turns back to where it came from: to the pod itself, or to the node.
func MasqueradeAddr(is4 bool) netip.Addr { return ofFamily(is4, masquerade4, masquerade6) }

// RejectAddr is where packets to a Service without endpoints go: the node refuses them.
func RejectAddr(is4 bool) netip.Addr { return ofFamily(is4, reject4, reject6) }

func ofFamily(is4 bool, v4, v6 netip.Addr) netip.Addr {
	if is4 {
		return v4
	}
	return v6
}
