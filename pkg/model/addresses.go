package model

import (
	"encoding/binary"
	"net/netip"
)

// Addresses that are the same on every node and never leave it; docs/findings.md has the table. The IPv4 ones are
// link-local or reserved (240.0.0.0/4, RFC 1112), the IPv6 ones unique local (RFC 4193).
var (
	nodePort4, nodePort6     = netip.MustParseAddr("169.254.87.1"), netip.MustParseAddr("fd57:6566:7400::1")
	masquerade4, masquerade6 = netip.MustParseAddr("169.254.87.2"), netip.MustParseAddr("fd57:6566:7400::2")
	reject4, reject6         = netip.MustParseAddr("169.254.87.3"), netip.MustParseAddr("fd57:6566:7400::3")

	virtual4, virtual6   = netip.MustParsePrefix("169.254.87.0/30"), netip.MustParsePrefix("fd57:6566:7400::/126")
	udpPorts4, udpPorts6 = netip.MustParsePrefix("240.87.0.0/16"), netip.MustParsePrefix("fd57:6566:7400:1::/112")
)

// NodePortAddr is the address to which the host's nftables translate TCP and SCTP packets for node ports, so that the
// switch balances them. It is also the next hop of the host's routes to Services.
func NodePortAddr(is4 bool) netip.Addr { return ofFamily(is4, nodePort4, nodePort6) }

// NodePortAt is the address and port to which the host's nftables translate packets for a node port. Each UDP node port
// has its own address: later fragments of a datagram carry no port, so the switch matches them by address.
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

// NodePortPrefixes hold all addresses of NodePortAt and no other address that is in use.
func NodePortPrefixes(is4 bool) []netip.Prefix {
	at := NodePortAddr(is4)
	return []netip.Prefix{netip.PrefixFrom(at, at.BitLen()), UDPNodePorts(is4)}
}

// UDPNodePorts is the range that holds the addresses of the UDP node ports.
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

// MasqueradeAddr replaces the source address of a packet whose Service endpoint is its own sender (a pod that is its
// own endpoint, or the node), so that the reply passes the switch.
func MasqueradeAddr(is4 bool) netip.Addr { return ofFamily(is4, masquerade4, masquerade6) }

// RejectAddr is the destination of packets to a Service without endpoints. The host's nftables reject them.
func RejectAddr(is4 bool) netip.Addr { return ofFamily(is4, reject4, reject6) }

func ofFamily(is4 bool, v4, v6 netip.Addr) netip.Addr {
	if is4 {
		return v4
	}
	return v6
}
