package capture

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/net/bpf"

	"github.com/weft-cni/weft/pkg/model"
)

// Protocol is a protocol that users name.
type Protocol string

// The protocols. ICMP is that of either family.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
	ICMP Protocol = "ICMP"
)

// protocols have the numbers of each in IPv4 and IPv6.
var protocols = []struct {
	name   Protocol
	v4, v6 uint8
}{{TCP, ipTCP, ipTCP}, {UDP, ipUDP, ipUDP}, {SCTP, ipSCTP, ipSCTP}, {ICMP, ipICMP, ipICMPv6}}

func (p Protocol) known() bool {
	return slices.Contains(protocolNames(), string(p))
}

// number is the protocol's in a family; 0 for none.
func (p Protocol) number(is4 bool) uint8 {
	for _, one := range protocols {
		switch {
		case one.name == p && is4:
			return one.v4
		case one.name == p:
			return one.v6
		}
	}
	return 0
}

func protocolNames() (names []string) {
	for _, one := range protocols {
		names = append(names, string(one.name))
	}
	return names
}

// Filter says which packets are wanted: those for which everything that is set holds.
type Filter struct {
	// Peers: the source or the destination is in one of them.
	Peers []netip.Prefix
	// Ends: the source or the destination is one of them. They are those of a Service.
	Ends []SocketAddr
	// Port: the source's or the destination's.
	Port     uint16
	Protocol Protocol
}

// SocketAddr is an address and port of a protocol.
type SocketAddr struct {
	Protocol Protocol
	At       netip.AddrPort
}

// Match says whether a packet is wanted. Later fragments have no ports: they are wanted where their addresses are.
func (f Filter) Match(h Headers) bool {
	is4 := h.Src.Is4()
	ip := h.Src.IsValid() && h.EtherType != etherARP
	if f.Protocol != "" && (!ip || h.Protocol != f.Protocol.number(is4)) {
		return false
	}
	if f.Port != 0 && (!ip || h.Offset == 0 && h.SrcPort != f.Port && h.DstPort != f.Port) {
		return false
	}
	if len(f.Peers) > 0 && !contains(f.Peers, h.Src) && !contains(f.Peers, h.Dst) {
		return false
	}
	return len(f.Ends) == 0 || ip && (f.end(h, h.Src, h.SrcPort) || f.end(h, h.Dst, h.DstPort))
}

