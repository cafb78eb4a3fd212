package capture

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
)

// Numbers of headers: EtherTypes (IEEE 802), IP protocols and IPv6 extension headers (IANA).
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	ipICMP   = 1
	ipTCP    = 6
	ipUDP    = 17
	ipGRE    = 47
	ipICMPv6 = 58
	ipSCTP   = 132

	hopByHop     = 0
	routing      = 43
	fragment     = 44
	authHeader   = 51
	destinations = 60
)

// Lengths of headers in bytes.
const (
	lenEthernet = 14
	lenIPv4     = 20
	lenIPv6     = 40
	lenUDP      = 8
	lenTunnel   = 8 // Geneve's without options, and VXLAN's
	lenGRE      = 4 // without the words that its flags announce
	lenARP      = 28
)

// maxExtensions bounds the extension headers of a packet that are followed.
const maxExtensions = 8

// Headers are what is known of a packet from its first bytes. What is beyond them is zero.
type Headers struct {
	EtherType uint16
	// Src and Dst are of IP packets and ARP; invalid of others.
	Src, Dst netip.Addr
	// Protocol is the IP protocol behind extension headers.
	Protocol         uint8
	SrcPort, DstPort uint16
	// Offset is that of a later fragment, which has no ports; MoreFragments is set in every fragment but the last.
	Offset        int
	MoreFragments bool
	// Payload is the length behind the transport header, as the headers say.
	Payload int
	// Data is the payload as far as the frame has it: a part of the frame.
	Data []byte
	// TCPFlags and TCPSequence are of TCP; Type and Code are those of ICMP, Type the operation of ARP.
	TCPFlags    uint8
	TCPSequence uint32
	Type, Code  uint8
	// ID is the identifier of an ICMP echo.
	ID uint16
	// Target is the address that a neighbor solicitation or advertisement is about.
	Target netip.Addr
	MAC    model.MAC // that an ARP reply tells
	// Tunnel is around the packet; nil for none.
	Tunnel *Tunnel
}

// Tunnel is an encapsulation.
type Tunnel struct {
	Encapsulation model.Encapsulation
	Src, Dst      netip.Addr
	ID            uint32
}

// Parse decodes an Ethernet frame, which may be cut off anywhere. With inTunnel, it is the packet within an
// encapsulation, if it has one.
func Parse(frame []byte, inTunnel bool) Headers {
	h := parseEthernet(frame)
	etherType, ipip := innerTypes[h.Protocol]
	if !inTunnel || h.Offset != 0 || h.Protocol != ipUDP && h.Protocol != ipGRE && !ipip {
		return h
	}
	t, at := Tunnel{Src: h.Src, Dst: h.Dst}, h.payloadAt(frame)
	if ipip && at <= len(frame) {
		inner := parsePacket(etherType, frame[at:])
		t.Encapsulation, inner.Tunnel = model.IPIP, &t
		return inner
	}
	if h.Protocol == ipGRE {
		t.Encapsulation = model.GRE
		t.ID, at = gre(frame, at)
	} else {
		t.Encapsulation = overUDP(h.DstPort)
		t.ID, at = virtualNetwork(t.Encapsulation, frame, at+lenUDP)
	}
	if at == 0 || at > len(frame) {
		return h
	}
	inner := parseEthernet(frame[at:])
	inner.Tunnel = &t
	return inner
}

// innerTypes are the EtherTypes of what is in IPIP, by the outer IP protocol.
var innerTypes = map[uint8]uint16{model.InnerProtocol(true): etherIPv4, model.InnerProtocol(false): etherIPv6}

// overUDP is the encapsulation with a UDP port, or "".
func overUDP(port uint16) model.Encapsulation {
	for _, e := range model.Encapsulations {
		if port != 0 && port == e.UDPPort() {
			return e
		}
	}
	return ""
}

// virtualNetwork reads the header of an encapsulation over UDP at an offset of a frame: its identifier, and where the
// inner frame begins; 0 for a frame without such a header.
func virtualNetwork(e model.Encapsulation, frame []byte, at int) (id uint32, inner int) {
	if e == "" || at+lenTunnel > len(frame) {
		return 0, 0
	}
	inner = at + lenTunnel
	if e == model.Geneve {
		inner += int(frame[at]&0x3f) * 4 // the options
	}
	return binary.BigEndian.Uint32(frame[at+4:]) >> 8, inner
}

