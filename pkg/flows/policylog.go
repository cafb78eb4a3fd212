package flows

import (
	"encoding/binary"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// A policy with Log has copies of some packets sent to the agent, which writes them down: those that begin a connection
// that the policy allows, and those that are denied. Meters limit the copies in the switch, so that a flood costs
// little there, too. The flows that copy stand above those that decide and do the same as these; a policy without Log
// has none.

// The meters of copies, which are part of no bundle. What is allowed cannot use up the share of what is denied.
var (
	MeterDenied  = openflow.Meter{ID: 0x5765, Rate: 50, Burst: 50}
	MeterAllowed = openflow.Meter{ID: 0x5766, Rate: 50, Burst: 50}
)

// Meters are all meters that flows need.
var Meters = []openflow.Meter{MeterDenied, MeterAllowed}

// Copies says whether the flow sends copies of packets: its meter must exist before.
func (f Flow) Copies() bool { return openflow.Copies(f.Actions) }

// copied is how much of a packet is sent: enough for the headers.
const copied = 128

func copyOf(s stage, rule int, meter openflow.Meter) ovs.Action {
	data := []byte{copyVersion, byte(s.allow)}
	return openflow.Copy{Bytes: copied, Data: binary.BigEndian.AppendUint32(data, uint32(int32(rule))),
		Meter: meter.ID}.Action()
}

// copyVersion begins the data of every copy; what begins otherwise is another program's.
const copyVersion = 0x57

// logDenied copies what a flow denies.
func (b *builder) logDenied(s stage, i in) {
	if b.log {
		i.priority = prioRaised
		b.append(s.reason, i, copyOf(s, Denied, MeterDenied), openflow.Goto(PolicyDenied))
	}
}

// logAllowed copies the packets that begin a connection.
func (b *builder) logAllowed(s stage, i in, rule int) {
	if b.log {
		i.priority++
		i.match = also(i.match, openflow.ConnectionState(openflow.StateTrk|openflow.StateNew, 0))
		b.add(i, copyOf(s, rule, MeterAllowed), openflow.Goto(s.next))
	}
}

// sameFate says whether two flows do the same with a packet. What they write down of it may differ: it is said of the
// first of several policies that allow it.
func sameFate(a, b Flow) bool {
	return a.Actions == b.Actions || openflow.WithoutCopies(a.Actions) == openflow.WithoutCopies(b.Actions)
}

// Decision is what a policy decided about a packet that it has logged.
type Decision struct {
	Direction model.Direction
	// Rule is the rule's place in the policy's list, from 0, or Denied.
	Rule int
}

// DecisionOf reads what a copy says; not of copies that others have asked for.
func DecisionOf(p openflow.PacketIn) (Decision, bool) {
	if !Ours(p.Cookie) || len(p.Data) != 6 || p.Data[0] != copyVersion {
		return Decision{}, false
	}
	for _, s := range stages {
		if byte(s.allow) == p.Data[1] {
			return Decision{s.direction, int(int32(binary.BigEndian.Uint32(p.Data[2:])))}, true
		}
	}
	return Decision{}, false
}
