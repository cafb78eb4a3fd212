package openflow

import (
	"fmt"
	"net/netip"
	"slices"
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

// textMatch is a match that is complete as text.
type textMatch string

// MarshalText implements ovs.Match.
func (m textMatch) MarshalText() ([]byte, error) { return []byte(m), nil }

// GoString implements ovs.Match.
func (m textMatch) GoString() string { return fmt.Sprintf("openflow.textMatch(%q)", string(m)) }

// invalid is an action or match that cannot be: building a flow or group with it returns the error.
type invalid struct{ err error }

// MarshalText implements ovs.Action and ovs.Match.
func (i invalid) MarshalText() ([]byte, error) { return nil, i.err }

// GoString implements ovs.Action and ovs.Match.
func (i invalid) GoString() string { return fmt.Sprintf("openflow.invalid(%q)", i.err.Error()) }

// marshaler is what ovs.Match and ovs.Action have in common.
type marshaler interface{ MarshalText() ([]byte, error) }

// textOf is MarshalText, without the copies for what is text already, as most of policies' hundred thousand flows are.
func textOf(m marshaler) (string, error) {
	switch m := m.(type) {
	case textMatch:
		return string(m), nil
	case textAction:
		return string(m), nil
	}
	text, err := m.MarshalText()
	return string(text), err
}

// Text is actions as ovs-ofctl takes them outside of flows.
func Text(actions ...ovs.Action) (string, error) { return actionsText(actions) }

// actionsText joins actions.
func actionsText(actions []ovs.Action) (string, error) {
	texts, err := actionTexts(actions)
	return strings.Join(texts, ","), err
}

func actionTexts(actions []ovs.Action) ([]string, error) {
	texts := make([]string, len(actions))
	for i, a := range actions {
		text, err := textOf(a)
		if err != nil {
			return nil, fmt.Errorf("action %#v: %w", a, err)
		}
		texts[i] = text
	}
	return texts, nil
}

// Goto continues the packet in a later table (OpenFlow instruction goto_table). OVS refuses to go back.
func Goto(table TableID) ovs.Action { return textAction("goto_table:" + strconv.Itoa(int(table))) }

// Resubmit looks the packet up in a table and then comes back, in places where goto_table cannot be: before the last
// action, and in a group's buckets.
func Resubmit(table TableID) ovs.Action {
	return textAction("resubmit(," + strconv.Itoa(int(table)) + ")")
}

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

// NextTable says in which table a packet goes on because of an action: goto_table, resubmit, or ct with a table.
func NextTable(action string) (TableID, bool) {
	if table, ok := GotoTable(action); ok {
		return table, true
	}
	if text, ok := strings.CutPrefix(action, "resubmit(,"); ok {
		n, err := strconv.ParseUint(strings.TrimSuffix(text, ")"), 10, 8)
		return TableID(n), err == nil
	}
	args, ok := strings.CutPrefix(action, "ct(")
	if !ok {
		return 0, false
	}
	for _, arg := range SplitActions(strings.TrimSuffix(args, ")")) {
		if text, ok := strings.CutPrefix(arg, "table="); ok {
			n, err := strconv.ParseUint(text, 10, 8)
			return TableID(n), err == nil
		}
	}
	return 0, false
}

// ActionName is the kind of a canonical action: "goto_table", "output", "ct", "learn", or for what writes a field
// the field, too, as in "set_field->eth_src" and "move->NXM_NX_REG3[0..15]".
func ActionName(action string) string {
	end := strings.IndexAny(action, ":(")
	if end < 0 {
		return action
	}
	name := action[:end]
	switch name {
	case "set_field", "move", "load":
		if i := strings.LastIndex(action, "->"); i >= 0 {
			return name + action[i:]
		}
	}
	return name
}

// Register is a whole OVS register, reg0 to reg15.
type Register int

func (r Register) String() string { return "reg" + strconv.Itoa(int(r)) }

// Set writes the whole register.
func (r Register) Set(v uint32) ovs.Action { return r.bits().Set(v) }

// Is matches the whole register.
func (r Register) Is(v uint32) ovs.Match { return r.bits().Is(v) }

func (r Register) bits() Bits { return Bits{Register: r, Mask: ^uint32(0)} }

func (r Register) check() error {
	if r < 0 || r > 15 {
		return fmt.Errorf("%s: OVS has the registers reg0 to reg15", r)
	}
	return nil
}

// In is the value that a canonical match wants the whole register to have.
func (r Register) In(match string) (uint32, bool) {
	for field := range strings.SplitSeq(match, ",") {
		if text, ok := strings.CutPrefix(field, r.String()+"="); ok {
			v, err := strconv.ParseUint(text, 0, 32)
			return uint32(v), err == nil
		}
	}
	return 0, false
}

// SetBy is the value that a canonical action writes to the whole register.
func (r Register) SetBy(action string) (uint32, bool) {
	text, writes := strings.CutPrefix(action, "set_field:")
	text, here := strings.CutSuffix(text, "->"+r.String())
	v, err := strconv.ParseUint(text, 0, 32)
	return uint32(v), writes && here && err == nil
}

// Output sends the packet to the port whose number the register holds.
func (r Register) Output() ovs.Action {
	if err := r.check(); err != nil {
		return invalid{err}
	}
	return ovs.OutputField("NXM_NX_REG" + strconv.Itoa(int(r)) + "[]")
}

// Bits is a part of a register.
type Bits struct {
	Register Register
	Mask     uint32
}

// Set writes a value, already shifted to its place, into the bits.
func (b Bits) Set(v uint32) ovs.Action {
	if err := b.Register.check(); err != nil {
		return invalid{err}
	}
	return setMasked(b.Register.String(), v, b.Mask)
}

// Is matches a value, already shifted to its place.
func (b Bits) Is(v uint32) ovs.Match {
	if err := b.Register.check(); err != nil {
		return invalid{err}
	}
	return maskedMatch(b.Register.String(), v, b.Mask)
}

func maskedMatch(field string, v, mask uint32) ovs.Match {
	text, err := masked(field, v, mask)
	if err != nil {
		return invalid{err}
	}
	return textMatch(field + "=" + text)
}

func setMasked(field string, v, mask uint32) ovs.Action {
	text, err := masked(field, v, mask)
	if err != nil {
		return invalid{err}
	}
	return textAction("set_field:" + text + "->" + field)
}

// masked writes a value and its mask the way OVS prints them.
func masked(field string, v, mask uint32) (string, error) {
	switch {
	case mask == 0 || v&^mask != 0:
		return "", fmt.Errorf("%s: %#x does not fit into the bits %#x", field, v, mask)
	case mask == ^uint32(0):
		return hex(v), nil
	}
	return hex(v) + "/" + hex(mask), nil
}

func hex(v uint32) string {
	if v == 0 {
		return "0" // as OVS prints it
	}
	return "0x" + strconv.FormatUint(uint64(v), 16)
}

// Source matches packets from a range, of either family. It says nothing of the protocol; see Protocol.
func Source(p netip.Prefix) ovs.Match { return rangeMatch("nw_src=", "ipv6_src=", p) }

// Destination matches packets to a range, of either family.
func Destination(p netip.Prefix) ovs.Match { return rangeMatch("nw_dst=", "ipv6_dst=", p) }

// rangeMatch is what go-openvswitch's matches of addresses give, which parse the text to see that it is an address:
// policies have a hundred thousand of them.
func rangeMatch(v4, v6 string, p netip.Prefix) ovs.Match {
	switch {
	case !p.IsValid():
		return invalid{fmt.Errorf("%s%s is not a range", v6, p)}
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

// SetTunnelDestination says where a flow-based tunnel port sends the packet.
func SetTunnelDestination(a netip.Addr) ovs.Action { return setTunnelAddr(a, "dst") }

// SetTunnelSource sets the outer source address of a tunnel packet. Without it the kernel's choice is used, which may
// be an address that the peer does not know.
func SetTunnelSource(a netip.Addr) ovs.Action { return setTunnelAddr(a, "src") }

func setTunnelAddr(a netip.Addr, end string) ovs.Action {
	if a.Is4() {
		return ovs.SetField(a.String(), "tun_"+end)
	}
	return ovs.SetField(a.String(), "tun_ipv6_"+end)
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

// DestinationIn is the IP protocol, the address and the port that a canonical match wants packets to go to. What the
// match leaves open, or not narrowed to one value, is zero.
func DestinationIn(match string) (proto uint8, to netip.AddrPort) {
	var addr netip.Addr
	var port uint64
	for field := range strings.SplitSeq(match, ",") {
		name, value, _ := strings.Cut(field, "=")
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

// Conjunction makes the flow clause number k (from 1) of the n clauses of conjunction id; see ovs-fields(7).
func Conjunction(id uint32, k, n int) ovs.Action {
	if n < 2 || n > 64 || k < 1 || k > n {
		return invalid{fmt.Errorf("conjunction %d cannot have clause %d/%d", id, k, n)}
	}
	return textAction(fmt.Sprintf("conjunction(%d,%d/%d)", id, k, n))
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

// InPort sends the packet back where it came from, in the spelling in which OVS prints it.
func InPort() ovs.Action { return textAction("IN_PORT") }
