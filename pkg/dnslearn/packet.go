package dnslearn

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// packet is what a frame has of UDP or TCP.
type packet struct {
	from, to netip.AddrPort
	tcp      bool
	seq      uint32
	syn      bool // of TCP
	payload  []byte
}

var errFrame = errors.New("not a whole UDP or TCP packet")

const (
	etherIPv4, etherIPv6 = 0x0800, 0x86dd
	protocolTCP          = 6
	protocolUDP          = 17
	etherHeader          = 14
)

// parseFrame reads an Ethernet frame. IPv6 extension headers and later fragments are not read; of a first fragment the
// payload is what it has.
func parseFrame(frame []byte) (packet, error) {
	var p packet
	if len(frame) < etherHeader {
		return p, errFrame
	}
	ip := frame[etherHeader:]
	var protocol byte
	var from, to netip.Addr
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		if len(ip) < 20 {
			return p, errFrame
		}
		header, total := int(ip[0]&0xf)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if header < 20 || total < header || total > len(ip) || binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
			return p, errFrame
		}
		protocol, from, to = ip[9], netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		ip = ip[header:total] // without Ethernet's padding
	case etherIPv6:
		if len(ip) < 40 || int(binary.BigEndian.Uint16(ip[4:])) > len(ip)-40 {
			return p, errFrame
		}
		protocol, from, to = ip[6], netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		ip = ip[40 : 40+int(binary.BigEndian.Uint16(ip[4:]))]
	}
	switch {
	case protocol == protocolUDP && len(ip) >= 8:
		p.payload = ip[8:]
	case protocol == protocolTCP && len(ip) >= 20 && int(ip[12]>>4)*4 >= 20 && int(ip[12]>>4)*4 <= len(ip):
		p.tcp, p.seq, p.payload = true, binary.BigEndian.Uint32(ip[4:]), ip[int(ip[12]>>4)*4:]
		p.syn = ip[13]&2 != 0
	default:
		return p, errFrame
	}
	p.from = netip.AddrPortFrom(from, binary.BigEndian.Uint16(ip))
	p.to = netip.AddrPortFrom(to, binary.BigEndian.Uint16(ip[2:]))
	return p, nil
}
