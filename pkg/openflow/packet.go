package openflow

import (
	"encoding/binary"
	"net/netip"
)

// Packet is a packet of the connection's original direction: an Ethernet frame without MAC addresses, and without
// payload. A tracker takes it for one of the connection's.
func (c Connection) Packet() []byte {
	var l4 []byte
	checksumAt := -1
	switch {
	case c.Protocol == IPProtoTCP: // RFC 9293: an acknowledgment of nothing
		l4 = make([]byte, 20)
		binary.BigEndian.PutUint16(l4[0:], c.Source.Port())
		binary.BigEndian.PutUint16(l4[2:], c.Destination.Port())
		l4[12], l4[13] = 5<<4, 0x10
		checksumAt = 16
	case c.Protocol == IPProtoUDP: // RFC 768
		l4 = make([]byte, 8)
		binary.BigEndian.PutUint16(l4[0:], c.Source.Port())
		binary.BigEndian.PutUint16(l4[2:], c.Destination.Port())
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		checksumAt = 6
	case c.IsICMP(): // RFC 792, RFC 4443
		l4 = make([]byte, 8)
		l4[0], l4[1] = c.ICMP.Type, c.ICMP.Code
		binary.BigEndian.PutUint16(l4[4:], c.ICMP.ID)
		checksumAt = 2
	}
	src, dst := c.Source.Addr(), c.Destination.Addr()
	if checksumAt >= 0 {
		var pseudo uint32 // RFC 768, RFC 8200 section 8.1; ICMP of IPv4 has none
		if c.Protocol != IPProtoICMP {
			pseudo = sum(src.AsSlice()) + sum(dst.AsSlice()) + uint32(c.Protocol) + uint32(len(l4))
		}
		binary.BigEndian.PutUint16(l4[checksumAt:], checksum(pseudo+sum(l4)))
	}
	return append(networkHeader(src, dst, c.Protocol, len(l4)), l4...)
}

// networkHeader is Ethernet's header and IP's, RFC 791 or RFC 8200.
func networkHeader(src, dst netip.Addr, protocol uint8, payload int) []byte {
	const ethernet, ttl = 14, 64
	if src.Is4() {
		b := make([]byte, ethernet+20)
		binary.BigEndian.PutUint16(b[12:], 0x0800)
		ip := b[ethernet:]
		ip[0], ip[8], ip[9] = 0x45, ttl, protocol
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+payload))
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], checksum(sum(ip)))
		return b
	}
	b := make([]byte, ethernet+40)
	binary.BigEndian.PutUint16(b[12:], 0x86dd)
	ip := b[ethernet:]
	ip[0], ip[6], ip[7] = 0x60, protocol, ttl
	binary.BigEndian.PutUint16(ip[4:], uint16(payload))
	copy(ip[8:], src.AsSlice())
	copy(ip[24:], dst.AsSlice())
	return b
}

// sum adds the 16-bit words of an even number of bytes.
func sum(b []byte) (n uint32) {
	for i := 0; i < len(b); i += 2 {
		n += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return n
}

// checksum is the Internet checksum of a sum (RFC 1071).
func checksum(n uint32) uint16 {
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}
