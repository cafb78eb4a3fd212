package trace

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
)

// run is the state of one packet's trace.
type run struct {
	Result
	s      *Switch
	opt    Options
	table  openflow.TableID
	depth  int
	steps  int
	states int
}

// in sends a packet through a table and those that follow it.
func (r *run) in(id openflow.TableID, p *Packet) {
	for {
		r.steps++
		if r.steps > maxSteps {
			r.Note = fmt.Sprintf("loop: the packet has passed %d tables", maxSteps)
			return
		}
		if r.learned(id, p) {
			return
		}
		var f *flow
		var conjunction uint32
		if t := r.s.tables[id]; t != nil {
			f, conjunction = t.lookup(p)
		}
		r.table, r.Table, r.Flow, r.Note = id, id, nil, ""
		if f == nil {
			r.Note = "no flow matches"
			r.step(Step{Note: r.Note})
			return
		}
		r.Flow = f.Flow
		if f.Reason != "" {
			r.reason = f.Reason
		}
		if conjunction != 0 {
			r.Conjunctions = append(r.Conjunctions, conjunction)
		}
		if r.opt.Steps {
			r.Visited, r.Met = append(r.Visited, f.Flow), append(r.Met, *p)
			match := cmp.Or(f.Match.String(), "(any)")
			r.step(Step{
				Flow: fmt.Sprintf("%d %s", f.Priority, match), Owner: f.Owner.String(),
				Actions: tableNames.Actions(f.Actions), Conjunction: conjunction, Reason: f.Reason,
			})
		}
		next, ok := r.do(f.actions, p)
		if !ok {
			return
		}
		id = next
	}
}

// do executes actions and returns the next table, if there is a goto.
func (r *run) do(actions []action, p *Packet) (next openflow.TableID, ok bool) {
	for _, a := range actions {
		if g, isGoto := a.(gotoAction); isGoto {
			next, ok = g.table, true
			continue
		}
		a.do(r, p)
	}
	return next, ok
}

// recirculate sends a packet through another table and returns to this one.
func (r *run) recirculate(id openflow.TableID, p *Packet) {
	table := r.table
	r.depth++
	r.in(id, p)
	r.depth--
	r.table = table
}

func (r *run) step(s Step) {
	if r.opt.Steps {
		s.Depth, s.Table = r.depth, flows.TableName(r.table)
		r.Steps = append(r.Steps, s)
	}
}

func (r *run) note(format string, args ...any) {
	if r.opt.Steps {
		r.step(Step{Note: fmt.Sprintf(format, args...)})
	}
}

func (r *run) output(port uint32, p *Packet) {
	if uint64(port) == p.f[inPort].lo {
		r.Note = "the switch does not send a packet back to the port it came from"
		r.note("%s", r.Note)
		return
	}
	r.Outputs = append(r.Outputs, Output{port, *p})
}

func (a setAction) do(_ *run, p *Packet)      { a.to.set(p, a.value, a.mask) }
func (a moveAction) do(_ *run, p *Packet)     { a.to.set(p, a.from.get(p), ones(a.to.bits)) }
func (a gotoAction) do(*run, *Packet)         {}
func (a resubmitAction) do(r *run, p *Packet) { r.recirculate(a.table, p) }
func (a outputAction) do(r *run, p *Packet)   { r.output(a.port, p) }
func (a outputField) do(r *run, p *Packet)    { r.output(uint32(a.from.get(p).lo), p) }
func (inPortAction) do(r *run, p *Packet)     { r.Outputs = append(r.Outputs, Output{p.InPort(), *p}) }
func (a noteAction) do(*run, *Packet)         {}

func (ttlAction) do(_ *run, p *Packet) {
	if p.f[nwTTL].lo > 0 {
		p.f[nwTTL].lo--
	}
}

func (ctClearAction) do(_ *run, p *Packet) {
	for f := ctState; f < conjID; f++ {
		p.f[f] = value{}
	}
	p.conn = nil
}

