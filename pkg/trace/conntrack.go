package trace

import (
	"fmt"
	"net/netip"
	"strings"
)

// Conntrack is a model of the switch's connection tracker: it follows first packets, later ones and replies through
// zones, marks, labels and NAT. Connections never time out, ICMP errors count as invalid, and fragments are not
// reassembled. It belongs to the goroutine that traces with it.
type Conntrack struct {
	// Kernel selects the kernel datapath's state: a connection stays new until a reply. In the userspace datapath a
	// committed connection is established from the next packet on.
	Kernel bool

	conns map[key]*conn
}

// key is one direction of a connection in a zone.
type key struct {
	zone             uint16
	proto            uint8
	src, dst         netip.Addr
	srcPort, dstPort uint16
}

type conn struct {
	orig, reply key // reply is the reverse direction after NAT
	answered    bool
	mark        uint64
	label       value
}

// Clone returns an independent copy.
func (c *Conntrack) Clone() *Conntrack {
	if c == nil {
		return nil
	}
	out := &Conntrack{Kernel: c.Kernel, conns: make(map[key]*conn, len(c.conns))}
	same := map[*conn]*conn{}
	for k, v := range c.conns {
		if same[v] == nil {
			one := *v
			same[v] = &one
		}
		out.conns[k] = same[v]
	}
	return out
}

// Connections lists the connections, one line each, in no particular order.
func (c *Conntrack) Connections() []string {
	var out []string
	for k, v := range c.conns {
		if k == v.orig {
			out = append(out, fmt.Sprintf("zone %d: %s, replies %s, mark %#x, label %#x%016x",
				k.zone, k, v.reply, v.mark, v.label.hi, v.label.lo))
		}
	}
	return out
}

func (k key) String() string {
	return fmt.Sprintf("%d %s > %s", k.proto, netip.AddrPortFrom(k.src, k.srcPort), netip.AddrPortFrom(k.dst, k.dstPort))
}

func (k key) reverse() key {
	k.src, k.dst, k.srcPort, k.dstPort = k.dst, k.src, k.dstPort, k.srcPort
	return k
}

const (
	icmpEchoReply     = 0
	icmpEcho          = 8
	icmpv6Echo        = 128
	icmpv6EchoReply   = 129
	echoRequest       = 1
	echoReplies       = 2
	connectionless    = 0
	firstDynamicPort  = 1024
	lastPort          = 65535
	tcpInvalidWithSYN = RST | FIN
)

// keyOf is the connection key of a packet; false for a packet that cannot belong to a connection.
func keyOf(zone uint16, p *Packet) (k key, ok bool) {
	k = key{zone: zone, proto: p.Protocol(), src: p.Src(), dst: p.Dst()}
	if !k.src.IsValid() || p.f[nwFrag].lo&fragLater != 0 {
		return k, false
	}
	switch k.proto {
	case protoTCP, protoUDP, protoSCTP:
		k.srcPort, k.dstPort = p.SrcPort(), p.DstPort()
	case protoICMP, protoICMPv6:
		// Request and reply have mirrored types, as ports do.
		switch uint8(p.SrcPort()) {
		case icmpEcho, icmpv6Echo:
			k.srcPort, k.dstPort = echoRequest, echoReplies
		case icmpEchoReply, icmpv6EchoReply:
			k.srcPort, k.dstPort = echoReplies, echoRequest
		default:
			return k, false
		}
	default:
		k.srcPort, k.dstPort = connectionless, connectionless
	}
	return k, true
}

func hasPorts(proto uint8) bool { return proto == protoTCP || proto == protoUDP || proto == protoSCTP }

// begins reports whether a packet without a connection may begin one.
func begins(k key, p *Packet) bool {
	switch k.proto {
	case protoICMP, protoICMPv6:
		return k.srcPort == echoRequest
	case protoTCP:
		flags := uint16(p.f[tcpFlags].lo)
		if flags&SYN != 0 {
			return flags&(tcpInvalidWithSYN|ACK) == 0
		}
		return flags&ACK != 0 // picked up in the middle of a connection
	}
	return true
}

// translation is the NAT of a commit.
type translation struct {
	on       bool // nat, with or without arguments
	src, dst netip.Addr
	port     uint16 // destination port; 0 keeps it
	// The source port is kept if it is in this range, or replaced by one of it; 0 allows any.
	srcPort, lastSrcPort uint16
	// keepSource changes the source port only when another connection has the same replies.
	keepSource bool
}

