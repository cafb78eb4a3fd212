package trace

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// IP protocol and Ethernet type numbers.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132

	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeIPv6 = 0x86dd
)

// Packet is a packet's headers and metadata. It is a value: a copy is an independent packet.
type Packet struct {
	f [numFields]value
	// conn is the packet's connection and back its direction. Each zone looks a packet up only once.
	conn *conn
	back bool
}

// TCP flags.
const (
	FIN uint16 = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// IP returns a packet of the addresses' family. A TCP packet begins a connection (SYN).
func IP(port uint32, src, dst netip.Addr, protocol uint8, srcPort, dstPort uint16) Packet {
	var p Packet
	p.f[inPort], p.f[nwTTL] = number(uint64(port)), number(64)
	p.f[nwProto], p.f[tpSrc], p.f[tpDst] = number(uint64(protocol)), number(uint64(srcPort)), number(uint64(dstPort))
	p.setAddrs(src, dst)
	if protocol == protoTCP {
		p.f[tcpFlags] = number(uint64(SYN))
	}
	return p
}

func (p *Packet) setAddrs(src, dst netip.Addr) {
	if src.Is4() {
		p.f[ethType], p.f[nwSrc], p.f[nwDst] = number(typeIPv4), addrValue(src), addrValue(dst)
	} else {
		p.f[ethType], p.f[ipv6Src], p.f[ipv6Dst] = number(typeIPv6), addrValue(src), addrValue(dst)
	}
}

// WithMACs returns the packet with these Ethernet addresses.
func (p Packet) WithMACs(src, dst model.MAC) Packet {
	for f, m := range map[field]model.MAC{ethSrc: src, ethDst: dst} {
		n := uint64(0)
		for _, b := range m {
			n = n<<8 | uint64(b)
		}
		p.f[f] = number(n)
	}
	return p
}

// WithTCPFlags returns the packet with these flags instead of SYN.
func (p Packet) WithTCPFlags(flags uint16) Packet {
	p.f[tcpFlags] = number(uint64(flags))
	return p
}

// WithTunnel returns the packet as received through a tunnel from the node with this address.
func (p Packet) WithTunnel(src netip.Addr) Packet {
	if src.Is4() {
		p.f[tunSrc] = addrValue(src)
	} else {
		p.f[tunIPv6Src] = addrValue(src)
	}
	return p
}

// ParsePacket parses a packet in the syntax of ovs-fields(7) and ofproto/trace:
// in_port=16,tcp,nw_src=10.0.0.1,nw_dst=10.0.0.2,tp_dst=80.
func ParsePacket(text string) (Packet, error) {
	var p Packet
	p.f[nwTTL] = number(64)
	conds, err := parseMatch(openflow.ParseMatch(text))
	if err != nil {
		return Packet{}, fmt.Errorf("packet %q: %w", text, err)
	}
	for _, c := range conds {
		p.f[c.field] = p.f[c.field].and(c.mask.not()).or(c.value)
	}
	return p, nil
}

// InPort is the port on which the packet arrived.
func (p Packet) InPort() uint32 { return uint32(p.f[inPort].lo) }

// Src is the source address; invalid when the packet is not IP.
func (p Packet) Src() netip.Addr { return p.addr(nwSrc, ipv6Src) }

// Dst is the destination address; invalid when the packet is not IP.
func (p Packet) Dst() netip.Addr { return p.addr(nwDst, ipv6Dst) }

func (p Packet) addr(four, six field) netip.Addr {
	switch p.f[ethType].lo {
	case typeIPv4:
		return p.f[four].addr4()
	case typeIPv6:
		return p.f[six].addr16()
	}
	return netip.Addr{}
}

// Protocol is the transport protocol's number.
func (p Packet) Protocol() uint8 { return uint8(p.f[nwProto].lo) }

// SrcPort is the source port, or the ICMP type.
func (p Packet) SrcPort() uint16 { return uint16(p.f[tpSrc].lo) }

// DstPort is the destination port, or the ICMP code.
func (p Packet) DstPort() uint16 { return uint16(p.f[tpDst].lo) }

// SrcMAC is the Ethernet source address.
func (p Packet) SrcMAC() model.MAC { return macOf(p.f[ethSrc]) }

// DstMAC is the Ethernet destination address.
func (p Packet) DstMAC() model.MAC { return macOf(p.f[ethDst]) }

// TunnelDst is the remote address that a tunnel port sends to; invalid when not set.
func (p Packet) TunnelDst() netip.Addr {
	switch {
	case !p.f[tunDst].isZero():
		return p.f[tunDst].addr4()
	case !p.f[tunIPv6Dst].isZero():
		return p.f[tunIPv6Dst].addr16()
	}
	return netip.Addr{}
}

func macOf(v value) model.MAC {
	var m model.MAC
	for i := range m {
		m[i] = byte(v.lo >> (40 - 8*i))
	}
	return m
}

// Field returns named bits, as in an action: "reg0", "NXM_NX_CT_LABEL[0..31]"; the lower 64 of more.
func (p Packet) Field(name string) (uint64, error) {
	bits, err := parseBits(name)
	return bits.get(&p).lo, err
}

// String is the packet in the syntax of ofproto/trace: headers, input port and tunnel, without registers and state.
func (p Packet) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "in_port=%d", p.InPort())
	for _, t := range []struct {
		name string
		f    field
		addr netip.Addr
	}{{"tun_src", tunSrc, p.f[tunSrc].addr4()}, {"tun_ipv6_src", tunIPv6Src, p.f[tunIPv6Src].addr16()}} {
		if !p.f[t.f].isZero() {
			fmt.Fprintf(&b, ",%s=%s", t.name, t.addr)
		}
	}
	fmt.Fprintf(&b, ",dl_src=%s,dl_dst=%s", p.SrcMAC(), p.DstMAC())
	typ, proto := p.f[ethType].lo, p.Protocol()
	if typ == typeARP {
		fmt.Fprintf(&b, ",arp,arp_op=%d,arp_spa=%s,arp_tpa=%s,arp_sha=%s,arp_tha=%s",
			proto, p.f[nwSrc].addr4(), p.f[nwDst].addr4(), macOf(p.f[arpSHA]), macOf(p.f[arpTHA]))
		return b.String()
	}
	src := "nw"
	switch typ {
	case typeIPv4:
	case typeIPv6:
		src = "ipv6"
	default:
		fmt.Fprintf(&b, ",dl_type=%#x", typ)
		return b.String()
	}
	word := ""
	for w, m := range protocolWords {
		if m.ethType == typ && m.hasProto && m.proto == uint64(proto) {
			word = w
		}
	}
	switch {
	case word != "":
		fmt.Fprintf(&b, ",%s", word)
	case typ == typeIPv4:
		fmt.Fprintf(&b, ",ip,nw_proto=%d", proto)
	default:
		fmt.Fprintf(&b, ",ipv6,nw_proto=%d", proto)
	}
	fmt.Fprintf(&b, ",%[1]s_src=%[2]s,%[1]s_dst=%[3]s,nw_ttl=%[4]d", src, p.Src(), p.Dst(), p.f[nwTTL].lo)
	switch word {
	case "icmp":
		fmt.Fprintf(&b, ",icmp_type=%d,icmp_code=%d", p.SrcPort(), p.DstPort())
	case "icmp6":
		fmt.Fprintf(&b, ",icmpv6_type=%d,icmpv6_code=%d", p.SrcPort(), p.DstPort())
	case "tcp", "tcp6", "udp", "udp6", "sctp", "sctp6":
		fmt.Fprintf(&b, ",%[1]s_src=%[2]d,%[1]s_dst=%[3]d", strings.TrimSuffix(word, "6"), p.SrcPort(), p.DstPort())
	}
	if proto == protoTCP {
		fmt.Fprintf(&b, ",tcp_flags=0x%s", strconv.FormatUint(p.f[tcpFlags].lo, 16))
	}
	return b.String()
}
