package openflow

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// Flags of TCP (RFC 9293).
const (
	tcpSYN = 0x02
	tcpACK = 0x10
)

// Packet is a packet of the connection's original direction: an Ethernet frame without MAC addresses, and without
// payload. A tracker takes it for one of the connection's.
func (c Connection) Packet() []byte { return c.packet(tcpACK) } // an acknowledgment of nothing

// First is the packet that begins the connection: a SYN, an INIT, an echo request, or a datagram without payload.
func (c Connection) First(src, dst [6]byte) []byte {
	if c.IsICMP() {
		c.ICMP.Type = map[uint8]uint8{IPProtoICMP: 8, IPProtoICMPv6: 128}[c.Protocol]
	}
	b := c.packet(tcpSYN)
	copy(b, dst[:])
	copy(b[6:], src[:])
	return b
}

func (c Connection) packet(flags uint8) []byte {
	var l4 []byte
	checksumAt := -1
	switch {
	case c.Protocol == IPProtoTCP: // RFC 9293
		l4 = make([]byte, 20)
		l4[12], l4[13] = 5<<4, flags
		binary.BigEndian.PutUint16(l4[14:], 1<<15) // the window
		checksumAt = 16
	case c.Protocol == IPProtoUDP: // RFC 768
		l4 = make([]byte, 8)
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		checksumAt = 6
	case c.Protocol == IPProtoSCTP && flags == tcpSYN:
		l4 = sctpInit(c.Source.Port(), c.Destination.Port())
	case c.IsICMP(): // RFC 792, RFC 4443
		l4 = make([]byte, 8)
		l4[0], l4[1] = c.ICMP.Type, c.ICMP.Code
		binary.BigEndian.PutUint16(l4[4:], c.ICMP.ID)
		checksumAt = 2
	}
	if c.Protocol == IPProtoTCP || c.Protocol == IPProtoUDP {
		binary.BigEndian.PutUint16(l4[0:], c.Source.Port())
		binary.BigEndian.PutUint16(l4[2:], c.Destination.Port())
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

// sctpInit is a packet with an INIT chunk (RFC 9260, sections 3.1 and 3.3.2).
func sctpInit(src, dst uint16) []byte {
	const header, chunk, tag, window, streams = 12, 20, 1, 1 << 16, 1
	b := make([]byte, header+chunk)
	binary.BigEndian.PutUint16(b[0:], src)
	binary.BigEndian.PutUint16(b[2:], dst)
	init := b[header:]
	init[0], init[3] = 1, chunk
	binary.BigEndian.PutUint32(init[4:], tag)
	binary.BigEndian.PutUint32(init[8:], window)
	binary.BigEndian.PutUint16(init[12:], streams)
	binary.BigEndian.PutUint16(init[14:], streams)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
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