// track sends a packet through a zone: it sets the packet's connection fields and, with translate, its addresses. It
// returns the packet's connection, or the key of a new one; neither for a packet that cannot belong to a connection.
func (c *Conntrack) track(zone uint16, p *Packet, translate bool) (found *conn, k key, state uint64) {
	before := p.f[ctState].lo
	p.f[ctZone] = number(uint64(zone))
	for _, f := range []field{ctState, ctMark, ctLabel, ctNwSrc, ctNwDst, ctIPv6Src, ctIPv6Dst, ctNwProto, ctTpSrc,
		ctTpDst} {
		p.f[f] = value{}
	}
	if p.conn != nil && p.conn.orig.zone == zone {
		found = p.conn
		// A packet is translated only once.
		state = stateTrk | before&(stateSNAT|stateDNAT)
		translate = translate && state == stateTrk
	} else {
		var ok bool
		k, ok = keyOf(zone, p)
		found, state = c.conns[k], stateTrk
		if !ok || found == nil && !begins(k, p) {
			p.f[ctState], p.conn = number(state|stateInv), nil
			return nil, k, state | stateInv
		}
		p.conn, p.back = found, found != nil && k == found.reply && k != found.orig
	}
	switch {
	case found == nil:
		p.setOriginal(k)
		p.f[ctState] = number(state | stateNew)
		return nil, k, state | stateNew
	case p.back:
		found.answered = true
		state |= stateEst | stateRpl
	case c.Kernel && !found.answered:
		state |= stateNew
	default:
		state |= stateEst
	}
	p.f[ctMark], p.f[ctLabel] = number(found.mark), found.label
	p.setOriginal(found.orig)
	if translate {
		state |= found.translate(p)
	}
	p.f[ctState] = number(state)
	return found, k, state
}

// translate sets a packet's addresses to those on the other side of its connection, and returns the resulting state
// bits.
func (c *conn) translate(p *Packet) uint64 {
	from, to := c.orig, c.reply.reverse()
	if p.back {
		from, to = c.reply, c.orig.reverse()
	}
	state := uint64(0)
	if to.src != from.src || to.srcPort != from.srcPort {
		state |= stateSNAT
	}
	if to.dst != from.dst || to.dstPort != from.dstPort {
		state |= stateDNAT
	}
	p.setAddrs(to.src, to.dst)
	if from.proto != protoICMP && from.proto != protoICMPv6 {
		p.f[tpSrc], p.f[tpDst] = number(uint64(to.srcPort)), number(uint64(to.dstPort))
	}
	return state
}

func (p *Packet) setOriginal(k key) {
	p.f[ctNwProto], p.f[ctTpSrc], p.f[ctTpDst] = number(
		uint64(k.proto)), number(uint64(k.srcPort)), number(uint64(k.dstPort))
	if k.src.Is4() {
		p.f[ctNwSrc], p.f[ctNwDst] = addrValue(k.src), addrValue(k.dst)
	} else {
		p.f[ctIPv6Src], p.f[ctIPv6Dst] = addrValue(k.src), addrValue(k.dst)
	}
}

// commit creates the connection of a new packet, with its NAT.
func (c *Conntrack) commit(k key, nat translation) *conn {
	if c.conns == nil {
		c.conns = map[key]*conn{}
	}
	after := k
	if nat.src.IsValid() {
		after.src = nat.src
		if nat.srcPort != 0 && (k.srcPort < nat.srcPort || k.srcPort > nat.lastSrcPort) && hasPorts(k.proto) {
			after.srcPort = nat.srcPort
		}
	}
	if nat.dst.IsValid() {
		after.dst = nat.dst
		if nat.port != 0 {
			after.dstPort = nat.port
		}
	}
	one := &conn{orig: k, reply: after.reverse()}
	if (nat.src.IsValid() || nat.dst.IsValid() || nat.keepSource) && hasPorts(k.proto) {
		first, last := firstDynamicPort, lastPort
		if nat.srcPort != 0 {
			first, last = int(nat.srcPort), int(nat.lastSrcPort)
		}
		for port := first; c.conns[one.reply] != nil && port <= last; port++ {
			one.reply.dstPort = uint16(port)
		}
	}
	c.conns[one.orig] = one
	c.conns[one.reply] = one
	return one
}

// Sweep sets each connection's mark to the result of decide, or deletes the connection. decide gets the connection's
// first packet, its endpoint, and the mark.
func (c *Conntrack) Sweep(
	decide func(zone uint16, proto uint8, src, dst, endpoint netip.AddrPort, mark uint64) (uint64, bool),
) {
	for k, v := range c.conns {
		if k != v.orig {
			continue
		}
		src, dst := netip.AddrPortFrom(k.src, k.srcPort), netip.AddrPortFrom(k.dst, k.dstPort)
		mark, keep := decide(k.zone, k.proto, src, dst, netip.AddrPortFrom(v.reply.src, v.reply.srcPort), v.mark)
		if v.mark = mark; !keep {
			delete(c.conns, v.orig)
			delete(c.conns, v.reply)
		}
	}
}

// Forget deletes all connections.
func (c *Conntrack) Forget() { clear(c.conns) }

func stateText(state uint64) string {
	var words []string
	for i, w := range ctStateWords {
		if state&(1<<i) != 0 {
			words = append(words, w)
		}
	}
	return strings.Join(words, ",")
}
