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
	// IdleTimeout and HardTimeout are in seconds; 0 is none.
	IdleTimeout, HardTimeout uint16
	// Limit is how many flows with the cookie the table may have before no more are learned; 0 is no limit.
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

// LearnDestination makes the flow match packets to an address.
func LearnDestination(a netip.Addr) LearnSpec {
	_, field := AddrFields(a)
	if field.width != a.BitLen() {
		return LearnSpec{err: fmt.Errorf("destination %q", a)}
	}
	return LearnSpec{text: field.name + "=" + a.String()}
}

// LearnProtocol makes the flow match an IP protocol.
func LearnProtocol(proto uint8) LearnSpec {
	return LearnSpec{text: "nw_proto=" + strconv.Itoa(int(proto))}
}

// LearnDestinationPort makes the flow match packets to a port of an IP protocol.
func LearnDestinationPort(proto uint8, port uint16) LearnSpec {
	_, field := PortFields(proto)
	return LearnSpec{field.name + "=" + strconv.Itoa(int(port)), field.All().check()}
}

// LearnRegister makes the flow match a register.
func LearnRegister(r Register, v uint32) LearnSpec { return LearnSpec{text: r.String() + "=" + hex(v)} }

// LearnLoad makes the flow write a value.
func LearnLoad(v uint32, to Subfield) LearnSpec {
	err := to.check()
	if err == nil && to.width() < 32 && v>>to.width() != 0 {
		err = fmt.Errorf("%s cannot hold %d", to, v)
	}
	return LearnSpec{"load:" + hex(v) + "->" + to.String(), err}
}

// LearnCopy makes the flow write what the packet that taught it has in these bits.
func LearnCopy(from, to Subfield) LearnSpec {
	return LearnSpec{"load:" + from.String() + "->" + to.String(), sameWidth(from, to)}
}

// Action gives the action in the spelling in which OVS prints it.
func (l Learn) Action() ovs.Action {
	args := []string{"table=" + strconv.Itoa(int(l.Table))}
	if l.IdleTimeout != 0 {
		args = append(args, "idle_timeout="+strconv.Itoa(int(l.IdleTimeout)))
	}
	if l.HardTimeout != 0 {
		args = append(args, "hard_timeout="+strconv.Itoa(int(l.HardTimeout)))
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
	return textAction("learn(" + strings.Join(args, ",") + ")")
}
