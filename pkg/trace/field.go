package trace

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// value is the content of a field; 128 bits hold the widest.
type value struct{ hi, lo uint64 }

func number(n uint64) value { return value{lo: n} }

func (v value) and(o value) value { return value{v.hi & o.hi, v.lo & o.lo} }
func (v value) or(o value) value  { return value{v.hi | o.hi, v.lo | o.lo} }
func (v value) not() value        { return value{^v.hi, ^v.lo} }
func (v value) isZero() bool      { return v.hi == 0 && v.lo == 0 }

func (v value) shiftLeft(n uint) value {
	switch {
	case n == 0:
		return v
	case n >= 64:
		return value{hi: v.lo << (n - 64)}
	}
	return value{v.hi<<n | v.lo>>(64-n), v.lo << n}
}

func (v value) shiftRight(n uint) value {
	switch {
	case n == 0:
		return v
	case n >= 64:
		return value{lo: v.hi >> (n - 64)}
	}
	return value{v.hi >> n, v.lo>>n | v.hi<<(64-n)}
}

// ones has the lowest n bits set.
func ones(n uint) value {
	switch {
	case n >= 128:
		return value{^uint64(0), ^uint64(0)}
	case n >= 64:
		return value{1<<(n-64) - 1, ^uint64(0)}
	}
	return value{lo: 1<<n - 1}
}

func addrValue(a netip.Addr) value {
	if a.Is4() {
		b := a.As4()
		return number(uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3]))
	}
	b := a.As16()
	var v value
	for i := range 8 {
		v.hi, v.lo = v.hi<<8|uint64(b[i]), v.lo<<8|uint64(b[8+i])
	}
	return v
}

func (v value) addr4() netip.Addr {
	return netip.AddrFrom4([4]byte{byte(v.lo >> 24), byte(v.lo >> 16), byte(v.lo >> 8), byte(v.lo)})
}

func (v value) addr16() netip.Addr {
	var b [16]byte
	for i := range 8 {
		b[i], b[8+i] = byte(v.hi>>(56-8*i)), byte(v.lo>>(56-8*i))
	}
	return netip.AddrFrom16(b)
}

// field is an index in a Packet. As in Open vSwitch, mutually exclusive protocols share fields: arp_op is nw_proto,
// arp_spa is nw_src, icmp_type is tp_src, nd_sll is arp_sha.
type field uint8

const (
	inPort   field = 0
	reg0     field = 1
	numRegs        = 16
	afterReg field = reg0 + numRegs
)

const (
	metadata = afterReg + iota
	pktMark
	tunID
	tunSrc
	tunDst
	tunIPv6Src
	tunIPv6Dst
	ethSrc
	ethDst
	ethType
	vlanTCI
	nwSrc
	nwDst
	ipv6Src
	ipv6Dst
	nwProto
	nwTTL
	nwTOS
	nwFrag
	tpSrc
	tpDst
	tcpFlags
	arpSHA
	arpTHA
	ndTarget
	ndReserved
	ndOptionsType
	ctState
	ctZone
	ctMark
	ctLabel
	ctNwSrc
	ctNwDst
	ctIPv6Src
	ctIPv6Dst
	ctNwProto
	ctTpSrc
	ctTpDst
	conjID
	numFields
)

// form is the text form of a field's values.
type form uint8

const (
	formNumber form = iota
	formIPv4
	formIPv6
	formMAC
	formCtState
	formTCPFlags
	formFrag
)

// span is a range of bits of a field.
type span struct {
	field field
	lo, n uint
}

// bitRange is the target of a name in a match or an action: bits of one field or, for xreg and xxreg, of several, the
// least significant first.
type bitRange struct {
	spans []span
	bits  uint
	form  form
}

