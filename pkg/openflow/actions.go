package openflow

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/digitalocean/go-openvswitch/ovs"
)

// textAction is an action that is complete as text.
type textAction string

// MarshalText implements ovs.Action.
func (a textAction) MarshalText() ([]byte, error) { return []byte(a), nil }

// GoString implements ovs.Action.
func (a textAction) GoString() string { return fmt.Sprintf("openflow.textAction(%q)", string(a)) }

// Goto continues the packet in a later table (OpenFlow instruction goto_table). OVS refuses to go back.
func Goto(table TableID) ovs.Action { return textAction("goto_table:" + strconv.Itoa(int(table))) }

// Port sends the packet to the port with this number.
func Port(number uint32) ovs.Action {
	return textAction("output:" + strconv.FormatUint(uint64(number), 10))
}

// GotoTable says where a goto_table action goes.
func GotoTable(action string) (TableID, bool) {
	text, ok := strings.CutPrefix(action, "goto_table:")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 8)
	return TableID(n), err == nil
}

// ActionName is the kind of a canonical action: "goto_table", "output", or for set_field and move the field that is
// written, as in "set_field->eth_src".
func ActionName(action string) string {
	name, rest, _ := strings.Cut(action, ":")
	name, _, _ = strings.Cut(name, "(")
	if name == "set_field" || name == "move" || name == "load" {
		if i := strings.LastIndex(rest, "->"); i >= 0 {
			return name + rest[i:]
		}
	}
	return name
}

// Register is a whole OVS register, reg0 to reg15.
type Register int

func (r Register) String() string { return "reg" + strconv.Itoa(int(r)) }

// Set writes the whole register.
func (r Register) Set(v uint32) ovs.Action { return ovs.SetField(hex(v), r.String()) }

// Output sends the packet to the port whose number the register holds.
func (r Register) Output() ovs.Action {
	return ovs.OutputField("NXM_NX_REG" + strconv.Itoa(int(r)) + "[]")
}

// Bits is a part of a register.
type Bits struct {
	Register Register
	Mask     uint32
}

// Set writes a value, already shifted to its place, into the bits.
func (b Bits) Set(v uint32) ovs.Action {
	return ovs.SetField(hex(v)+"/"+hex(b.Mask), b.Register.String())
}

// Is matches a value, already shifted to its place.
func (b Bits) Is(v uint32) ovs.Match {
	return ovs.FieldMatch(b.Register.String(), hex(v)+"/"+hex(b.Mask))
}

func hex(v uint32) string {
	if v == 0 {
		return "0" // as OVS prints it
	}
	return "0x" + strconv.FormatUint(uint64(v), 16)
}

// Source matches packets from a range, of either family. It says nothing of the protocol; see Protocol.
func Source(p netip.Prefix) ovs.Match {
	if p.Addr().Is4() {
		return ovs.NetworkSource(prefixText(p))
	}
	return ovs.IPv6Source(prefixText(p))
}

// Destination matches packets to a range, of either family.
func Destination(p netip.Prefix) ovs.Match {
	if p.Addr().Is4() {
		return ovs.NetworkDestination(prefixText(p))
	}
	return ovs.IPv6Destination(prefixText(p))
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

// SetTunnelDestination says where a flow-based tunnel port sends the packet.
func SetTunnelDestination(a netip.Addr) ovs.Action {
	if a.Is4() {
		return ovs.SetField(a.String(), "tun_dst")
	}
	return ovs.SetField(a.String(), "tun_ipv6_dst")
}

// prefixText writes a range the way OVS prints it: masked, and without the length when it is a single address.
func prefixText(p netip.Prefix) string {
	p = p.Masked()
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// InPort sends the packet back where it came from, in the spelling in which OVS prints it.
func InPort() ovs.Action { return textAction("IN_PORT") }
