package model

import (
	"encoding/binary"
	"net/netip"
)

// Addresses that every node uses and that never leave it; docs/architecture.md has the table. They are link-local or
// reserved (240.0.0.0/4, RFC 1112) in IPv4 and of a unique local prefix in IPv6.
var (
	nodePort4, nodePort6     = netip.MustParseAddr("169.254.87.1"), netip.MustParseAddr("fd57:6566:7400::1")
	masquerade4, masquerade6 = netip.MustParseAddr("169.254.87.2"), netip.MustParseAddr("fd57:6566:7400::2")
	reject4, reject6         = netip.MustParseAddr("169.254.87.3"), netip.MustParseAddr("fd57:6566:7400::3")

	virtual4, virtual6   = netip.MustParsePrefix("169.254.87.0/30"), netip.MustParsePrefix("fd57:6566:7400::/126")
	udpPorts4, udpPorts6 = netip.MustParsePrefix("240.87.0.0/16"), netip.MustParsePrefix("fd57:6566:7400:1::/112")
)

// NodePortAddr is where the node's own network sends what came for a node port: the switch balances it. It is the next
// hop of the node's ways to Services, too.
func NodePortAddr(is4 bool) netip.Addr { return ofFamily(is4, nodePort4, nodePort6) }

// NodePortAt is the address and port to which the node's own network translates packets to a node port. Each UDP node
// port has its own address: the later fragments of a datagram have no port, and the switch matches them by address.
func NodePortAt(is4 bool, p Protocol, port uint16) netip.AddrPort {
	if p != UDP {
		return netip.AddrPortFrom(NodePortAddr(is4), port)
	}
	if is4 {
		a := udpPorts4.Addr().As4()
		binary.BigEndian.PutUint16(a[2:], port)
		return netip.AddrPortFrom(netip.AddrFrom4(a), port)
	}
	a := udpPorts6.Addr().As16()
	binary.BigEndian.PutUint16(a[14:], port)
	return netip.AddrPortFrom(netip.AddrFrom16(a), port)
}

// NodePortPrefixes hold all addresses of NodePortAt, and no others that are in use.
func NodePortPrefixes(is4 bool) []netip.Prefix {
	at := NodePortAddr(is4)
	return []netip.Prefix{netip.PrefixFrom(at, at.BitLen()), UDPNodePorts(is4)}
}

// UDPNodePorts holds the addresses of UDP's node ports.
func UDPNodePorts(is4 bool) netip.Prefix {
	if is4 {
		return udpPorts4
	}
	return udpPorts6
}

// VirtualPrefixes hold all addresses that never leave a node.
func VirtualPrefixes(is4 bool) []netip.Prefix {
	if is4 {
		return []netip.Prefix{virtual4, udpPorts4}
	}
	return []netip.Prefix{virtual6, udpPorts6}
}

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