// The names of fields, in matches (ovs-fields(7)) and in actions (NXM and OXM names).
var names = func() map[string]bitRange {
	m := map[string]bitRange{}
	add := func(f field, bits uint, form form, spellings ...string) {
		for _, s := range spellings {
			m[s] = bitRange{[]span{{field: f, n: bits}}, bits, form}
		}
	}
	add(inPort, 32, formNumber, "in_port", "in_port_oxm")
	add(inPort, 16, formNumber, "NXM_OF_IN_PORT")
	for i := range field(numRegs) {
		add(reg0+i, 32, formNumber, "reg"+strconv.Itoa(int(i)), "NXM_NX_REG"+strconv.Itoa(int(i)))
	}
	for i := range field(8) {
		x := bitRange{spans: []span{{field: reg0 + 2*i + 1, n: 32}, {field: reg0 + 2*i, n: 32}}, bits: 64}
		m["xreg"+strconv.Itoa(int(i))], m["OXM_OF_PKT_REG"+strconv.Itoa(int(i))] = x, x
	}
	for i := range field(4) {
		var x bitRange
		for j := range field(4) {
			x.spans = append(x.spans, span{field: reg0 + 4*i + 3 - j, n: 32})
		}
		x.bits = 128
		m["xxreg"+strconv.Itoa(int(i))], m["NXM_NX_XXREG"+strconv.Itoa(int(i))] = x, x
	}
	add(metadata, 64, formNumber, "metadata", "OXM_OF_METADATA")
	add(pktMark, 32, formNumber, "pkt_mark", "NXM_NX_PKT_MARK")
	add(tunID, 64, formNumber, "tun_id", "tunnel_id", "NXM_NX_TUN_ID")
	add(tunSrc, 32, formIPv4, "tun_src", "NXM_NX_TUN_IPV4_SRC")
	add(tunDst, 32, formIPv4, "tun_dst", "NXM_NX_TUN_IPV4_DST")
	add(tunIPv6Src, 128, formIPv6, "tun_ipv6_src", "NXM_NX_TUN_IPV6_SRC")
	add(tunIPv6Dst, 128, formIPv6, "tun_ipv6_dst", "NXM_NX_TUN_IPV6_DST")
	add(ethSrc, 48, formMAC, "eth_src", "dl_src", "NXM_OF_ETH_SRC")
	add(ethDst, 48, formMAC, "eth_dst", "dl_dst", "NXM_OF_ETH_DST")
	add(ethType, 16, formNumber, "eth_type", "dl_type", "NXM_OF_ETH_TYPE")
	add(vlanTCI, 16, formNumber, "vlan_tci", "NXM_OF_VLAN_TCI")
	add(nwSrc, 32, formIPv4, "nw_src", "ip_src", "NXM_OF_IP_SRC", "arp_spa", "NXM_OF_ARP_SPA")
	add(nwDst, 32, formIPv4, "nw_dst", "ip_dst", "NXM_OF_IP_DST", "arp_tpa", "NXM_OF_ARP_TPA")
	add(ipv6Src, 128, formIPv6, "ipv6_src", "NXM_NX_IPV6_SRC")
	add(ipv6Dst, 128, formIPv6, "ipv6_dst", "NXM_NX_IPV6_DST")
	add(nwProto, 8, formNumber, "nw_proto", "ip_proto", "NXM_OF_IP_PROTO")
	add(nwProto, 16, formNumber, "arp_op", "NXM_OF_ARP_OP")
	add(nwTTL, 8, formNumber, "nw_ttl", "NXM_NX_IP_TTL")
	add(nwTOS, 8, formNumber, "nw_tos", "ip_tos", "NXM_OF_IP_TOS")
	add(nwFrag, 8, formFrag, "nw_frag", "ip_frag")
	add(tpSrc, 16, formNumber,
		"tp_src", "tcp_src", "udp_src", "sctp_src", "NXM_OF_TCP_SRC", "NXM_OF_UDP_SRC", "OXM_OF_SCTP_SRC")
	add(tpDst, 16, formNumber,
		"tp_dst", "tcp_dst", "udp_dst", "sctp_dst", "NXM_OF_TCP_DST", "NXM_OF_UDP_DST", "OXM_OF_SCTP_DST")
	add(tpSrc, 8, formNumber, "icmp_type", "icmpv6_type", "NXM_OF_ICMP_TYPE", "NXM_NX_ICMPV6_TYPE")
	add(tpDst, 8, formNumber, "icmp_code", "icmpv6_code", "NXM_OF_ICMP_CODE", "NXM_NX_ICMPV6_CODE")
	add(tcpFlags, 12, formTCPFlags, "tcp_flags", "NXM_NX_TCP_FLAGS")
	add(arpSHA, 48, formMAC, "arp_sha", "NXM_NX_ARP_SHA", "nd_sll", "NXM_NX_ND_SLL")
	add(arpTHA, 48, formMAC, "arp_tha", "NXM_NX_ARP_THA", "nd_tll", "NXM_NX_ND_TLL")
	add(ndTarget, 128, formIPv6, "nd_target", "NXM_NX_ND_TARGET")
	add(ndReserved, 32, formNumber, "nd_reserved")
	add(ndOptionsType, 8, formNumber, "nd_options_type")
	add(ctState, 32, formCtState, "ct_state", "NXM_NX_CT_STATE")
	add(ctZone, 16, formNumber, "ct_zone", "NXM_NX_CT_ZONE")
	add(ctMark, 32, formNumber, "ct_mark", "NXM_NX_CT_MARK")
	add(ctLabel, 128, formNumber, "ct_label", "NXM_NX_CT_LABEL")
	add(ctNwSrc, 32, formIPv4, "ct_nw_src", "NXM_NX_CT_NW_SRC")
	add(ctNwDst, 32, formIPv4, "ct_nw_dst", "NXM_NX_CT_NW_DST")
	add(ctIPv6Src, 128, formIPv6, "ct_ipv6_src", "NXM_NX_CT_IPV6_SRC")
	add(ctIPv6Dst, 128, formIPv6, "ct_ipv6_dst", "NXM_NX_CT_IPV6_DST")
	add(ctNwProto, 8, formNumber, "ct_nw_proto", "NXM_NX_CT_NW_PROTO")
	add(ctTpSrc, 16, formNumber, "ct_tp_src", "NXM_NX_CT_TP_SRC")
	add(ctTpDst, 16, formNumber, "ct_tp_dst", "NXM_NX_CT_TP_DST")
	add(conjID, 32, formNumber, "conj_id", "NXM_NX_CONJ_ID")
	return m
}()

