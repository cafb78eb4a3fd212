// Package openflow holds flows, groups and meters of an Open vSwitch bridge, and changes of them (Delta), as values
// that are comparable with ==. Inside, each holds one canonical text: the text that `ovs-ofctl -O OpenFlow15
// dump-flows` and `dump-groups` print. This is the only package that writes or reads that text.
//
//   - To build: New and NewGroup return an error for what the switch would refuse, or would silently take for something
//     else. A match or action with an impossible value is an error there, too.
//   - To read: Parse and ParseGroup read one line of a dump each. What is equal in the switch is equal with ==.
//   - To ask: Match, Actions and Action have a method for each question: where a packet goes, what is written, which
//     groups are used.
//
// Constructors take the fields and actions of go-openvswitch; what that library lacks is added here as further
// implementations of its two interfaces. Everything is a pure function over values; there is no state and no goroutine.
// The package knows nothing of Kubernetes, nor of a pipeline: what flows each table may have is its user's contract.
package openflow

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/digitalocean/go-openvswitch/ovs"
)

// TableID is the number of an OpenFlow table, 0 to 254.
type TableID uint8

// defaultPriority is OpenFlow's, and what OVS does not print.
const defaultPriority = 32768

// Key identifies a flow in a switch: OpenFlow allows one flow for each of them.
type Key struct {
	Table    TableID
	Priority uint16
	Match    Match
}

// Compare orders keys the way a reader follows a packet: by table, then from the highest priority down.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Table, o.Table), cmp.Compare(o.Priority, k.Priority), k.Match.Compare(o.Match))
}

// String is the key as ovs-ofctl takes it in a delete_strict line.
func (k Key) String() string {
	return string(k.append(nil))
}

func (k Key) append(b []byte) []byte {
	b = append(b, "table="...)
	b = strconv.AppendUint(b, uint64(k.Table), 10)
	b = append(b, ",priority="...)
	b = strconv.AppendUint(b, uint64(k.Priority), 10)
	if k.Match.text != "" {
		b = append(b, ',')
		b = append(b, k.Match.text...)
	}
	return b
}

// Flow is one flow of a table, comparable with ==.
type Flow struct {
	Key
	Cookie  uint64
	Actions Actions
}

// String is the flow as ovs-ofctl takes it in an add line.
func (f Flow) String() string {
	b := make([]byte, 0, 64+len(f.Match.text)+len(f.Actions.text))
	b = append(b, "cookie=0x"...)
	b = strconv.AppendUint(b, f.Cookie, 16)
	b = append(b, ',')
	b = f.append(b)
	b = append(b, " actions="...)
	b = append(b, f.Actions.String()...)
	return string(b)
}

// New builds a flow from go-openvswitch's matches and actions, in any order of the matches. To drop packets, the only
// action is ovs.Drop. It returns an error, and no flow, for values that a field cannot have, for what the switch would
// take for something else (a field twice, or without its protocol), and for actions that exclude each other or lead
// back to an earlier table. What a pipeline allows in each table is the caller's to check.
func New(table TableID, priority uint16, cookie uint64, proto ovs.Protocol, matches []ovs.Match,
	actions ...ovs.Action) (Flow, error) {
	f := Flow{Key: Key{Table: table, Priority: priority}, Cookie: cookie}
	fields := make([]string, 0, len(matches)+1)
	if proto != "" {
		fields = append(fields, string(proto))
	}
	for _, m := range matches {
		text, err := textOf(m)
		if err != nil {
			return Flow{}, fmt.Errorf("flow in table %d: match %#v: %w", table, m, err)
		}
		if text != "" {
			fields = append(fields, text)
		}
	}
	f.Match = canonicalMatch(fields)
	if table > maxTable {
		return Flow{}, fmt.Errorf("flow %s: tables are 0 to %d", f.Key, maxTable)
	}
	if err := checkMatch(fields); err != nil {
		return Flow{}, fmt.Errorf("flow %s: %w", f.Key, err)
	}
	if i := strings.IndexFunc(f.Match.text, notText); i >= 0 {
		return Flow{}, fmt.Errorf("flow in table %d: match %q has the character %q", table, f.Match, f.Match.text[i])
	}
	if len(actions) == 0 {
		return Flow{}, fmt.Errorf("flow %s has no actions", f.Key)
	}
	list, err := actionList(actions)
	if err == nil {
		err = checkActions(table, list)
	}
	if err != nil {
		return Flow{}, fmt.Errorf("flow %s: %w", f.Key, err)
	}
	f.Actions = JoinActions(list)
	if i := strings.IndexFunc(f.Actions.text, notText); i >= 0 {
		return Flow{}, fmt.Errorf("flow %s: actions %q have the character %q", f.Key, f.Actions, f.Actions.text[i])
	}
	return f, nil
}

// notText finds what would end a flow's text and begin another's: whatever its values were made from, a flow is one
// line.
func notText(r rune) bool { return r <= ' ' || r > '~' }

// Stats are a flow's counters in the switch.
type Stats struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Entry is a flow as the switch reports it.
type Entry struct {
	Flow
	Stats
	// IdleTimeout is in seconds; 0 is none.
	IdleTimeout uint16
}

// Contents are what a switch holds.
type Contents struct {
	Flows  []Entry
	Groups []Group
}

// Parse reads one line of `ovs-ofctl -O OpenFlow15 dump-flows`, with or without statistics.
func Parse(line string) (Entry, error) {
	e := Entry{Flow: Flow{Key: Key{Priority: defaultPriority}}}
	head, actions, ok := strings.Cut(line, "actions=")
	if !ok {
		return Entry{}, fmt.Errorf("parse flow %q: no actions", line)
	}
	e.Actions = ParseActions(strings.TrimSpace(actions))
	var fields []string
	for _, field := range strings.FieldsFunc(head, func(r rune) bool { return r == ',' || r == ' ' }) {
		name, value, _ := strings.Cut(field, "=")
		var err error
		switch name {
		case "cookie":
			e.Cookie, err = strconv.ParseUint(value, 0, 64)
		case "table":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 8)
			e.Table = TableID(n)
		case "priority":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 16)
			e.Priority = uint16(n)
		case "n_packets":
			e.Packets, err = strconv.ParseUint(value, 10, 64)
		case "n_bytes":
			e.Bytes, err = strconv.ParseUint(value, 10, 64)
		case "idle_timeout":
			e.IdleTimeout = idleTimeout(value)
		case "duration", "idle_age", "hard_age", "hard_timeout", "importance",
			"send_flow_rem", "reset_counts", "no_packet_counts", "no_byte_counts", "check_overlap":
		default:
			fields = append(fields, field)
		}
		if err != nil {
			return Entry{}, fmt.Errorf("parse flow %q: %s: %w", line, name, err)
		}
	}
	e.Match = canonicalMatch(fields)
	return e, nil
}
