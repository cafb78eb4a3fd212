package openflow

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/digitalocean/go-openvswitch/ovs"
)

// Learn is the action that makes the switch add a flow by itself.
type Learn struct {
	Table    TableID
	Priority uint16
	Cookie   uint64
	// IdleTimeout is in seconds; 0 is none.
	IdleTimeout uint16
	// Limit is how many flows with the cookie the table may have before no more are learned; 0 means unlimited.
	Limit uint32
	// Specs say what the learned flow matches and does. OVS wants what others depend on first: LearnFamily, LearnProtocol.
	Specs []LearnSpec
}

// LearnSpec is a part of a learned flow.
type LearnSpec struct {
	text string
	err  error
}

// LearnFamily makes the flow match the family of an address.
func LearnFamily(a netip.Addr) LearnSpec {
	if a.Is4() {
		return LearnSpec{text: "eth_type=0x800"}
	}
	return LearnSpec{text: "eth_type=0x86dd"}
}

// LearnSame makes the flow match what the packet has in these bits.
func LearnSame(s Subfield) LearnSpec { return LearnSpec{s.String(), s.check()} }

// LearnProtocol makes the flow match an IP protocol.
func LearnProtocol(proto uint8) LearnSpec {
	return LearnSpec{text: "nw_proto=" + strconv.Itoa(int(proto))}
}

// LearnLoad makes the flow write a value.
func LearnLoad(v uint32, to Subfield) LearnSpec {
	err := to.check()
	if err == nil && to.width() < 32 && v>>to.width() != 0 {
		err = fmt.Errorf("%s cannot hold %d", to, v)
	}
	return LearnSpec{"load:" + hex(v) + "->" + to.String(), err}
}

// Action gives the action in the spelling in which OVS prints it.
func (l Learn) Action() ovs.Action {
	args := []string{"table=" + strconv.Itoa(int(l.Table))}
	if l.IdleTimeout != 0 {
		args = append(args, "idle_timeout="+strconv.Itoa(int(l.IdleTimeout)))
	}
	if l.Priority != defaultPriority {
		args = append(args, "priority="+strconv.Itoa(int(l.Priority)))
	}
	if l.Cookie != 0 {
		args = append(args, "cookie=0x"+strconv.FormatUint(l.Cookie, 16))
	}
	if l.Limit != 0 {
		args = append(args, "limit="+strconv.FormatUint(uint64(l.Limit), 10))
	}
	for _, s := range l.Specs {
		if s.err != nil {
			return invalid{fmt.Errorf("learn: %w", s.err)}
		}
		args = append(args, s.text)
	}
	return Action{"learn(" + strings.Join(args, ",") + ")"}
}

// Learned is what a learn action makes of the flows that it adds.
type Learned struct {
	Actions     Actions
	IdleTimeout uint16
}

// Learned finds what the first learn action makes of flows that only load registers, in the spelling in which OVS
// prints such a flow. OK is false when there is none.
func (a Actions) Learned() (l Learned, ok bool) {
	for action := range a.All() {
		if action.Name() != "learn" {
			continue
		}
		var loads []Action
		for arg := range action.Args() {
			switch arg.Name() {
			case "idle_timeout":
				l.IdleTimeout = idleTimeout(arg.Operand())
			case "load":
				loads = append(loads, Action{"set_field:" + wholeRegister.Replace(arg.Operand())})
			}
		}
		l.Actions = JoinActions(loads)
		return l, true
	}
	return l, false
}

// wholeRegister turns a learn action's words for a register into those of set_field.
var wholeRegister = strings.NewReplacer("NXM_NX_REG", "reg", "[]", "")

// idleTimeout is 0, as without one, when the text is none.
func idleTimeout(text string) uint16 {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}