func contains(list []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// end says whether one end of a packet is one of Ends.
func (f Filter) end(h Headers, addr netip.Addr, port uint16) bool {
	return slices.ContainsFunc(f.Ends, func(e SocketAddr) bool {
		return e.At.Addr() == addr && e.Protocol.number(addr.Is4()) == h.Protocol && (h.Offset > 0 || e.At.Port() == port)
	})
}

// addrs are ranges of which one must have the packet's source or destination; empty for no limit.
func (f Filter) addrs() []netip.Prefix {
	if len(f.Peers) > 0 {
		return f.Peers
	}
	var list []netip.Prefix
	for _, e := range f.Ends {
		if p := netip.PrefixFrom(e.At.Addr(), e.At.Addr().BitLen()); !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// Bounds of a program, which may have 4,096 instructions (Linux, BPF_MAXINSNS). What is beyond them is left to Match.
const (
	maxProgramAddrs = 48
	maxProgramLinks = 256
)

// Within says of which packets a filter is.
type Within int

// Of packets as they are, of those within an encapsulation, or of both.
const (
	Plain Within = iota
	Encapsulated
	Either
)

// Program is the filter in the kernel: it passes at least what Match wants, of these links if there are any, and keeps
// this many bytes of each packet. Of tunnels, it passes all encapsulations.
func (f Filter) Program(links []int, within Within, snapLen int) ([]bpf.RawInstruction, error) {
	a := assembler{accept: bpf.RetConstant{Val: uint32(snapLen)}}
	if 0 < len(links) && len(links) <= maxProgramLinks {
		a.add(bpf.LoadExtension{Num: bpf.ExtInterfaceIndex})
		for _, index := range links {
			a.when(bpf.JumpEqual, uint32(index), "link")
		}
		a.jump(reject)
		a.label("link")
	}
	a.add(bpf.LoadAbsolute{Off: 12, Size: 2})
	a.when(bpf.JumpEqual, etherIPv4, "ipv4")
	a.when(bpf.JumpEqual, etherIPv6, "ipv6")
	switch {
	case within == Encapsulated:
		a.jump(reject)
	case f.Protocol == "" && f.Port == 0 && len(f.Ends) == 0:
		if len(f.Peers) > 0 {
			a.when(bpf.JumpEqual, etherARP, accept)
			a.jump(reject)
		}
		a.jump(accept)
	default:
		a.jump(reject)
	}
	for _, is4 := range []bool{true, false} {
		a.label(family(is4))
		switch plain := family(is4) + " plain"; within {
		case Plain:
			a.wanted(f, is4)
		case Encapsulated:
			a.tunnel(is4, reject)
		default:
			a.tunnel(is4, plain)
			a.label(plain)
			a.wanted(f, is4)
		}
	}
	return a.assemble()
}

func family(is4 bool) string {
	if is4 {
		return "ipv4"
	}
	return "ipv6"
}

// Where the fields of a packet are, of IPv4 and IPv6.
func protocolAt(is4 bool) uint32 {
	if is4 {
		return lenEthernet + 9
	}
	return lenEthernet + 6
}

// assembler makes a program with labels: conditional jumps of classic BPF reach 255 instructions only, others all.
type assembler struct {
	accept bpf.RetConstant
	list   []bpf.Instruction
	jumps  map[int]string
	labels map[string]int
	next   int
}

// tunnel passes UDP to the encapsulations' ports, and their own IP protocols. Other packets go on at a label.
func (a *assembler) tunnel(is4 bool, others string) {
	a.add(bpf.LoadAbsolute{Off: protocolAt(is4), Size: 1})
	for _, protocol := range model.TunnelProtocols() {
		a.when(bpf.JumpEqual, uint32(protocol), accept)
	}
	a.when(bpf.JumpNotEqual, ipUDP, others)
	a.loadTransport(is4)
	a.add(bpf.LoadIndirect{Off: lenEthernet + 2, Size: 2})
	for _, port := range model.TunnelUDPPorts() {
		a.when(bpf.JumpEqual, uint32(port), accept)
	}
	a.jump(others)
}

// loadTransport sets X to the length of the IP header.
func (a *assembler) loadTransport(is4 bool) {
	if is4 {
		a.add(bpf.LoadMemShift{Off: lenEthernet})
		return
	}
	a.add(bpf.LoadConstant{Dst: bpf.RegX, Val: lenIPv6})
}

// wanted passes what a filter wants of a family, and what needs more to be decided.
func (a *assembler) wanted(f Filter, is4 bool) {
	name := family(is4)
	if list := f.addrs(); 0 < len(list) && len(list) <= maxProgramAddrs {
		src, dst := uint32(lenEthernet+12), uint32(lenEthernet+16)
		if !is4 {
			src, dst = lenEthernet+8, lenEthernet+24
		}
		for _, p := range list {
			if p.Addr().Is4() == is4 {
				a.inPrefix(src, p, name+" address")
				a.inPrefix(dst, p, name+" address")
			}
		}
		a.jump(reject)
		a.label(name + " address")
	}
	if f.Protocol != "" || f.Port != 0 {
		a.add(bpf.LoadAbsolute{Off: protocolAt(is4), Size: 1})
		if !is4 {
			for _, header := range []uint32{hopByHop, routing, fragment, authHeader, destinations} {
				a.when(bpf.JumpEqual, header, accept) // Match follows extension headers
			}
		}
		if f.Protocol != "" {
			a.when(bpf.JumpNotEqual, uint32(f.Protocol.number(is4)), reject)
		}
	}
	if f.Port != 0 {
		if is4 {
			a.add(bpf.LoadAbsolute{Off: lenEthernet + 6, Size: 2})
			a.when(bpf.JumpBitsSet, 0x1fff, accept) // a later fragment
		}
		a.loadTransport(is4)
		for _, at := range []uint32{lenEthernet, lenEthernet + 2} {
			a.add(bpf.LoadIndirect{Off: at, Size: 2})
			a.when(bpf.JumpEqual, uint32(f.Port), accept)
		}
		a.jump(reject)
	}
	a.jump(accept)
}

// inPrefix jumps to a label if the address at an offset is in a range.
func (a *assembler) inPrefix(at uint32, p netip.Prefix, label string) {
	a.next++
	other := "next " + strconv.Itoa(a.next)
	addr := p.Masked().Addr().AsSlice()
	for i := 0; i < p.Bits(); i += 32 {
		a.add(bpf.LoadAbsolute{Off: at + uint32(i/8), Size: 4})
		if bits := min(p.Bits()-i, 32); bits < 32 {
			a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: ^uint32(0) << (32 - bits)})
		}
		a.when(bpf.JumpNotEqual, binary.BigEndian.Uint32(addr[i/8:]), other)
	}
	a.jump(label)
	a.label(other)
}

// The labels that every program has.
const (
	accept = "accept"
	reject = "reject"
)

func (a *assembler) add(i bpf.Instruction) { a.list = append(a.list, i) }

func (a *assembler) label(name string) {
	if a.labels == nil {
		a.labels = map[string]int{}
	}
	a.labels[name] = len(a.list)
}

func (a *assembler) jump(label string) {
	if a.jumps == nil {
		a.jumps = map[int]string{}
	}
	a.jumps[len(a.list)] = label
	a.add(bpf.Jump{})
}

// when jumps if the condition holds.
func (a *assembler) when(c bpf.JumpTest, value uint32, label string) {
	a.add(bpf.JumpIf{Cond: c, Val: value, SkipFalse: 1})
	a.jump(label)
}

func (a *assembler) assemble() ([]bpf.RawInstruction, error) {
	a.label(accept)
	a.add(a.accept)
	a.label(reject)
	a.add(bpf.RetConstant{Val: 0})
	for at, label := range a.jumps {
		a.list[at] = bpf.Jump{Skip: uint32(a.labels[label] - at - 1)}
	}
	return bpf.Assemble(a.list)
}
