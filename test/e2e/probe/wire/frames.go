package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// MAC is an Ethernet address.
type MAC [6]byte

// BroadcastMAC reaches every station.
var BroadcastMAC = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// EtherTypes of the frames built here.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
)

// IP protocol numbers of the packets built here.
const (
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// ARPOp is the operation of an ARP packet.
type ARPOp uint16

// The two ARP operations.
const (
	ARPRequest ARPOp = 1
	ARPReply   ARPOp = 2
)

// Marks are found again in whatever frame carries them, encapsulated or not: a fixed word and a tag of tagLen bytes. A
// mark fits into the padding of an ARP frame and into an ND option of 16 bytes.
const (
	markWord = "weftspoof"
	tagLen   = 5
)

// MarkLen is the length of every mark.
const MarkLen = len(markWord) + tagLen

// Mark makes the mark of a tag, which has to be tagLen bytes long.
func Mark(tag string) []byte {
	if len(tag) != tagLen {
		panic(fmt.Sprintf("mark tag %q is not %d bytes long", tag, tagLen))
	}
	return []byte(markWord + tag)
}

// Tag returns the tag of the first mark in a frame.
func Tag(frame []byte) (string, bool) {
	for i := 0; i+MarkLen <= len(frame); i++ {
		if string(frame[i:i+len(markWord)]) == markWord {
			return string(frame[i+len(markWord) : i+MarkLen]), true
		}
	}
	return "", false
}

// Ethernet puts a header before a payload, and pads to the least length an Ethernet frame may have without its
// checksum.
func Ethernet(dst, src MAC, etherType uint16, payload []byte) []byte {
	const least = 60
	f := make([]byte, 0, max(least, 14+len(payload)))
	f = append(f, dst[:]...)
	f = append(f, src[:]...)
	f = binary.BigEndian.AppendUint16(f, etherType)
	f = append(f, payload...)
	return f[:max(least, len(f))]
}

// UDPFrame is an Ethernet frame with an IPv4 or IPv6 packet, after src's family, with a UDP datagram.
func UDPFrame(dstMAC, srcMAC MAC, src, dst netip.AddrPort, payload []byte) []byte {
	udp := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(udp[0:], src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	udp = append(udp, payload...)
	sum := transportChecksum(src.Addr(), dst.Addr(), protoUDP, udp)
	if sum == 0 { // RFC 768: 0 means "no checksum"
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	packet, etherType := ipPacket(src.Addr(), dst.Addr(), protoUDP, 64, udp)
	return Ethernet(dstMAC, srcMAC, etherType, packet)
}

// TCPFlags are the flags of a TCP segment.
type TCPFlags byte

// The flags that the tests send.
const (
	SYN TCPFlags = 0x02
	PSH TCPFlags = 0x08
	ACK TCPFlags = 0x10
)

// TCPFrame is an Ethernet frame with a TCP segment without options.
func TCPFrame(dstMAC, srcMAC MAC, src, dst netip.AddrPort, flags TCPFlags, seq, ack uint32, payload []byte) []byte {
	const words, window = 5, 0xffff
	tcp := make([]byte, 4*words, 4*words+len(payload))
	binary.BigEndian.PutUint16(tcp[0:], src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	tcp[12], tcp[13] = words<<4, byte(flags)
	binary.BigEndian.PutUint16(tcp[14:], window)
	tcp = append(tcp, payload...)
	binary.BigEndian.PutUint16(tcp[16:], transportChecksum(src.Addr(), dst.Addr(), protoTCP, tcp))
	packet, etherType := ipPacket(src.Addr(), dst.Addr(), protoTCP, 64, tcp)
	return Ethernet(dstMAC, srcMAC, etherType, packet)
}

// ARPFrame is an ARP packet whose padding carries a mark. The Ethernet source may differ from the sender's hardware
// address, which is one of the lies that a switch has to see through.
func ARPFrame(dstMAC, srcMAC MAC, op ARPOp, senderMAC MAC, sender netip.Addr, targetMAC MAC, target netip.Addr,
	mark []byte) []byte {
	p := make([]byte, 0, 46)
	p = append(p, 0, 1, 8, 0, 6, 4) // Ethernet, IPv4, lengths of both addresses
	p = binary.BigEndian.AppendUint16(p, uint16(op))
	p = append(p, senderMAC[:]...)
	p = append(p, sender.AsSlice()...)
	p = append(p, targetMAC[:]...)
	p = append(p, target.AsSlice()...)
	return Ethernet(dstMAC, srcMAC, etherARP, append(p, mark...))
}

// NAFrame is an unsolicited, overriding neighbour advertisement: "target is at lladdr". A private option carries a
// mark.
func NAFrame(dstMAC, srcMAC MAC, src, dst, target netip.Addr, lladdr MAC, mark []byte) []byte {
	const typeNA, flagOverride, optTargetLL = 136, 0x20, 2
	m := []byte{typeNA, 0, 0, 0, flagOverride, 0, 0, 0}
	m = append(m, target.AsSlice()...)
	m = appendLLOption(m, optTargetLL, lladdr)
	return icmp6Frame(dstMAC, srcMAC, src, dst, appendMarkOption(m, mark))
}

// RAFrame is a router advertisement that offers lladdr as the default router. A private option carries a mark.
func RAFrame(dstMAC, srcMAC MAC, src, dst netip.Addr, lladdr MAC, mark []byte) []byte {
	const typeRA, hopLimit, optSourceLL = 134, 64, 1
	const lifetimeSeconds = 1800
	m := []byte{typeRA, 0, 0, 0, hopLimit, 0}
	m = binary.BigEndian.AppendUint16(m, lifetimeSeconds)
	m = append(m, make([]byte, 8)...) // reachable time and retransmission timer: unspecified
	m = appendLLOption(m, optSourceLL, lladdr)
	return icmp6Frame(dstMAC, srcMAC, src, dst, appendMarkOption(m, mark))
}

// transEtherBridging is the protocol of a header before an Ethernet frame.
const transEtherBridging = 0x6558

// Geneve puts a Geneve header without options before an inner Ethernet frame (RFC 8926 section 3.4).
func Geneve(vni uint32, inner []byte) []byte {
	h := []byte{0, 0}
	h = binary.BigEndian.AppendUint16(h, transEtherBridging)
	h = binary.BigEndian.AppendUint32(h, vni<<8)
	return append(h, inner...)
}

// VXLAN puts a VXLAN header before an inner Ethernet frame (RFC 7348 section 5).
func VXLAN(vni uint32, inner []byte) []byte {
	const vniPresent = 0x08
	h := []byte{vniPresent, 0, 0, 0}
	h = binary.BigEndian.AppendUint32(h, vni<<8)
	return append(h, inner...)
}

// GRE puts a GRE header with a key before an inner Ethernet frame (RFC 2890 section 2).
func GRE(key uint32, inner []byte) []byte {
	const keyPresent = 0x20
	h := binary.BigEndian.AppendUint16([]byte{keyPresent, 0}, transEtherBridging)
	h = binary.BigEndian.AppendUint32(h, key)
	return append(h, inner...)
}

// icmp6Frame fills in the checksum. The hop limit of 255 is what makes neighbour discovery believable.
func icmp6Frame(dstMAC, srcMAC MAC, src, dst netip.Addr, message []byte) []byte {
	binary.BigEndian.PutUint16(message[2:], transportChecksum(src, dst, protoICMPv6, message))
	packet, etherType := ipPacket(src, dst, protoICMPv6, 255, message)
	return Ethernet(dstMAC, srcMAC, etherType, packet)
}

func appendLLOption(m []byte, optType byte, lladdr MAC) []byte {
	return append(append(m, optType, 1), lladdr[:]...)
}

// appendMarkOption adds an option of 16 bytes of a type that is reserved for experiments (RFC 4727).
func appendMarkOption(m, mark []byte) []byte {
	const optExperiment = 253
	option := make([]byte, 16)
	option[0], option[1] = optExperiment, 2
	copy(option[2:], mark)
	return append(m, option...)
}

func ipPacket(src, dst netip.Addr, proto, ttl byte, payload []byte) (packet []byte, etherType uint16) {
	if src.Is4() {
		h := make([]byte, 20, 20+len(payload))
		h[0] = 0x45
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
		h[8], h[9] = ttl, proto
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(0, h))
		return append(h, payload...), etherIPv4
	}
	h := make([]byte, 40, 40+len(payload))
	h[0] = 0x60
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	h[6], h[7] = proto, ttl
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return append(h, payload...), etherIPv6
}

// transportChecksum covers the pseudo header of RFC 768 or RFC 8200 and the message, whose own checksum field is 0.
func transportChecksum(src, dst netip.Addr, proto byte, message []byte) uint16 {
	var pseudo []byte
	pseudo = append(pseudo, src.AsSlice()...)
	pseudo = append(pseudo, dst.AsSlice()...)
	pseudo = append(pseudo, 0, proto)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(message)))
	return checksum(sum16(0, pseudo), message)
}

func checksum(start uint32, b []byte) uint16 {
	sum := sum16(start, b)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func sum16(sum uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	return sum
}
