package trace

import (
	"cmp"
	"slices"

	"github.com/weft-cni/weft/pkg/flows"
)

// flow is a parsed flow.
type flow struct {
	*flows.Flow
	conds []cond
	// clauses are the flow's conjunction actions; such a flow has no other actions.
	clauses []clause
	actions []action
}

// clause is conjunction(id, k/n): the flow matches dimension k of n.
type clause struct {
	id   uint32
	k, n uint8
}

// table looks flows up as Open vSwitch does: flows with the same mask are in one hash table (tuple), and the tuples are
// searched from the highest priority down.
type table struct {
	tuples []*tuple
}

type tuple struct {
	masks []cond // values are not used
	max   uint16
	flows map[uint64][]*flow // by the hash of the masked bits, highest priority first
}

func newTable(list []*flow) *table {
	byShape := map[string]*tuple{}
	t := &table{}
	for _, f := range list {
		shape := make([]byte, 0, len(f.conds)*17)
		for _, c := range f.conds {
			shape = append(shape, byte(c.field))
			for i := 0; i < 64; i += 8 {
				shape = append(shape, byte(c.mask.hi>>i), byte(c.mask.lo>>i))
			}
		}
		in := byShape[string(shape)]
		if in == nil {
			in = &tuple{masks: f.conds, flows: map[uint64][]*flow{}}
			byShape[string(shape)] = in
			t.tuples = append(t.tuples, in)
		}
		in.max = max(in.max, f.Priority)
		h := hashStart
		for _, c := range f.conds {
			h = mix(h, c.value)
		}
		in.flows[h] = append(in.flows[h], f)
	}
	for _, in := range t.tuples {
		for _, same := range in.flows {
			slices.SortStableFunc(same, func(a, b *flow) int { return cmp.Compare(b.Priority, a.Priority) })
		}
	}
	slices.SortStableFunc(t.tuples, func(a, b *tuple) int { return cmp.Compare(b.max, a.max) })
	return t
}

const hashStart uint64 = 0x9e3779b97f4a7c15

func mix(h uint64, v value) uint64 {
	h = (h ^ v.lo) * 0xff51afd7ed558ccd
	h ^= h >> 32
	if v.hi != 0 {
		h = (h ^ v.hi) * 0xc4ceb9fe1a85ec53
		h ^= h >> 29
	}
	return h
}

// candidates are the flows with the packet's hash, highest priority first.
func (in *tuple) candidates(p *Packet) []*flow {
	h := hashStart
	for i := range in.masks {
		c := &in.masks[i]
		h = mix(h, p.f[c.field].and(c.mask))
	}
	return in.flows[h]
}

func (f *flow) matches(p *Packet) bool {
	for i := range f.conds {
		c := &f.conds[i]
		if p.f[c.field].and(c.mask) != c.value {
			return false
		}
	}
	return true
}

// next skips flows that only share the hash.
func next(list []*flow, p *Packet) []*flow {
	for len(list) > 0 && !list[0].matches(p) {
		list = list[1:]
	}
	return list
}

// lookup returns the flow that matches a packet, or nil, and the satisfied conjunction that led to it, or 0. Among
// several flows of the highest priority, and several satisfied conjunctions, Open vSwitch may take any; lookup takes
// the first in order.
func (t *table) lookup(p *Packet) (*flow, uint32) {
	var hard *flow
	var soft [][]*flow // each list begins with a flow that has clauses
	for _, in := range t.tuples {
		if hard != nil && in.max <= hard.Priority {
			break
		}
		list := next(in.candidates(p), p)
		if len(list) == 0 || hard != nil && list[0].Priority <= hard.Priority {
			continue
		}
		if list[0].clauses == nil {
			hard = list[0]
		} else {
			soft = append(soft, list)
		}
	}
	// As classifier_lookup__ in lib/classifier.c: from the highest priority down, until a conjunction or a plain flow
	// matches.
	for len(soft) > 0 {
		soft = slices.DeleteFunc(soft, func(list []*flow) bool { return hard != nil && list[0].Priority <= hard.Priority })
		if len(soft) == 0 {
			break
		}
		byPriority := func(a, b []*flow) int { return cmp.Compare(a[0].Priority, b[0].Priority) }
		highest := slices.MaxFunc(soft, byPriority)[0].Priority
		for _, id := range satisfied(soft, highest) {
			with := *p
			with.f[conjID] = number(uint64(id))
			if f := t.plain(&with); f != nil {
				return f, id
			}
		}
		// None is satisfied. Each tuple may have a flow of lower priority with the same match.
		var rest [][]*flow
		for _, list := range soft {
			if list[0].Priority < highest {
				rest = append(rest, list)
				continue
			}
			list = next(list[1:], p)
			switch {
			case len(list) == 0:
			case list[0].clauses != nil:
				rest = append(rest, list)
			case hard == nil || list[0].Priority > hard.Priority:
				hard = list[0]
			}
		}
		soft = rest
	}
	return hard, 0
}

// satisfied returns the conjunctions with all dimensions among the flows of one priority, sorted.
func satisfied(soft [][]*flow, priority uint16) []uint32 {
	type progress struct {
		id      uint32
		n       uint8
		clauses uint64
	}
	var all []progress
	for _, list := range soft {
		if list[0].Priority != priority {
			continue
		}
		for _, c := range list[0].clauses {
			i := slices.IndexFunc(all, func(a progress) bool { return a.id == c.id && a.n == c.n })
			if i < 0 {
				i = len(all)
				all = append(all, progress{id: c.id, n: c.n})
			}
			all[i].clauses |= 1 << (c.k - 1)
		}
	}
	var ids []uint32
	for _, a := range all {
		if a.clauses == 1<<a.n-1 {
			ids = append(ids, a.id)
		}
	}
	slices.Sort(ids)
	return ids
}

// plain looks a packet up among flows without clauses.
func (t *table) plain(p *Packet) *flow {
	var best *flow
	for _, in := range t.tuples {
		if best != nil && in.max <= best.Priority {
			break
		}
		// Only the first flow of a tuple counts: one with clauses hides those after it, as in find_match.
		list := next(in.candidates(p), p)
		if len(list) > 0 && list[0].clauses == nil && (best == nil || list[0].Priority > best.Priority) {
			best = list[0]
		}
	}
	return best
}
