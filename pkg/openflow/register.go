package openflow

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/digitalocean/go-openvswitch/ovs"
)

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

// In is the value that a match wants the whole register to have.
func (r Register) In(m Match) (uint32, bool) {
	for name, value := range m.Fields() {
		if name == r.String() {
			v, err := strconv.ParseUint(value, 0, 32)
			return uint32(v), err == nil
		}
	}
	return 0, false
}

// SetBy is the value that an action writes to the whole register.
func (r Register) SetBy(a Action) (uint32, bool) {
	text, ok := strings.CutPrefix(a.text, "set_field:")
	if ok {
		text, ok = strings.CutSuffix(text, "->"+r.String())
	}
	v, err := strconv.ParseUint(text, 0, 32)
	return uint32(v), ok && err == nil
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
	return Action{"set_field:" + text + "->" + field}
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