// parseBits parses a bit range: reg0, NXM_NX_REG0[], NXM_NX_REG0[4..7], reg0[4].
func parseBits(text string) (bitRange, error) {
	name, bits, cut := strings.Cut(text, "[")
	n, ok := names[name]
	if !ok {
		return bitRange{}, fmt.Errorf("unsupported field %q", name)
	}
	bits = strings.TrimSuffix(bits, "]")
	if !cut || bits == "" {
		return n, nil
	}
	first, last, cut := strings.Cut(bits, "..")
	if !cut {
		last = first
	}
	lo, err := strconv.ParseUint(first, 10, 8)
	if err != nil {
		return bitRange{}, fmt.Errorf("bits of %q: %w", text, err)
	}
	hi, err := strconv.ParseUint(last, 10, 8)
	if err != nil {
		return bitRange{}, fmt.Errorf("bits of %q: %w", text, err)
	}
	if hi < lo || uint(hi) >= n.bits {
		return bitRange{}, fmt.Errorf("%q: the field has %d bits", text, n.bits)
	}
	out := bitRange{bits: uint(hi-lo) + 1, form: n.form}
	from, to := uint(lo), uint(hi)+1
	at := uint(0)
	for _, s := range n.spans {
		if a, b := max(from, at), min(to, at+s.n); a < b {
			out.spans = append(out.spans, span{field: s.field, lo: s.lo + a - at, n: b - a})
		}
		at += s.n
	}
	return out, nil
}

func (n bitRange) get(p *Packet) value {
	var out value
	at := uint(0)
	for _, s := range n.spans {
		out = out.or(p.f[s.field].shiftRight(s.lo).and(ones(s.n)).shiftLeft(at))
		at += s.n
	}
	return out
}

// set writes the bits of v that are set in mask.
func (n bitRange) set(p *Packet, v, mask value) {
	for _, s := range n.spans {
		m := mask.and(ones(s.n)).shiftLeft(s.lo)
		p.f[s.field] = p.f[s.field].and(m.not()).or(v.shiftLeft(s.lo).and(m))
		v, mask = v.shiftRight(s.n), mask.shiftRight(s.n)
	}
}