// gre reads the header of GRE around an Ethernet frame (RFC 2784 and 2890), as virtualNetwork does.
func gre(frame []byte, at int) (key uint32, inner int) {
	const checksum, keyed, sequenced, version, ethernet = 0x8000, 0x2000, 0x1000, 0x7, 0x6558
	if at+lenGRE > len(frame) {
		return 0, 0
	}
	flags := binary.BigEndian.Uint16(frame[at:])
	if flags&version != 0 || binary.BigEndian.Uint16(frame[at+2:]) != ethernet {
		return 0, 0
	}
	at += lenGRE
	if flags&checksum != 0 {
		at += 4
	}
	if flags&keyed != 0 {
		if at+4 > len(frame) {
			return 0, 0
		}
		key = binary.BigEndian.Uint32(frame[at:])
		at += 4
	}
	if flags&sequenced != 0 {
		at += 4
	}
	return key, at
}

// payloadAt is where the payload of an IP packet begins. Extension headers were followed by parseEthernet.
func (h Headers) payloadAt(frame []byte) int {
	if h.EtherType == etherIPv4 {
		return lenEthernet + int(frame[lenEthernet]&0xf)*4
	}
	_, at, _, _ := extensions(frame[lenEthernet:])
	return lenEthernet + at
}

func parseEthernet(b []byte) Headers {
	if len(b) < lenEthernet {
		return Headers{}
	}
	return parsePacket(binary.BigEndian.Uint16(b[12:]), b[lenEthernet:])
}

// parsePacket decodes what is behind an Ethernet header.
func parsePacket(etherType uint16, b []byte) Headers {
	h := Headers{EtherType: etherType}
	switch {
	case h.EtherType == etherARP && len(b) >= lenARP && b[4] == 6 && b[5] == 4:
		h.Type, h.MAC = b[7], model.MAC(b[8:14])
		h.Src, h.Dst = netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	case h.EtherType == etherIPv4 && len(b) >= lenIPv4:
		h.ipv4(b)
	case h.EtherType == etherIPv6 && len(b) >= lenIPv6:
		h.ipv6(b)
	}
	return h
}

func (h *Headers) ipv4(b []byte) {
	h.Src, h.Dst, h.Protocol = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9]
	flags := binary.BigEndian.Uint16(b[6:])
	h.Offset, h.MoreFragments = int(flags&0x1fff)*8, flags&0x2000 != 0
	header := max(int(b[0]&0xf)*4, lenIPv4)
	h.transport(b, header, int(binary.BigEndian.Uint16(b[2:]))-header)
}

func (h *Headers) ipv6(b []byte) {
	h.Src, h.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	protocol, at, offset, more := extensions(b)
	h.Protocol, h.Offset, h.MoreFragments = protocol, offset, more
	h.transport(b, at, int(binary.BigEndian.Uint16(b[4:]))+lenIPv6-at)
}

// extensions follows the extension headers of an IPv6 packet (RFC 8200, section 4) to what is behind them.
func extensions(b []byte) (protocol uint8, at, offset int, more bool) {
	protocol, at = b[6], lenIPv6
	for range maxExtensions {
		if at+8 > len(b) {
			return protocol, at, offset, more
		}
		length := (int(b[at+1]) + 1) * 8
		switch protocol {
		case hopByHop, routing, destinations:
		case authHeader:
			length = (int(b[at+1]) + 2) * 4 // RFC 4302, section 2.2
		case fragment:
			word := binary.BigEndian.Uint16(b[at+2:])
			length, offset, more = 8, int(word>>3)*8, word&1 != 0
		default:
			return protocol, at, offset, more
		}
		protocol = b[at]
		at += length
		if offset > 0 {
			break // what follows is the middle of the packet
		}
	}
	return protocol, at, offset, more
}

// transport decodes what is at an offset of an IP packet, with this length.
func (h *Headers) transport(b []byte, at, length int) {
	h.Payload = max(length, 0)
	if h.Offset > 0 || at > len(b) {
		return
	}
	b = b[at:]
	header := 0
	switch h.Protocol {
	case ipTCP, ipUDP, ipSCTP:
		if len(b) < 4 {
			return
		}
		h.SrcPort, h.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		header = lenUDP
		switch {
		case h.Protocol == ipSCTP:
			header = 12
		case h.Protocol == ipTCP && len(b) >= lenIPv4:
			header, h.TCPFlags, h.TCPSequence = int(b[12]>>4)*4, b[13], binary.BigEndian.Uint32(b[4:])
		}
	case ipICMP, ipICMPv6:
		if len(b) < 2 {
			return
		}
		h.Type, h.Code, header = b[0], b[1], 8
		if strings.HasPrefix(icmpTypes[h.Src.Is4()][h.Type], "echo") && len(b) >= 8 {
			h.ID = binary.BigEndian.Uint16(b[4:])
		}
		if h.Protocol == ipICMPv6 && (h.Type == solicitation || h.Type == advertisement) && len(b) >= 24 {
			h.Target = netip.AddrFrom16([16]byte(b[8:24]))
		}
	}
	h.Payload = max(length-header, 0)
	if header <= len(b) {
		h.Data = b[header:min(len(b), header+h.Payload)]
	}
}
