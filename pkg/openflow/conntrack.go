package openflow

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/digitalocean/go-openvswitch/ovs"
)

// ConnState is a set of connection states; see ovs-fields(7), ct_state.
type ConnState uint8

// The states, with the bits and in the order of OVS.
const (
	StateNew ConnState = 1 << iota
	StateEst
	StateRel
	StateRpl
	StateInv
	StateTrk
	StateSNAT
	StateDNAT
)

var stateNames = []string{"new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat"}

// ConnectionState matches packets whose connection has all states of is and none of isNot.
func ConnectionState(is, isNot ConnState) ovs.Match {
	if is|isNot == ^ConnState(0) {
		// OVS has another spelling for this, which Weft does not need.
		return invalid{errors.New("ct_state: leave one of the eight states open")}
	}
	if is&isNot != 0 || is|isNot == 0 {
		return invalid{fmt.Errorf("ct_state cannot have %#x and lack %#x", is, isNot)}
	}
	var b strings.Builder
	b.WriteString("ct_state=")
	for i, name := range stateNames {
		switch bit := ConnState(1) << i; {
		case is&bit != 0:
			b.WriteString("+" + name)
		case isNot&bit != 0:
			b.WriteString("-" + name)
		}
	}
	return textMatch(b.String())
}

// OriginalProtocol matches the IP protocol of the packet that began the connection. OVS wants a match of ct_state
// beside it that no untracked packet has (ovs-fields(7), ct_nw_proto).
func OriginalProtocol(number uint8) ovs.Match {
	return textMatch("ct_nw_proto=" + strconv.Itoa(int(number)))
}

// MarkBits is a part of the connection's ct_mark.
type MarkBits uint32

// Is matches a value, already shifted to its place, in the bits.
func (m MarkBits) Is(v uint32) ovs.Match { return maskedMatch("ct_mark", v, uint32(m)) }

// Set writes a value, already shifted to its place, into the bits. It is for CT.Exec alone.
func (m MarkBits) Set(v uint32) ovs.Action { return setMasked("ct_mark", v, uint32(m)) }

// LabelBits is a part of the connection's ct_label.
type LabelBits Uint128

// AllLabel is the whole ct_label.
var AllLabel = LabelBits{^uint64(0), ^uint64(0)}

// Is matches a value, already shifted to its place, in the bits.
func (l LabelBits) Is(v Uint128) ovs.Match {
	text, err := l.text(v)
	if err != nil {
		return invalid{err}
	}
	return textMatch("ct_label=" + text)
}

// Set writes a value, already shifted to its place, into the bits. It is for CT.Exec alone.
func (l LabelBits) Set(v Uint128) ovs.Action {
	text, err := l.text(v)
	if err != nil {
		return invalid{err}
	}
	return Action{"set_field:" + text + "->ct_label"}
}

func (l LabelBits) text(v Uint128) (string, error) {
	mask := Uint128(l)
	switch {
	case mask == Uint128{} || !v.within(mask):
		return "", fmt.Errorf("ct_label: %s does not fit into the bits %s", v, mask)
	case l == AllLabel:
		return v.String(), nil
	}
	return v.String() + "/" + mask.String(), nil
}

// NAT is the address translation of a CT action; the zero value is none.
type NAT struct {
	text string
	err  error
}

// Translate applies the translation that the connection already has.
func Translate() NAT { return NAT{text: "nat"} }

// SourceNAT translates the source of a new connection. Its port is kept as long as that is possible.
func SourceNAT(a netip.Addr) NAT {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
		return NAT{err: fmt.Errorf("nat: source address %q", a)}
	}
	return NAT{text: "nat(src=" + a.String() + ")"}
}

// KeepSource keeps the source of a new connection, and changes its port only if another connection's replies look the
// same (ovs-actions(7), nat: the all-zero address).
func KeepSource() NAT { return NAT{text: "nat(src)"} } // as OVS prints nat(src=0.0.0.0) and nat(src=::)

// SourceNATPorts is SourceNAT to a port of a range, the same if it is one of these.
func SourceNATPorts(a netip.Addr, first, last uint16) NAT {
	n := SourceNAT(a)
	if n.err != nil {
		return n
	}
	if first == 0 || last < first {
		return NAT{err: fmt.Errorf("nat: ports %d to %d", first, last)}
	}
	return NAT{text: fmt.Sprintf("nat(src=%s-%d)", netip.AddrPortFrom(a, first), last)} // 10.0.0.1:1-2 or [fd00::1]:1-2
}

// DestinationNAT translates the destination of a new connection; with port 0 the port stays.
func DestinationNAT(to netip.AddrPort) NAT {
	if a := to.Addr(); !a.IsValid() || a.Is4In6() || a.Zone() != "" {
		return NAT{err: fmt.Errorf("nat: destination %q", to)}
	}
	if to.Port() == 0 {
		return NAT{text: "nat(dst=" + to.Addr().String() + ")"}
	}
	return NAT{text: "nat(dst=" + to.String() + ")"} // 10.0.0.1:80 or [fd00::1]:80
}

// CT is the action that sends a packet through connection tracking.
type CT struct {
	Commit bool
	// Table is where the packet goes on with its connection's state; with 0 it goes on only as it was.
	Table TableID
	Zone  uint16
	NAT   NAT
	// Exec are set_field and move actions that write ct_mark and ct_label.
	Exec []ovs.Action
}

// Action gives the action in the spelling in which OVS prints it.
func (c CT) Action() ovs.Action {
	if c.NAT.err != nil {
		return invalid{c.NAT.err}
	}
	if !c.Commit && (len(c.Exec) > 0 || len(c.NAT.text) > len("nat")) {
		return invalid{errors.New("ct: only a commit can write or choose a translation")}
	}
	var args []string
	if c.Commit {
		args = append(args, "commit")
	}
	if c.Table != 0 {
		args = append(args, "table="+strconv.Itoa(int(c.Table)))
	}
	if c.Zone != 0 {
		args = append(args, "zone="+strconv.Itoa(int(c.Zone)))
	}
	if c.NAT.text != "" {
		args = append(args, c.NAT.text)
	}
	if len(c.Exec) > 0 {
		exec, err := NewActions(c.Exec...)
		if err != nil {
			return invalid{fmt.Errorf("ct: %w", err)}
		}
		args = append(args, "exec("+exec.text+")")
	}
	return Action{"ct(" + strings.Join(args, ",") + ")"}
}
