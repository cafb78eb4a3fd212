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

// The meters of copies, which are part of no bundle. What is allowed cannot use up the share of what is denied, and
// what staged policies decide neither.
var (
	MeterDenied  = openflow.Meter{ID: 0x5765, Rate: 50, Burst: 50}
	MeterAllowed = openflow.Meter{ID: 0x5766, Rate: 50, Burst: 50}
	MeterStaged  = openflow.Meter{ID: 0x5767, Rate: 50, Burst: 50}
)

// Meters are all meters that flows need.
var Meters = []openflow.Meter{MeterDenied, MeterAllowed, MeterStaged}

// Copies says whether the flow sends copies of packets: its meter must exist before.
func (f Flow) Copies() bool { return f.Actions.Copy() }

// copied is how much of a packet is sent: enough for the headers.
const copied = 128

func copyOf(s stage, rule int, verdict model.Verdict) ovs.Action {
	data := []byte{copyVersion, byte(s.rules), byte(verdict)}
	meter := MeterAllowed
	switch {
	case s.preview:
		meter = MeterStaged
	case verdict == model.Deny:
		meter = MeterDenied
	}
	return openflow.Copy{Bytes: copied, Data: binary.BigEndian.AppendUint32(data, uint32(int32(rule))),
		Meter: meter.ID}.Action()
}

// copyVersion begins the data of every copy; what begins otherwise is another program's.
const copyVersion = 0x58

// logIsolated copies what an isolating flow denies.
func (b *builder) logIsolated(s stage, i in) {
	if b.log {
		i.priority = prioRaised
		b.append(s.reason, i, copyOf(s, Isolation, model.Deny), openflow.Goto(s.denied))
	}
}

// decideAndLog adds the flow of a rule. With logging it copies all packets that the rule denies, and of others those
// that begin a connection. Flows of an unordered tier are shared with policies that do not log, so copies are above
// them; a place in an ordered tier has one priority and one owner.
func (b *builder) decideAndLog(s stage, i in, r model.PolicyRule, next openflow.TableID, reason Reason) {
	onward, logged := openflow.Goto(next), copyOf(s, r.Index, r.Verdict)
	begins := also(i.match, openflow.ConnectionState(openflow.StateTrk|openflow.StateNew, 0))
	switch {
	case !b.log:
		b.append(reason, i, onward)
	case r.Verdict == model.Deny:
		b.append(reason, i, logged, onward)
	case !s.tier.Ordered():
		b.append(reason, i, onward)
		i.priority, i.match = i.priority+1, begins
		b.append(reason, i, logged, onward)
	default:
		goesOn := i
		goesOn.match = also(i.match, openflow.ConnectionState(openflow.StateTrk, openflow.StateNew))
		b.append(reason, goesOn, onward)
		i.match = begins
		b.append(reason, i, logged, onward)
	}
}

// sameFate says whether two flows do the same with a packet. What they write down of it may differ: it is said of the
// first of several policies that allow it.
func sameFate(a, b Flow) bool {
	return a.Actions == b.Actions || a.Actions.WithoutCopies() == b.Actions.WithoutCopies()
}

// DecisionOf reads the rule that a copy names; not of copies that others have asked for.
func DecisionOf(p openflow.PacketIn) (Rule, bool) {
	if !Ours(p.Cookie) || len(p.Data) != 7 || p.Data[0] != copyVersion {
		return Rule{}, false
	}
	for _, s := range staging(true).stages() {
		if byte(s.rules) == p.Data[1] {
			return s.rule(int(int32(binary.BigEndian.Uint32(p.Data[3:]))), model.Verdict(p.Data[2])), true
		}
	}
	return Rule{}, false
}