func (a groupAction) do(r *run, p *Packet) {
	buckets := r.s.groups[a.id]
	if len(buckets) == 0 {
		r.Note = fmt.Sprintf("group %d has no buckets", a.id)
		r.note("%s", r.Note)
		return
	}
	choice := 0
	if r.opt.Bucket != nil {
		choice = r.opt.Bucket(a.id, len(buckets), *p)
	}
	b := buckets[choice]
	r.note("group %d: bucket %d of %d: %s", a.id, choice+1, len(buckets), tableNames.Actions(b.of))
	// A bucket works on a copy: its changes are lost after the group.
	inside := *p
	r.depth++
	if next, ok := r.do(b.actions, &inside); ok {
		r.in(next, &inside)
	}
	r.depth--
}

func (a ctAction) do(r *run, p *Packet) {
	zone := a.zone
	if a.zoneFrom.bits > 0 {
		zone = uint16(a.zoneFrom.get(p).lo)
	}
	// The tracker works on a copy: without a table, the pipeline continues with the unchanged packet.
	after := *p
	state := a.through(r, zone, p, &after)
	if r.opt.Steps {
		r.note("zone %d: the connection is %s%s", zone, stateText(state), changes(p, &after))
	}
	if !a.hasTable {
		return
	}
	after.f[conjID] = value{}
	r.recirculate(a.table, &after)
}

// through sends the packet through the tracker, or sets the next of the given states.
func (a ctAction) through(r *run, zone uint16, before, after *Packet) uint64 {
	if r.opt.States != nil {
		state := stateTrk | stateNew
		if r.states < len(r.opt.States) {
			state = stateBits(r.opt.States[r.states])
		}
		if a.hasTable { // a state is visible only after recirculation
			r.states++
		}
		after.f[ctState], after.f[ctZone] = number(state), number(uint64(zone))
		return state
	}
	c := r.opt.Conntrack
	found, k, state := c.track(zone, after, a.nat.on)
	if !a.commit || state&stateInv != 0 {
		return state
	}
	if found == nil {
		found = c.commit(k, a.nat)
		after.conn = found
		if a.nat.on {
			state |= found.translate(after)
			after.f[ctState] = number(state)
		}
	}
	// In exec, mark and label are the connection's; all other fields are those before ct.
	inside := *before
	inside.f[ctMark], inside.f[ctLabel] = number(found.mark), found.label
	for _, e := range a.exec {
		e.do(r, &inside)
	}
	found.mark, found.label = inside.f[ctMark].lo, inside.f[ctLabel]
	after.f[ctMark], after.f[ctLabel] = number(found.mark), found.label
	return state
}

func stateBits(text string) uint64 {
	bits := uint64(0)
	for _, word := range strings.Split(text, ",") {
		for i, w := range ctStateWords {
			if w == word {
				bits |= 1 << i
			}
		}
	}
	return bits
}

// changes describes the effect of NAT.
func changes(before, after *Packet) string {
	text := ""
	if before.Src() != after.Src() || before.SrcPort() != after.SrcPort() {
		text += fmt.Sprintf(", source now %s port %d", after.Src(), after.SrcPort())
	}
	if before.Dst() != after.Dst() || before.DstPort() != after.DstPort() {
		text += fmt.Sprintf(", destination now %s port %d", after.Dst(), after.DstPort())
	}
	return text
}

// tableNames are those of tables.
var tableNames = openflow.Names{Table: flows.TableName}

// String is the trace as text: a line for each flow and event, and the outputs or the reason of the drop.
func (r Result) String() string {
	var b strings.Builder
	for _, s := range r.Steps {
		b.WriteString(strings.Repeat("  ", s.Depth))
		if s.Flow == "" {
			fmt.Fprintf(&b, "%s: (%s)\n", s.Table, s.Note)
			continue
		}
		fmt.Fprintf(&b, "%s: %s -> %s [%s]", s.Table, s.Flow, s.Actions, s.Owner)
		if s.Conjunction != 0 {
			fmt.Fprintf(&b, " conjunction %d", s.Conjunction)
		}
		if s.Reason != "" {
			fmt.Fprintf(&b, " # %s", s.Reason)
		}
		b.WriteByte('\n')
	}
	for _, o := range r.Outputs {
		fmt.Fprintf(&b, "=> port %d: %s\n", o.Port, o.Packet)
	}
	if r.Dropped() {
		fmt.Fprintf(&b, "=> dropped in %s", flows.TableName(r.Table))
		switch {
		case r.Reason() != "":
			fmt.Fprintf(&b, ": %s", r.Reason())
		case r.Note != "":
			fmt.Fprintf(&b, ": %s", r.Note)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
