// Package trace follows packets through compiled flows, without Open vSwitch: tables, priorities, masks, conjunctions,
// registers, groups and a model of connection tracking. What it says is held against ofproto/trace of a real switch by a
// test. It serves the tests that compare what policies and Services promise with what the flows do.
//
// A Switch is made once and never changes, so any number of goroutines may trace with it. A Conntrack belongs to the
// goroutine that uses it. There is no other state.
package trace

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Switch is flows and groups, ready to be followed.
type Switch struct {
	tables [256]*table
	groups map[openflow.GroupID][]bucket
}

type bucket struct {
	text    string
	actions []action
}

// New makes a switch of flows and groups. It fails when one of them uses what the interpreter does not know, and names it.
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
		// An order of our own, so that a packet that may take several flows always takes the same.
		slices.SortFunc(list, func(a, b *flow) int { return a.Key.Compare(b.Key) })
		s.tables[id] = newTable(list)
	}
	for _, g := range groups {
		for _, text := range g.BucketActions() {
			actions, clauses, err := parseActions(text)
			if err == nil && clauses != nil {
				err = errors.New("a bucket has no conjunctions")
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("group %d: %w", g.ID, err))
			}
			s.groups[g.ID] = append(s.groups[g.ID], bucket{text, actions})
		}
	}
	return s, errors.Join(errs...)
}

// Of makes a switch of what the compiler says.
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

// Options says how to follow a packet. The zero value begins in table 0 with an empty connection tracker of its own.
type Options struct {
	// Start is the table to begin in.
	Start openflow.TableID
	// Conntrack is the connection tracker that the packet meets and changes.
	Conntrack *Conntrack
	// States are what ct finds, one after the other and in the tracker's stead, as with --ct-next of ofproto/trace; behind the last
	// they are new. nil asks the tracker.
	States []string
	// Bucket chooses a bucket of a group by its place; nil takes the first. All follows every choice.
	Bucket func(group openflow.GroupID, buckets int, p Packet) int
	// Steps records the way.
	Steps bool
}

// Step is one thing that happened to a packet, for a person or a program to read.
type Step struct {
	// Depth grows with every recirculation, resubmit and group bucket.
	Depth int    `json:"depth"`
	Table string `json:"table"`
	// Flow is what matched: priority and match. It is empty when no flow did, and for what an action found out.
	Flow    string `json:"flow,omitempty"`
	Owner   string `json:"owner,omitempty"`
	Actions string `json:"actions,omitempty"`
	// Conjunction is the conjunction whose clauses were all met; 0 is none.
	Conjunction uint32       `json:"conjunction,omitempty"`
	Reason      flows.Reason `json:"reason,omitempty"`
	// Note says what an action did: the connection's state, the bucket taken.
	Note string `json:"note,omitempty"`
}

// Output is a packet as it leaves.
type Output struct {
	Port   uint32
	Packet Packet
}

// Result is what became of a packet.
type Result struct {
	// Outputs is where it left the switch; a packet that left nowhere was dropped.
	Outputs []Output
	// Table and Flow are where it ended, last of all: for a dropped packet, what dropped it. Flow is nil when no flow of the table
	// matched.
	Table openflow.TableID
	Flow  *flows.Flow
	// Note says why a packet was dropped that no flow drops.
	Note   string
	reason flows.Reason
	// Conjunctions are those that let the packet pass, in order.
	Conjunctions []uint32
	// Visited are the flows that the packet met, in order; with Options.Steps alone.
	Visited []*flows.Flow
	Steps   []Step
}

// Dropped tells whether the packet left nowhere.
func (r Result) Dropped() bool { return len(r.Outputs) == 0 }

// Reason is why the packet was dropped, as far as a flow says so: the last one that it met and that gives a reason.
func (r Result) Reason() flows.Reason {
	if r.Dropped() {
		return r.reason
	}
	return ""
}

// maxSteps bounds the tables that one packet may see: a ct that goes back would go on for ever.
const maxSteps = 1000

// Run follows one packet.
func (s *Switch) Run(p Packet, opt Options) Result {
	r := run{s: s, opt: opt}
	if r.opt.Conntrack == nil {
		r.opt.Conntrack = &Conntrack{}
	}
	r.in(opt.Start, &p)
	return r.Result
}

// All follows a packet through every choice of buckets that it can meet, each with the connections as they are now. The
// tracker is not changed.
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
