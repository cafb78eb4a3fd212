// Package trace interprets compiled flows without Open vSwitch: tables, priorities, masks, conjunctions, registers,
// groups and a model of conntrack. A test compares it with ofproto/trace of a real switch. Tests use it to compare the
// expected results of policies and Services with those of the flows.
//
// A Switch is immutable, so any number of goroutines may trace with it. A Conntrack belongs to the goroutine that uses
// it. There is no other state.
package trace

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Switch is a set of parsed flows and groups. Immutable.
type Switch struct {
	tables [256]*table
	groups map[openflow.GroupID][]bucket
}

type bucket struct {
	of      openflow.Actions
	actions []action
}

// New returns a switch with flows and groups. It returns an error that names all flows and groups with unsupported
// matches or actions.
func New(desired []flows.Flow, groups []openflow.Group) (*Switch, error) {
	s := &Switch{groups: make(map[openflow.GroupID][]bucket, len(groups))}
	byTable := map[openflow.TableID][]*flow{}
	var errs []error
	for i := range desired {
		f, err := newFlow(&desired[i])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		byTable[f.Table] = append(byTable[f.Table], f)
	}
	for id, list := range byTable {
		// Sort, so that a packet with several candidate flows always takes the same.
		slices.SortFunc(list, func(a, b *flow) int { return a.Key.Compare(b.Key) })
		s.tables[id] = newTable(list)
	}
	for _, g := range groups {
		for _, b := range g.Buckets() {
			actions, clauses, err := parseActions(b.Actions)
			if err == nil && clauses != nil {
				err = errors.New("a bucket has no conjunctions")
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("group %d: %w", g.ID, err))
			}
			s.groups[g.ID] = append(s.groups[g.ID], bucket{b.Actions, actions})
		}
	}
	return s, errors.Join(errs...)
}

// Of returns a switch with the compiler's desired flows and groups.
func Of(desired flows.Desired) (*Switch, error) {
	groups := make([]openflow.Group, 0, len(desired.Groups))
	for _, g := range desired.Groups {
		groups = append(groups, g.Group)
	}
	return New(slices.Collect(maps.Values(desired.Flows)), groups)
}

func newFlow(from *flows.Flow) (*flow, error) {
	f := &flow{Flow: from}
	var err error
	if f.conds, err = parseMatch(f.Match); err != nil {
		return nil, fmt.Errorf("flow %s: %w", from.Flow, err)
	}
	if f.actions, f.clauses, err = parseActions(f.Actions); err != nil {
		return nil, fmt.Errorf("flow %s: %w", from.Flow, err)
	}
	return f, nil
}

// Options configure a trace. The zero value begins in table 0 with an empty Conntrack.
type Options struct {
	// Start is the first table.
	Start openflow.TableID
	// Conntrack is used and changed by the trace.
	Conntrack *Conntrack
	// Learned holds what learn actions add, and is consulted before a table's own flows; nil learns nothing.
	Learned *Learned
	// States replace the tracker: each ct sets the next of them, as with --ct-next of ofproto/trace, and "new" after
	// the last. nil uses Conntrack.
	States []string
	// Bucket selects a bucket of a group by index; nil takes the first. All tries all choices.
	Bucket func(group openflow.GroupID, buckets int, p Packet) int
	// Steps records the steps of the trace.
	Steps bool
}

// Step is one event of a trace.
type Step struct {
	// Depth grows with each recirculation, resubmit and group bucket.
	Depth int    `json:"depth"`
	Table string `json:"table"`
	// Flow is the matched flow: priority and match. It is empty when no flow matched, and for events of actions.
	Flow    string `json:"flow,omitempty"`
	Owner   string `json:"owner,omitempty"`
	Actions string `json:"actions,omitempty"`
	// Conjunction is the satisfied conjunction; 0 is none.
	Conjunction uint32       `json:"conjunction,omitempty"`
	Reason      flows.Reason `json:"reason,omitempty"`
	// Note describes the event of an action: the connection's state, the bucket.
	Note string `json:"note,omitempty"`
}

// Output is a packet that leaves the switch.
type Output struct {
	Port   uint32
	Packet Packet
}

// Result is the outcome of a trace.
type Result struct {
	// Outputs are the packets that left the switch; a packet without outputs was dropped.
	Outputs []Output
	// Table and Flow are the last ones of the trace; for a dropped packet, those that dropped it. Flow is nil when no
	// flow of the table matched.
	Table openflow.TableID
	Flow  *flows.Flow
	// Note is the reason of a drop that is not a flow's.
	Note   string
	reason flows.Reason
	// Conjunctions are the satisfied conjunctions, in order.
	Conjunctions []uint32
	// Visited are the matched flows, in order, and Met the packet as it met each; only with Options.Steps.
	Visited []*flows.Flow
	Met     []Packet
	Steps   []Step
}

// Dropped reports that the packet has no outputs.
func (r Result) Dropped() bool { return len(r.Outputs) == 0 }

// Reason is the reason of a drop: that of the last matched flow that has one.
func (r Result) Reason() flows.Reason {
	if r.Dropped() {
		return r.reason
	}
	return ""
}

// maxSteps bounds the tables that one packet may pass: a ct that goes back would never end.
const maxSteps = 1000

// Run traces one packet.
func (s *Switch) Run(p Packet, opt Options) Result {
	r := run{s: s, opt: opt}
	if r.opt.Conntrack == nil {
		r.opt.Conntrack = &Conntrack{}
	}
	r.in(opt.Start, &p)
	return r.Result
}

// All traces a packet for every combination of buckets, each with the same initial connections. Options.Conntrack is
// not changed.
func (s *Switch) All(p Packet, opt Options) []Result {
	var results []Result
	for choices := []int{}; ; {
		var sizes []int
		one := opt
		one.Conntrack = opt.Conntrack.Clone()
		one.Bucket = func(_ openflow.GroupID, buckets int, _ Packet) int {
			i := len(sizes)
			sizes = append(sizes, buckets)
			if i == len(choices) {
				choices = append(choices, 0)
			}
			return choices[i]
		}
		results = append(results, s.Run(p, one))
		last := len(sizes) - 1
		for last >= 0 && choices[last]+1 == sizes[last] {
			last--
		}
		if last < 0 {
			return results
		}
		choices = choices[:last+1]
		choices[last]++
	}
}
