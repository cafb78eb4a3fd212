package openflow

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"

	"github.com/digitalocean/go-openvswitch/ovs"
)

// Actions are what becomes of a packet, in their order. They are comparable with ==, and equal actions of a switch are
// equal values, in the spelling in which OVS prints them. The zero value drops the packet.
type Actions struct{ text string }

const drop = "drop"

// NewActions puts actions together. It returns an error for an action that cannot be; whether a flow may have them is
// checked by New.
func NewActions(actions ...ovs.Action) (Actions, error) {
	list, err := actionList(actions)
	return JoinActions(list), err
}

// ParseActions reads actions as ovs-ofctl prints them. It does not check them.
func ParseActions(text string) Actions {
	if text == drop {
		return Actions{}
	}
	return Actions{text}
}

// JoinActions is the reverse of All.
func JoinActions(list []Action) Actions {
	if len(list) == 1 { // as most flows have
		return ParseActions(list[0].text)
	}
	size := len(list)
	for _, a := range list {
		size += len(a.text)
	}
	var b strings.Builder
	b.Grow(size)
	for i, a := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(a.text)
	}
	return Actions{b.String()}
}

// String is the actions as ovs-ofctl prints them: separated by commas, "drop" when there are none.
func (a Actions) String() string {
	if a.text == "" {
		return drop
	}
	return a.text
}

// Compare orders actions by their text.
func (a Actions) Compare(o Actions) int { return cmp.Compare(a.String(), o.String()) }

// Drop says whether there are no actions.
func (a Actions) Drop() bool { return a.text == "" }

// All are the actions one by one.
func (a Actions) All() iter.Seq[Action] {
	return func(yield func(Action) bool) {
		depth, start := 0, 0
		for i := range len(a.text) {
			switch a.text[i] {
			case '(':
				depth++
			case ')':
				depth--
			case ',':
				if depth == 0 {
					if !yield(Action{a.text[start:i]}) {
						return
					}
					start = i + 1
				}
			}
		}
		if a.text != "" {
			yield(Action{a.text[start:]})
		}
	}
}

const clausePrefix = "conjunction("

// Clauses says whether these are clauses of conjunctions, which OVS lets stand only among themselves.
func (a Actions) Clauses() bool { return strings.HasPrefix(a.text, clausePrefix) }

// Translation is the destination that the actions give to a connection, if they do.
func (a Actions) Translation() (netip.AddrPort, bool) {
	_, rest, ok := strings.Cut(a.text, "nat(dst=")
	if !ok {
		return netip.AddrPort{}, false
	}
	text, _, _ := strings.Cut(rest, ")")
	if to, err := netip.ParseAddrPort(text); err == nil {
		return to, true
	}
	addr, err := netip.ParseAddr(text)
	return netip.AddrPortFrom(addr, 0), err == nil
}

// Groups are the groups that the actions send packets to.
func (a Actions) Groups() []GroupID {
	if !strings.Contains(a.text, groupPrefix) {
		return nil
	}
	var ids []GroupID
	for action := range a.All() {
		text, ok := strings.CutPrefix(action.text, groupPrefix)
		if !ok {
			continue
		}
		if id, err := strconv.ParseUint(text, 10, 32); err == nil {
			ids = append(ids, GroupID(id))
		}
	}
	return ids
}

// Renumber gives the actions with other numbers for the groups that they lead to.
func (a Actions) Renumber(number func(GroupID) GroupID) Actions {
	return Actions{renumber(a.text, number)}
}

// Copy says whether a Copy is among the actions.
func (a Actions) Copy() bool { return strings.Contains(a.text, copyMeter) }

// WithoutCopies are the actions less the copies: what becomes of the packet itself.
func (a Actions) WithoutCopies() Actions {
	if !a.Copy() {
		return a
	}
	var rest []Action
	for action := range a.All() {
		if !strings.HasPrefix(action.text, copyPrefix) {
			rest = append(rest, action)
		}
	}
	return JoinActions(rest)
}

// Action is one action, comparable with ==.
type Action struct{ text string }

// String is the action as ovs-ofctl prints it.
func (a Action) String() string { return a.text }

// Compare orders actions by their text.
func (a Action) Compare(o Action) int { return cmp.Compare(a.text, o.text) }

// MarshalText implements ovs.Action.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.text), nil }

// GoString implements ovs.Action.
func (a Action) GoString() string { return fmt.Sprintf("openflow.Action{%q}", a.text) }

// Name is what the action does: "goto_table", "set_field", "ct", "IN_PORT".
func (a Action) Name() string {
	if end := strings.IndexAny(a.text, ":(="); end >= 0 {
		return a.text[:end]
	}
	return a.text
}