// parseValue parses a value with an optional mask; the default mask is the whole field.
func (n bitRange) parseValue(text string) (v, mask value, err error) {
	all := ones(n.bits)
	switch n.form {
	case formCtState, formTCPFlags:
		if text != "" && (text[0] == '+' || text[0] == '-') {
			return parseFlags(text, n.form)
		}
	case formFrag:
		return parseFrag(text)
	case formNumber, formIPv4, formIPv6, formMAC:
	}
	one, rest, masked := strings.Cut(text, "/")
	if v, err = parseOne(one, n.form); err != nil {
		return v, mask, err
	}
	if !masked {
		return v, all, nil
	}
	if length, e := strconv.ParseUint(rest, 10, 8); e == nil && (n.form == formIPv4 || n.form == formIPv6) {
		if uint(length) > n.bits {
			return v, mask, fmt.Errorf("%q: the address has %d bits", text, n.bits)
		}
		mask = ones(uint(length)).shiftLeft(n.bits - uint(length))
	} else if mask, err = parseOne(rest, n.form); err != nil {
		return v, mask, err
	}
	return v.and(mask), mask.and(all), nil
}

func parseOne(text string, f form) (value, error) {
	switch f {
	case formIPv4, formIPv6:
		a, err := netip.ParseAddr(text)
		if err == nil && a.Is4() != (f == formIPv4) {
			err = fmt.Errorf("%s has the wrong address family", a)
		}
		if err != nil {
			return value{}, err
		}
		return addrValue(a), nil
	case formMAC:
		n, err := strconv.ParseUint(strings.ReplaceAll(text, ":", ""), 16, 48)
		return number(n), err
	case formNumber, formCtState, formTCPFlags, formFrag:
	}
	if text == "ANY" {
		return number(0xffffffff), nil // OFPP_ANY in in_port
	}
	digits, isHex := strings.CutPrefix(text, "0x")
	if !isHex {
		n, err := strconv.ParseUint(text, 10, 64)
		return number(n), err
	}
	var v value
	if len(digits) > 16 {
		hi, err := strconv.ParseUint(digits[:len(digits)-16], 16, 64)
		if err != nil {
			return v, err
		}
		v.hi, digits = hi, digits[len(digits)-16:]
	}
	lo, err := strconv.ParseUint(digits, 16, 64)
	v.lo = lo
	return v, err
}

// Bits of ct_state.
const (
	stateNew uint64 = 1 << iota
	stateEst
	stateRel
	stateRpl
	stateInv
	stateTrk
	stateSNAT
	stateDNAT
)

var (
	ctStateWords  = []string{"new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat"}
	tcpFlagsWords = []string{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns"}
)

// parseFlags parses flags with signs: +trk+est-rpl.
func parseFlags(text string, f form) (v, mask value, err error) {
	words := ctStateWords
	if f == formTCPFlags {
		words = tcpFlagsWords
	}
	for rest := text; rest != ""; {
		sign := rest[0]
		end := strings.IndexAny(rest[1:], "+-")
		if end < 0 {
			end = len(rest) - 1
		}
		word := rest[1 : 1+end]
		rest = rest[1+end:]
		bit := uint64(0)
		for i, w := range words {
			if w == word {
				bit = 1 << i
			}
		}
		if bit == 0 {
			return v, mask, fmt.Errorf("%q: invalid flag %q", text, word)
		}
		mask.lo |= bit
		if sign == '+' {
			v.lo |= bit
		}
	}
	return v, mask, nil
}

// Bits of nw_frag.
const (
	fragAny   = 1
	fragLater = 2
)

func parseFrag(text string) (v, mask value, err error) {
	switch text {
	case "no":
		return number(0), number(fragAny), nil
	case "yes":
		return number(fragAny), number(fragAny), nil
	case "first":
		return number(fragAny), number(fragAny | fragLater), nil
	case "later":
		return number(fragAny | fragLater), number(fragAny | fragLater), nil
	case "not_later":
		return number(0), number(fragLater), nil
	}
	return v, mask, fmt.Errorf("invalid nw_frag=%s; allowed: no, yes, first, later, not_later", text)
}
