package openflow

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/digitalocean/go-openvswitch/ovs"
)

// Match says which packets a flow is for. It is comparable with ==, and equal matches of a switch are equal values: the
// fields are in OVS's order, in the spelling in which OVS prints them. The zero value is for every packet.
type Match struct{ text string }

// ParseMatch reads a match as ovs-ofctl prints it, in any order of the fields. It does not check it: see New.
func ParseMatch(text string) Match {
	return canonicalMatch(strings.FieldsFunc(text, func(r rune) bool { return r == ',' }))
}

// String is the match as ovs-ofctl prints it: fields separated by commas, "" for every packet.
func (m Match) String() string { return m.text }

// Compare orders matches by their text.
func (m Match) Compare(o Match) int { return cmp.Compare(m.text, o.text) }

// Fields are the names of the match's fields with their values. A protocol, such as "tcp6", is a name without a value.
func (m Match) Fields() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		if m.text == "" {
			return
		}
		for field := range strings.SplitSeq(m.text, ",") {
			name, value, _ := strings.Cut(field, "=")
			if !yield(name, value) {
				return
			}
		}
	}
}

// Destination is the IP protocol, the address and the port that the match wants packets to go to. What the match leaves
// open, or does not narrow to one value, is zero.
func (m Match) Destination() (proto uint8, to netip.AddrPort) {
	var addr netip.Addr
	var port uint64
	for name, value := range m.Fields() {
		switch name {
		case "tcp", "tcp6":
			proto = IPProtoTCP
		case "udp", "udp6":
			proto = IPProtoUDP
		case "sctp", "sctp6":
			proto = IPProtoSCTP
		case "nw_dst", "ipv6_dst":
			addr, _ = netip.ParseAddr(value) // a range is none
		case "tp_dst":
			port, _ = strconv.ParseUint(value, 10, 16)
		}
	}
	return proto, netip.AddrPortFrom(addr, uint16(port))
}

// fieldOrder is the order in which OVS prints match fields (match_format in lib/match.c), as far as Weft uses them. A
// field that is missing here sorts after all others, by name.
var fieldOrder = func() map[string]int {
	order := map[string]int{}
	for i, name := range []string{
		"pkt_mark", "conj_id", "ct_state", "ct_zone", "ct_mark", "ct_label", "ct_nw_proto", "ct_tp_src", "ct_tp_dst",
		// The protocol stands here: ip, ipv6, tcp, …
		protocolField,
		"reg0", "reg1", "reg2", "reg3", "reg4", "reg5", "reg6", "reg7",
		"reg8", "reg9", "reg10", "reg11", "reg12", "reg13", "reg14", "reg15",
		"tun_id", "tun_src", "tun_dst", "tun_ipv6_src", "tun_ipv6_dst",
		"metadata", "in_port", "dl_vlan", "dl_src", "dl_dst", "dl_type",
		"nw_src", "nw_dst", "ipv6_src", "ipv6_dst", "arp_spa", "arp_tpa", "nw_proto", "arp_op", "arp_sha", "arp_tha",
		"nw_tos", "nw_ecn", "nw_ttl", "nw_frag", "icmp_type", "icmp_code", "nd_target", "nd_sll", "nd_tll",
		"tp_src", "tp_dst", "tcp_flags",
	} {
		order[name] = i
	}
	return order
}()

// protocolField stands for a field without a value, such as "tcp6", in fieldOrder.
const protocolField = "protocol"

// canonicalMatch sorts the fields in place.
func canonicalMatch(fields []string) Match {
	if len(fields) > 1 {
		slices.SortFunc(fields, func(a, b string) int {
			return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
		})
	}
	return Match{strings.Join(fields, ",")}
}

func rank(field string) int {
	name, _, hasValue := strings.Cut(field, "=")
	if !hasValue {
		name = protocolField
	}
	if i, ok := fieldOrder[name]; ok {
		return i
	}
	return len(fieldOrder)
}

// textMatch is a part of a match that is complete as text.
type textMatch string

// MarshalText implements ovs.Match.
func (m textMatch) MarshalText() ([]byte, error) { return []byte(m), nil }

// GoString implements ovs.Match.
func (m textMatch) GoString() string { return fmt.Sprintf("openflow.textMatch(%q)", string(m)) }

// Source matches packets from a range, of either family. It says nothing of the protocol; see Protocol.
func Source(p netip.Prefix) ovs.Match { return rangeMatch("nw_src=", "ipv6_src=", p) }

// Destination matches packets to a range, of either family. The range of all addresses gives an empty text.
func Destination(p netip.Prefix) ovs.Match { return rangeMatch("nw_dst=", "ipv6_dst=", p) }

// rangeMatch is what go-openvswitch's matches of addresses give, which parse the text to see that it is an address:
// policies have a hundred thousand of them.
func rangeMatch(v4, v6 string, p netip.Prefix) ovs.Match {
	switch {
	case !p.IsValid():
		return invalid{fmt.Errorf("%s%s is not a range", v6, p)}
	case p.Bits() == 0:
		return textMatch("") // OVS prints no field that every packet has
	case p.Addr().Is4():
		return textMatch(v4 + prefixText(p))
	}
	return textMatch(v6 + prefixText(p))
}

// Protocol is the match prerequisite of an address: ip or ipv6.
func Protocol(a netip.Addr) ovs.Protocol {
	if a.Is4() {
		return ovs.ProtocolIPv4
	}
	return ovs.ProtocolIPv6
}

// Host is the range that holds just one address.
func Host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// TunnelSource matches the outer source address of a packet that came through a tunnel.
func TunnelSource(a netip.Addr) ovs.Match {
	if a.Is4() {
		return ovs.TunnelSrc(a.String())
	}
	return ovs.FieldMatch("tun_ipv6_src", a.String())
}

// Fragments matches by a packet's place in a fragmented datagram: "no", "yes", "first", "later" or "not_later"
// (ovs-fields(7), ip_frag).
func Fragments(which string) ovs.Match {
	if !slices.Contains([]string{"no", "yes", "first", "later", "not_later"}, which) {
		return invalid{fmt.Errorf("nw_frag cannot be %q", which)}
	}
	return textMatch("nw_frag=" + which)
}

// DestinationPort matches packets to the ports that equal port in the bits of mask; 0xffff is one port.
func DestinationPort(port, mask uint16) ovs.Match { return portMatch("tp_dst", port, mask) }

// SourcePort is DestinationPort for where packets come from.
func SourcePort(port, mask uint16) ovs.Match { return portMatch("tp_src", port, mask) }

func portMatch(field string, port, mask uint16) ovs.Match {
	switch {
	case mask == 0 || port&^mask != 0:
		return invalid{fmt.Errorf("%s: %#x does not fit into the bits %#x", field, port, mask)}
	case mask == 0xffff:
		return textMatch(field + "=" + strconv.Itoa(int(port)))
	}
	return textMatch(fmt.Sprintf("%s=%#x/%#x", field, port, mask))
}

// ConjunctionID matches packets for which every clause of the conjunction has a flow.
func ConjunctionID(id uint32) ovs.Match {
	return textMatch("conj_id=" + strconv.FormatUint(uint64(id), 10))
}

// prefixText writes a range the way OVS prints it: masked, and without the length when it is a single address.
func prefixText(p netip.Prefix) string {
	p = p.Masked()
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
