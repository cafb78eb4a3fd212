package trace

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/weft-cni/weft/pkg/openflow"
)

// Learned are the flows that packets make a switch learn. They never time out. The zero value is empty; it belongs to
// the goroutine that traces with it.
type Learned struct{ flows []learnedFlow }

// learnedFlow is a flow that a learn action has added.
type learnedFlow struct {
	table   openflow.TableID
	match   []learnedCond
	actions []action
}

type learnedCond struct {
	bits  bitRange
	value value
}

// learnAction adds a flow, or replaces the one with the same table and match.
type learnAction struct {
	table openflow.TableID
	// fixed are the conditions with values, same those with the packet's own.
	fixed   []learnedCond
	same    []bitRange
	actions []action
}

// parseLearn parses the arguments of learn that Weft uses (ovs-actions(7)): FIELD=VALUE, FIELD[] and load:VALUE->FIELD.
func parseLearn(from openflow.Action) (action, error) {
	var a learnAction
	for arg := range from.Args() {
		switch arg.Name() {
		case "load":
			set, err := parseSet(arg)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", arg, err)
			}
			a.actions = append(a.actions, set)
		case "table":
			n, err := strconv.ParseUint(arg.Operand(), 10, 8)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", arg, err)
			}
			a.table = openflow.TableID(n)
		case "idle_timeout", "priority", "cookie", "limit":
		default:
			bits, err := parseBits(arg.Name())
			if err != nil {
				return nil, fmt.Errorf("%s: %w", arg, err)
			}
			if arg.Operand() == "" {
				a.same = append(a.same, bits)
				continue
			}
			v, _, err := bits.parseValue(arg.Operand())
			if err != nil {
				return nil, fmt.Errorf("%s: %w", arg, err)
			}
			a.fixed = append(a.fixed, learnedCond{bits, v})
		}
	}
	return a, nil
}

func (a learnAction) do(r *run, p *Packet) {
	if r.opt.Learned == nil {
		return
	}
	f := learnedFlow{table: a.table, match: slices.Clone(a.fixed), actions: a.actions}
	for _, bits := range a.same {
		f.match = append(f.match, learnedCond{bits, bits.get(p)})
	}
	for i, old := range r.opt.Learned.flows {
		if old.table == f.table && old.matches(p) {
			r.opt.Learned.flows[i] = f
			return
		}
	}
	r.opt.Learned.flows = append(r.opt.Learned.flows, f)
}

func (f learnedFlow) matches(p *Packet) bool {
	return !slices.ContainsFunc(f.match, func(c learnedCond) bool { return c.bits.get(p) != c.value })
}

// learned sends a packet through what was learned for a table, and reports whether it matched.
func (r *run) learned(id openflow.TableID, p *Packet) bool {
	if r.opt.Learned == nil {
		return false
	}
	for _, f := range r.opt.Learned.flows {
		if f.table == id && f.matches(p) {
			r.table = id
			r.note("a learned flow matches")
			r.do(f.actions, p)
			return true
		}
	}
	return false
}