// Kind is Name, and for what writes a field the field, too, as in "set_field->eth_src" and
// "move->NXM_NX_REG3[0..15]".
func (a Action) Kind() string {
	if _, to, ok := a.Write(); ok {
		return a.Name() + "->" + to
	}
	return a.Name()
}

// Operand is what follows the name: the number of goto_table, the arguments of ct.
func (a Action) Operand() string {
	end := strings.IndexAny(a.text, ":(=")
	switch {
	case end < 0:
		return ""
	case a.text[end] == '(':
		return strings.TrimSuffix(a.text[end+1:], ")")
	}
	return a.text[end+1:]
}

// Args are the arguments of ct, learn or nat. Each has the form of an action: "commit", "table=40", "nat(src)".
func (a Action) Args() iter.Seq[Action] { return Actions{a.Operand()}.All() }

// Write is what set_field, load or move write, a value or a field, and the field that they write it to.
func (a Action) Write() (value, to string, ok bool) {
	switch a.Name() {
	case "set_field", "load", "move":
		operand := a.Operand()
		if i := strings.LastIndex(operand, "->"); i >= 0 {
			return operand[:i], operand[i+len("->"):], true
		}
	}
	return "", "", false
}

// Goto says where a goto_table action goes.
func (a Action) Goto() (TableID, bool) {
	text, ok := strings.CutPrefix(a.text, gotoPrefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 8)
	return TableID(n), err == nil
}

// Next says in which table a packet goes on because of the action: goto_table, resubmit, or ct with a table.
func (a Action) Next() (TableID, bool) {
	if table, ok := a.Goto(); ok {
		return table, true
	}
	text, ok := strings.CutPrefix(a.text, "resubmit(,")
	text = strings.TrimSuffix(text, ")")
	if !ok && a.Name() == "ct" {
		for arg := range a.Args() {
			if arg.Name() == "table" {
				text, ok = arg.Operand(), true
			}
		}
	}
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 8)
	return TableID(n), err == nil
}

// Clause is the clause that the action makes the flow: number k of the n clauses of conjunction id.
func (a Action) Clause() (id uint32, k, n uint8, ok bool) {
	args, ok := strings.CutPrefix(a.text, clausePrefix)
	if !ok {
		return 0, 0, 0, false
	}
	idText, rest, _ := strings.Cut(strings.TrimSuffix(args, ")"), ",")
	kText, nText, _ := strings.Cut(rest, "/")
	number, err1 := strconv.ParseUint(idText, 0, 32)
	clause, err2 := strconv.ParseUint(strings.TrimSpace(kText), 10, 8)
	of, err3 := strconv.ParseUint(nText, 10, 8)
	if err1 != nil || err2 != nil || err3 != nil || checkClause(clause, of) != nil {
		return 0, 0, 0, false
	}
	return uint32(number), uint8(clause), uint8(of), true
}

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
	case Action:
		return m.text, nil
	}
	text, err := m.MarshalText()
	return string(text), err
}

func actionList(actions []ovs.Action) ([]Action, error) {
	list := make([]Action, len(actions))
	for i, a := range actions {
		text, err := textOf(a)
		if err != nil {
			return nil, fmt.Errorf("action %#v: %w", a, err)
		}
		list[i] = Action{text}
	}
	return list, nil
}

const gotoPrefix = "goto_table:"

// Goto continues the packet in a later table (OpenFlow instruction goto_table). OVS refuses to go back.
func Goto(table TableID) ovs.Action { return Action{gotoPrefix + strconv.Itoa(int(table))} }

// Resubmit looks the packet up in a table and then comes back, in places where goto_table cannot be: before the last
// action, and in a group's buckets.
func Resubmit(table TableID) ovs.Action { return Action{"resubmit(," + strconv.Itoa(int(table)) + ")"} }

// Port sends the packet to the port with this number.
func Port(number uint32) ovs.Action {
	return Action{"output:" + strconv.FormatUint(uint64(number), 10)}
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

// Conjunction makes the flow clause number k (from 1) of the n clauses of conjunction id; see ovs-fields(7).
func Conjunction(id uint32, k, n int) ovs.Action {
	if err := checkClause(k, n); err != nil {
		return invalid{fmt.Errorf("conjunction %d: %w", id, err)}
	}
	return Action{fmt.Sprintf(clausePrefix+"%d,%d/%d)", id, k, n)}
}

func checkClause[N int | uint64](k, n N) error {
	if n < 2 || n > 64 || k < 1 || k > n {
		return fmt.Errorf("there is no clause %d/%d", k, n)
	}
	return nil
}

// InPort sends the packet back where it came from, in the spelling in which OVS prints it.
func InPort() ovs.Action { return Action{"IN_PORT"} }
