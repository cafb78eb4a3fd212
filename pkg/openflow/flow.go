// Package openflow holds flows, groups and meters of an Open vSwitch bridge, and changes of them (Delta), as values
// with one canonical text: the text that `ovs-ofctl -O OpenFlow15 dump-flows` and `dump-groups` print for them. It is
// the only place that turns matches and actions into text or reads them back.
//
//   - To build: New and NewGroup return an error for what the switch would refuse, or would silently take for something
//     else. A match or action with an impossible value is an error there, too.
//   - To read: Parse and ParseGroup read one line of a dump each. What is equal in the switch is equal with ==.
//
// Matches and actions are go-openvswitch's; what that library lacks is added here as further implementations of its two
// interfaces. Everything is a pure function over values; there is no state and no goroutine. The package knows nothing
// of Kubernetes, nor of a pipeline: what flows each table may have is its user's contract.
package openflow

import (
	"cmp"
	"fmt"
	"slices"
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
	// Match is canonical: the fields in OVS's order, separated by commas. The empty match is "".
	Match string
}

// Compare orders keys the way a reader follows a packet: by table, then from the highest priority down.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Table, o.Table), cmp.Compare(o.Priority, k.Priority), cmp.Compare(k.Match, o.Match))
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
	if k.Match != "" {
		b = append(b, ',')
		b = append(b, k.Match...)
	}
	return b
}

// Flow is one flow of a table, comparable with ==.
type Flow struct {
	Key
	Cookie uint64
	// Actions is canonical, "drop" when there are none.
	Actions string
}

// String is the flow as ovs-ofctl takes it in an add line.
func (f Flow) String() string {
	b := make([]byte, 0, 64+len(f.Match)+len(f.Actions))
	b = append(b, "cookie=0x"...)
	b = strconv.AppendUint(b, f.Cookie, 16)
	b = append(b, ',')
	b = f.append(b)
	b = append(b, " actions="...)
	b = append(b, f.Actions...)
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
		fields = append(fields, text)
	}
	f.Match = canonicalMatch(fields)
	if table > maxTable {
		return Flow{}, fmt.Errorf("flow %s: tables are 0 to %d", f.Key, maxTable)
	}
	if err := checkMatch(fields); err != nil {
		return Flow{}, fmt.Errorf("flow %s: %w", f.Key, err)
	}
	if i := strings.IndexFunc(f.Match, notText); i >= 0 {
		return Flow{}, fmt.Errorf("flow in table %d: match %q has the character %q", table, f.Match, f.Match[i])
	}
	if len(actions) == 0 {
		return Flow{}, fmt.Errorf("flow %s has no actions", f.Key)
	}
	texts, err := actionTexts(actions)
	if err == nil {
		err = checkActions(table, texts)
	}
	if err != nil {
		return Flow{}, fmt.Errorf("flow %s: %w", f.Key, err)
	}
	f.Actions = strings.Join(texts, ",")
	if i := strings.IndexFunc(f.Actions, notText); i >= 0 {
		return Flow{}, fmt.Errorf("flow %s: actions %q have the character %q", f.Key, f.Actions, f.Actions[i])
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
	e.Actions = strings.TrimSpace(actions)
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

// fieldOrder is the order in which OVS prints match fields (match_format in lib/match.c), as far as Weft uses them. A
// field that is missing here sorts after all others, by name.
var fieldOrder = func() map[string]int {
	order := map[string]int{}
	for i, name := range []string{
		"pkt_mark", "conj_id", "ct_state", "ct_zone", "ct_mark", "ct_label", "ct_nw_proto", "ct_tp_src", "ct_tp_dst",
		// The protocol stands here: ip, ipv6, tcp, …
		protocolField,
		"reg0", "reg1", "reg2", "reg3", "reg4", "reg5", "reg6", "reg7",
		"reg8", "reg9", "reg10", "reg11", "reg12", "reg13", "reg14", "reg15",
		"tun_id", "tun_src", "tun_dst", "tun_ipv6_src", "tun_ipv6_dst",
		"metadata", "in_port", "dl_vlan", "dl_src", "dl_dst", "dl_type",
		"nw_src", "nw_dst", "ipv6_src", "ipv6_dst", "arp_spa", "arp_tpa", "nw_proto", "arp_op", "arp_sha", "arp_tha",
		"nw_tos", "nw_ecn", "nw_ttl", "nw_frag", "icmp_type", "icmp_code", "nd_target", "nd_sll", "nd_tll",
		"tp_src", "tp_dst", "tcp_flags",
	} {
		order[name] = i
	}
	return order
}()

// protocolField stands for a field without a value, such as "tcp6", in fieldOrder.
const protocolField = "protocol"

func canonicalMatch(fields []string) string {
	if len(fields) > 1 {
		slices.SortFunc(fields, func(a, b string) int {
			return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
		})
	}
	return strings.Join(fields, ",")
}

func rank(field string) int {
	name, _, hasValue := strings.Cut(field, "=")
	if !hasValue {
		name = protocolField
	}
	if i, ok := fieldOrder[name]; ok {
		return i
	}
	return len(fieldOrder)
}

// MatchFields lists the names of a canonical match's fields; a protocol is listed by its own name.
func MatchFields(match string) []string {
	if match == "" {
		return nil
	}
	names := strings.Split(match, ",")
	for i, field := range names {
		names[i], _, _ = strings.Cut(field, "=")
	}
	return names
}

// SplitActions splits canonical actions at the commas that are not inside parentheses.
func SplitActions(actions string) []string {
	var parts []string
	depth, start := 0, 0
	for i, r := range actions {
		switch {
		case r == '(':
			depth++
		case r == ')':
			depth--
		case r == ',' && depth == 0:
			parts = append(parts, actions[start:i])
			start = i + 1
		}
	}
	return append(parts, actions[start:])
}
