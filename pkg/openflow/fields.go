package openflow

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/digitalocean/go-openvswitch/ovs"
)

// Field is a header field, register or conntrack field that actions read, write or hash.
type Field struct {
	nxm   string // its name in learn
	name  string // its name in set_field, in learned matches and in a group's fields
	width int    // in bits
	order int    // its place in OVS's list of fields (enum mf_field_id), in which a group's fields are printed
}

// The fields that Weft's actions use.
var (
	IPSrc    = Field{"NXM_OF_IP_SRC", "ip_src", 32, 50}
	IPDst    = Field{"NXM_OF_IP_DST", "ip_dst", 32, 51}
	IPv6Src  = Field{"NXM_NX_IPV6_SRC", "ipv6_src", 128, 52}
	IPv6Dst  = Field{"NXM_NX_IPV6_DST", "ipv6_dst", 128, 53}
	IPProto  = Field{"NXM_OF_IP_PROTO", "nw_proto", 8, 54}
	TCPSrc   = Field{"NXM_OF_TCP_SRC", "tcp_src", 16, 60}
	TCPDst   = Field{"NXM_OF_TCP_DST", "tcp_dst", 16, 61}
	UDPSrc   = Field{"NXM_OF_UDP_SRC", "udp_src", 16, 62}
	UDPDst   = Field{"NXM_OF_UDP_DST", "udp_dst", 16, 63}
	SCTPSrc  = Field{"OXM_OF_SCTP_SRC", "sctp_src", 16, 64}
	SCTPDst  = Field{"OXM_OF_SCTP_DST", "sctp_dst", 16, 65}
	regOrder = 20 // reg0 to reg15
)

// Field is the register as actions name it.
func (r Register) Field() Field {
	n := strconv.Itoa(int(r))
	return Field{"NXM_NX_REG" + n, "reg" + n, 32, regOrder + int(r)}
}

// Uint128 is the value of a field of 128 bits.
type Uint128 struct{ Hi, Lo uint64 }

// AddrValue is an address as a number, of either family.
func AddrValue(a netip.Addr) Uint128 {
	var v Uint128
	for _, b := range a.AsSlice() {
		v.Hi = v.Hi<<8 | v.Lo>>56
		v.Lo = v.Lo<<8 | uint64(b)
	}
	return v
}

func (v Uint128) String() string {
	switch {
	case v == Uint128{}:
		return "0" // as OVS prints it
	case v.Hi == 0:
		return "0x" + strconv.FormatUint(v.Lo, 16)
	}
	return fmt.Sprintf("0x%x%016x", v.Hi, v.Lo)
}

func (v Uint128) within(mask Uint128) bool { return v.Hi&^mask.Hi == 0 && v.Lo&^mask.Lo == 0 }

// Subfield is a run of a field's bits, or all of them.
type Subfield struct {
	field    Field
	from, to int
}

// All is the whole field.
func (f Field) All() Subfield { return Subfield{f, 0, f.width - 1} }

// Bits is the field's bits from and to, both included; the lowest is 0.
func (f Field) Bits(from, to int) Subfield { return Subfield{f, from, to} }

func (s Subfield) width() int { return s.to - s.from + 1 }

func (s Subfield) check() error {
	if s.field.width == 0 || s.from < 0 || s.to < s.from || s.to >= s.field.width {
		return fmt.Errorf("%s has no bits %d to %d", s.field.nxm, s.from, s.to)
	}
	return nil
}

// String is the subfield as OVS prints it.
func (s Subfield) String() string {
	switch {
	case s.width() == s.field.width:
		return s.field.nxm + "[]"
	case s.from == s.to:
		return fmt.Sprintf("%s[%d]", s.field.nxm, s.from)
	}
	return fmt.Sprintf("%s[%d..%d]", s.field.nxm, s.from, s.to)
}

// AddrFields are the fields of the source and destination address of a's family.
func AddrFields(a netip.Addr) (source, destination Field) {
	if a.Is4() {
		return IPSrc, IPDst
	}
	return IPv6Src, IPv6Dst
}

// PortFields are the fields of the source and destination port of an IP protocol: IPProtoTCP, IPProtoUDP or
// IPProtoSCTP.
func PortFields(proto uint8) (source, destination Field) {
	switch proto {
	case IPProtoTCP:
		return TCPSrc, TCPDst
	case IPProtoUDP:
		return UDPSrc, UDPDst
	case IPProtoSCTP:
		return SCTPSrc, SCTPDst
	}
	return Field{}, Field{} // which every action refuses
}

// IP protocol numbers.
const (
	IPProtoICMP   uint8 = 1
	IPProtoTCP    uint8 = 6
	IPProtoUDP    uint8 = 17
	IPProtoICMPv6 uint8 = 58
	IPProtoSCTP   uint8 = 132
)

// The protocols that go-openvswitch has no names for.
const (
	ProtocolSCTPv4 ovs.Protocol = "sctp"
	ProtocolSCTPv6 ovs.Protocol = "sctp6"
)
