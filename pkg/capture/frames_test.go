package capture_test

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/capture"
)

// The addresses of tests.
var (
	client4, server4 = netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("10.244.1.3")
	client6, server6 = netip.MustParseAddr("fd44::2"), netip.MustParseAddr("fd44:0:0:1::3")
)

func u16(values ...uint16) (b []byte) {
	for _, v := range values {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

// ethernet puts a header before a packet.
func ethernet(etherType uint16, packet []byte) []byte {
	return slices.Concat([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, u16(etherType), packet)
}

// ip4 is a frame with an IPv4 header; fragment is its second word of flags and offset.
func ip4(protocol uint8, fragment uint16, src, dst netip.Addr, payload []byte) []byte {
	header := slices.Concat([]byte{0x45, 0}, u16(uint16(20+len(payload)), 0, fragment), []byte{64, protocol, 0, 0},
		src.AsSlice(), dst.AsSlice())
	return ethernet(0x0800, append(header, payload...))
}

// ip6 is a frame with an IPv6 header; the payload begins with what next says.
func ip6(next uint8, src, dst netip.Addr, payload []byte) []byte {
	header := slices.Concat([]byte{0x60, 0, 0, 0}, u16(uint16(len(payload))), []byte{next, 64}, src.AsSlice(),
		dst.AsSlice())
	return ethernet(0x86dd, append(header, payload...))
}

func tcp(src, dst uint16, flags uint8, data string) []byte {
	return slices.Concat(u16(src, dst), make([]byte, 8), []byte{0x50, flags}, make([]byte, 6), []byte(data))
}

func udp(src, dst uint16, data string) []byte {
	return append(u16(src, dst, uint16(8+len(data)), 0), data...)
}

// extended puts an IPv6 extension header of 16 bytes before a payload that begins with what next says.
func extended(next uint8, payload []byte) []byte {
	return slices.Concat([]byte{next, 1}, make([]byte, 14), payload)
}

// fragment6 puts an IPv6 fragment header before a payload.
func fragment6(next uint8, offset uint16, more bool, payload []byte) []byte {
	word := offset
	if more {
		word++
	}
	return slices.Concat([]byte{next, 0}, u16(word), make([]byte, 4), payload)
}

// arp is an ARP packet about IPv4 addresses.
func arp(operation uint16, sender, target netip.Addr) []byte {
	return ethernet(0x0806, slices.Concat(u16(1, 0x0800), []byte{6, 4}, u16(operation), []byte{2, 0, 0, 0, 0, 2},
		sender.AsSlice(),
		make([]byte, 6), target.AsSlice()))
}

// geneve encapsulates a frame between nodes, with options of this many bytes.
func geneve(options int, frame []byte) []byte {
	header := slices.Concat([]byte{byte(options / 4), 0, 0x65, 0x58, 0, 0x12, 0x34, 0}, make([]byte, options), frame)
	return ip4(17, 0, netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("172.30.0.12"), udp(50000, 6081, string(header)))
}

// vxlan encapsulates a frame between nodes over IPv6.
func vxlan(frame []byte) []byte {
	header := slices.Concat([]byte{8, 0, 0, 0, 0, 0x12, 0x34, 0}, frame)
	return ip6(17, netip.MustParseAddr("fd30::11"), netip.MustParseAddr("fd30::12"), udp(50000, 4789, string(header)))
}

// gre encapsulates a frame between nodes, with these flags and the words that they announce.
func gre(flags uint16, words, frame []byte) []byte {
	return ip4(47, 0, netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("172.30.0.12"),
		slices.Concat(u16(flags, 0x6558), words, frame))
}

// solicit is a neighbor solicitation.
func solicit(target netip.Addr) []byte {
	return ip6(58, client6, target, slices.Concat([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()))
}

// known are the names of the tests' addresses.
func known() capture.Names {
	names := capture.Names{}
	for addr, name := range map[string]string{"10.244.0.2": "shop/client", "10.244.1.3": "shop/web", "fd44::2": "shop/client",
		"fd44:0:0:1::3": "shop/web", "172.30.0.11": "node/n1", "172.30.0.12": "node/n2", "fd30::11": "node/n1", "fd30::12": "node/n2"} {
		names.Set(capture.Name{Addr: netip.MustParseAddr(addr), Name: name})
	}
	return names
}
