package capture

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

// Types of ICMPv6 that are neighbor discovery's (RFC 4861).
const (
	solicitation  = 135
	advertisement = 136
)

// icmpTypes are the names of frequent types.
var icmpTypes = map[bool]map[uint8]string{
	true: {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"},
	false: {1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request", 129: "echo reply", 130: "multicast query",
		131: "multicast report", 133: "router solicitation", 134: "router advertisement", solicitation: "neighbor solicitation",
		advertisement: "neighbor advertisement", 143: "multicast report"},
}

// tcpFlags are the flags from the lowest bit (RFC 9293, section 3.1).
var tcpFlags = []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"}

// ProtocolName is the protocol of a packet as users write it.
func (h Headers) ProtocolName() string {
	for _, p := range protocols {
		if h.Src.IsValid() && h.Protocol == p.name.number(h.Src.Is4()) && h.Protocol != 0 {
			return string(p.name)
		}
	}
	switch h.EtherType {
	case etherARP:
		return "ARP"
	case etherIPv4, etherIPv6:
		return fmt.Sprintf("IP protocol %d", h.Protocol)
	}
	return fmt.Sprintf("EtherType 0x%04x", h.EtherType)
}

// Info says in a few words what a packet is. Name gives an address its name.
func (h Headers) Info(name func(netip.Addr) string) string {
	text := h.ProtocolName()
	is4 := h.Src.Is4()
	switch {
	case h.EtherType == etherARP && h.Type == 2:
		text += fmt.Sprintf(" %s is at %s", name(h.Src), h.MAC)
	case h.EtherType == etherARP:
		text += " who has " + name(h.Dst)
	case !h.Src.IsValid():
	case h.Offset > 0:
		text += fmt.Sprintf(" fragment from byte %d, %d bytes", h.Offset, h.Payload)
	case text == string(ICMP):
		text += " " + cmp.Or(icmpTypes[is4][h.Type], fmt.Sprintf("type %d", h.Type))
		if h.Code != 0 {
			text += fmt.Sprintf(", code %d", h.Code)
		}
		if h.Target.IsValid() {
			text += " for " + name(h.Target)
		}
	case h.Protocol == ipTCP:
		var flags []string
		for i, flag := range tcpFlags {
			if h.TCPFlags&(1<<i) != 0 {
				flags = append(flags, flag)
			}
		}
		text += " " + strings.Join(flags, ",")
		if h.Payload > 0 {
			text += fmt.Sprintf(", %d bytes", h.Payload)
		}
	default:
		text += fmt.Sprintf(", %d bytes", h.Payload)
	}
	if h.Offset == 0 && h.MoreFragments {
		text += ", first fragment"
	}
	if t := h.Tunnel; t != nil {
		text += fmt.Sprintf(" in %s from %s to %s", t.Encapsulation.Title(), name(t.Src), name(t.Dst))
	}
	return text
}

// Ends are the source and destination with their names and ports.
func (h Headers) Ends(name func(netip.Addr) string) (source, destination string) {
	if !h.Src.IsValid() {
		return "", ""
	}
	return end(name, h.Src, h.SrcPort), end(name, h.Dst, h.DstPort)
}

func end(name func(netip.Addr) string, addr netip.Addr, port uint16) string {
	text := name(addr)
	switch {
	case port == 0:
		return text
	case text == addr.String():
		return netip.AddrPortFrom(addr, port).String()
	}
	return fmt.Sprintf("%s:%d", text, port)
}

// Names are the names of addresses that an agent has told.
type Names map[netip.Addr]string

// Set takes note of a name, or of that there is none any more.
func (n Names) Set(name Name) {
	if name.Name == "" {
		delete(n, name.Addr)
		return
	}
	n[name.Addr] = name.Name
}

// Of is an address's name, or the address.
func (n Names) Of(addr netip.Addr) string {
	return cmp.Or(n[addr], addr.String())
}
