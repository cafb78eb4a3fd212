package flows

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// compiled is what exists because of one owner.
type compiled struct {
	Flows  []Flow
	Groups []Group
	// Addrs are a pod's addresses; other owners have none.
	Addrs []netip.Addr
}

// check says in which way an owner's flows and groups break their tables' contracts, or nil.
func (c compiled) check() error {
	for _, f := range c.Flows {
		if err := Check(f.Flow); err != nil {
			return err
		}
	}
	for _, g := range c.Groups {
		if err := CheckGroup(g); err != nil {
			return err
		}
	}
	return nil
}

// Compiler holds the flows and groups of the last snapshot, so that an update costs only what changed.
type Compiler struct {
	// compile is compileOwner and read is inputsOf, but for tests of the compiler itself.
	compile    func(*model.Snapshot, model.Owner) (compiled, error)
	read       func(*model.Snapshot) inputs
	inputs     inputs // of the last snapshot; nil before the first
	maxClauses int    // maxClauses, but for tests
	desired    Desired
	// contributions holds, for every key, the flow of each owner that wants it, in the owners' order, and by actions where
	// an owner wants it twice. Flows that make up conjunctions are merged into one (see fold). Otherwise two owners want
	// the same key when, say, two nodes claim one pod CIDR; then the first owner's flow is used, whatever the order of
	// arrival.
	contributions map[openflow.Key][]Flow
	byOwner       map[model.Owner]owned
	numbers       numbers
	// pods holds the pods of this node that have an address, in the owners' order; isolating counts by address and key
	// the flows that isolate it.
	pods      map[netip.Addr][]model.Owner
	isolating map[netip.Addr]map[openflow.Key]int
	// excluded are the owners whose flows the switch refuses: they contribute nothing, but what isolates, until they
	// change.
	excluded map[model.Owner]bool
	// conflicting are the keys that several owners claim, with those that do not have them; losers counts them by owner.
	conflicting map[openflow.Key][]model.Owner
	losers      map[model.Owner]int
}

// owned is what an owner has in a Compiler.
type owned struct {
	keys   []openflow.Key
	groups []Group      // with the numbers that they want
	addrs  []netip.Addr // of a pod
	// isolations are the flows that isolate pods.
	isolations []isolation
	// affinity is how long the switch remembers what it learns from the flows, if it learns at all.
	affinity uint16
	learns   bool
}

// isolation is a flow that isolates the pod with an address.
type isolation struct {
	addr netip.Addr
	key  openflow.Key
}

// NewCompiler gives a compiler that holds nothing.
func NewCompiler() *Compiler { return newCompiler(compileOwner, inputsOf) }

func newCompiler(
	compile func(*model.Snapshot, model.Owner) (compiled, error), read func(*model.Snapshot) inputs,
) *Compiler {
	return &Compiler{
		compile:       compile,
		read:          read,
		maxClauses:    maxClauses,
		desired:       newDesired(),
		contributions: map[openflow.Key][]Flow{},
		byOwner:       map[model.Owner]owned{},
		pods:          map[netip.Addr][]model.Owner{},
		isolating:     map[netip.Addr]map[openflow.Key]int{},
		numbers:       newNumbers(),
		excluded:      map[model.Owner]bool{},
		conflicting:   map[openflow.Key][]model.Owner{},
		losers:        map[model.Owner]int{},
	}
}

// Compile is the full compilation of a snapshot: the reference that every update must agree with.
func Compile(s *model.Snapshot) (Desired, error) {
	c := NewCompiler()
	_, failed := c.Update(resolved(s), nil)
	errs := make([]error, len(failed))
	for i, err := range failed {
		errs[i] = err
	}
	return c.desired, errors.Join(errs...)
}

// Desired returns the desired flows and groups. It is the compiler's own; callers must not change it, and it changes
// with the next Update.
func (c *Compiler) Desired() Desired { return c.desired }

// Update compiles the owners whose objects have changed since the last snapshot, and those that are dirty because of it
// (see Dirty), and says what is different now. The first Update compiles all. An owner that cannot be compiled keeps
// none of its flows but those that isolate (its pods stay closed) and is listed as failed; the others are not affected.
func (c *Compiler) Update(s *model.Snapshot, changed []model.Owner) (d Delta, failed []*OwnerError) {
	t := newAffected()
	var forget []Flow
	now := c.read(s)
	owners := c.dirty(s, now, changed)
	c.inputs = now
	for _, o := range owners {
		delete(c.excluded, o)
		now, err := c.compile(s, o)
		if err == nil {
			err = now.check()
		}
		if err != nil {
			now = now.closed()
			c.excluded[o] = true
			failed = append(failed, &OwnerError{Owner: o, Err: err})
		}
		before := c.byOwner[o]
		c.replace(o, now, t)
		if after := c.byOwner[o]; before.learns && (!after.learns || after.affinity != before.affinity) {
			forget = append(forget, allLearned(o, Cookie(o)))
		}
	}
	d = c.settle(t)
	d.Forget = forget
	d.sort()
	return d, failed
}

// Exclude leaves an owner's flows, but those that isolate, and groups out until the owner is updated again, and says
// what is different now: where others want the same keys, theirs are used. Group numbers stay as they are. With a pod's
// flows go those that isolate it: it is closed without them.
func (c *Compiler) Exclude(o model.Owner) Delta {
	c.excluded[o] = true
	t := newAffected()
	c.markAffected(o, t)
	d := c.settle(t)
	d.sort()
	return d
}

// affected is what an update may have changed.
type affected struct {
	owners map[model.Owner]bool
	keys   map[openflow.Key]bool
	ids    map[openflow.GroupID]bool // that the owners' groups had before
}

func newAffected() *affected {
	return &affected{owners: map[model.Owner]bool{}, keys: map[openflow.Key]bool{}, ids: map[openflow.GroupID]bool{}}
}

// markAffected records the keys and groups that an owner has.
func (c *Compiler) markAffected(o model.Owner, t *affected) {
	t.owners[o] = true
	for _, key := range c.byOwner[o].keys {
		t.keys[key] = true
	}
	for _, addr := range c.byOwner[o].addrs {
		for key := range c.isolating[addr] {
			t.keys[key] = true
		}
	}
	for _, g := range c.byOwner[o].groups {
		t.ids[c.numbers.number(o, g.ID)] = true
	}
}

// replace exchanges what one owner contributes.
func (c *Compiler) replace(o model.Owner, now compiled, t *affected) {
	c.markAffected(o, t)
	for _, key := range c.byOwner[o].keys {
		if rest := removeOwner(c.contributions[key], o); len(rest) == 0 {
			delete(c.contributions, key)
		} else {
			c.contributions[key] = rest
		}
	}
	for _, g := range c.byOwner[o].groups {
		c.numbers.release(g.ID, o)
	}
	for _, addr := range c.byOwner[o].addrs {
		rest := slices.DeleteFunc(c.pods[addr], func(pod model.Owner) bool { return pod == o })
		if len(rest) == 0 {
			delete(c.pods, addr)
		} else {
			c.pods[addr] = rest
		}
	}
	for _, i := range c.byOwner[o].isolations {
		keys := c.isolating[i.addr]
		keys[i.key]--
		if keys[i.key] == 0 {
			delete(keys, i.key)
		}
		if len(keys) == 0 {
			delete(c.isolating, i.addr)
		}
	}
	delete(c.byOwner, o)
	if len(now.Flows) == 0 && len(now.Groups) == 0 && len(now.Addrs) == 0 {
		return
	}
	has := owned{groups: now.Groups, keys: make([]openflow.Key, len(now.Flows)), addrs: now.Addrs}
	has.affinity, has.learns = affinityOf(now.Flows)
	for i, f := range now.Flows {
		list := c.contributions[f.Key]
		if len(list) > 0 {
			f.Key = list[0].Key // equal, but thousands of policies share one text then
		}
		t.keys[f.Key] = true
		// A sorted list, so that the fold in settle does not depend on who came first.
		c.contributions[f.Key] = insertSorted(list, f)
		has.keys[i] = f.Key
		if f.closes() {
			has.isolations = append(has.isolations, isolation{f.Isolates, f.Key})
			if c.isolating[f.Isolates] == nil {
				c.isolating[f.Isolates] = map[openflow.Key]int{}
			}
			c.isolating[f.Isolates][f.Key]++
		}
	}
	for _, g := range now.Groups {
		c.numbers.want(g.ID, o)
	}
	for _, addr := range now.Addrs {
		at, _ := slices.BinarySearchFunc(c.pods[addr], o, model.Owner.Compare)
		c.pods[addr] = slices.Insert(c.pods[addr], at, o)
		for key := range c.isolating[addr] {
			t.keys[key] = true
		}
	}
	c.byOwner[o] = has
}

func insertSorted(list []Flow, f Flow) []Flow {
	at, _ := slices.BinarySearchFunc(list, f, func(a, b Flow) int {
		return cmp.Or(a.Owner.Compare(b.Owner), a.Actions.Compare(b.Actions))
	})
	return slices.Insert(list, at, f)
}

// removeOwner takes the owner's flows, which stand together, out of a sorted list.
func removeOwner(list []Flow, o model.Owner) []Flow {
	from, _ := slices.BinarySearchFunc(list, o, func(f Flow, o model.Owner) int { return f.Owner.Compare(o) })
	to := from
	for to < len(list) && list[to].Owner == o {
		to++
	}
	return slices.Delete(list, from, to)
}

// settle folds the contributions of the affected keys and moves desired to the result, and the groups likewise.
func (c *Compiler) settle(t *affected) Delta {
	moved := c.numbers.settle()
	for _, o := range c.numbers.differ(moved) {
		if !t.owners[o] { // else what the owner had before is noted, and what it has now never had the old numbers
			c.markAffected(o, t)
		}
	}
	c.numbers.moved = moved

	var d Delta
	for key := range t.keys {
		old, had := c.desired.Flows[key]
		now, has, losers := c.fold(c.contributions[key])
		c.setConflict(key, losers)
		switch {
		case has:
			c.desired.Flows[key] = now
			if !had || old.Flow != now.Flow {
				d.Set = append(d.Set, now)
			}
		case had:
			delete(c.desired.Flows, key)
			d.Delete = append(d.Delete, old)
		}
	}
	c.settleGroups(t, &d)
	return d
}

func (c *Compiler) settleGroups(t *affected, d *Delta) {
	for o := range t.owners {
		if c.excluded[o] {
			continue
		}
		for _, g := range c.byOwner[o].groups {
			now := c.numbers.group(g)
			old, had := c.desired.Groups[now.ID]
			c.desired.Groups[now.ID] = now
			if !had || old.Group != now.Group {
				d.SetGroups = append(d.SetGroups, now)
			}
			delete(t.ids, now.ID)
		}
	}
	// Who now has a number that was another's was dirty, too; so no owner has these.
	for id := range t.ids {
		if old, had := c.desired.Groups[id]; had {
			delete(c.desired.Groups, id)
			d.DeleteGroups = append(d.DeleteGroups, old)
		}
	}
}

// fold makes one flow of all that want the same key. Clauses of conjunctions become one flow with all of them, as far
// as they fit (see fit), which belongs to the first owner; of others the first is taken. Losers are the owners of what
// was left out.
func (c *Compiler) fold(list []Flow) (result Flow, has bool, losers []model.Owner) {
	var clauses clauseList
	for _, f := range list {
		if !c.wants(f) {
			continue
		}
		f = c.numbers.flow(f)
		switch {
		case !has:
			result, has = f, true
		case result.Actions.Clauses() && f.Actions.Clauses():
			if clauses.seen == nil {
				clauses.seen = make(map[openflow.Action]bool, len(list))
				clauses.add(result)
			}
			clauses.add(f)
		case !sameFate(result, f):
			losers = append(losers, f.Owner)
		}
	}
	if len(clauses.all) > 1 {
		kept, without := clauses.fit(c.maxClauses)
		result.Actions = openflow.JoinActions(kept)
		losers = append(losers, without...)
	}
	if _, preview := previewTables[result.Table]; preview && len(losers) > 0 {
		// Enforced policies lose nothing here; what the staged ones show is incomplete.
		losers = stagedOwners(list)
	}
	slices.SortFunc(losers, model.Owner.Compare)
	return result, has, slices.Compact(losers)
}

// wants says whether a flow counts: not if its owner is excluded, unless it isolates a pod that is open otherwise.
func (c *Compiler) wants(f Flow) bool {
	excluded := c.excluded[f.Owner]
	if !f.closes() {
		return !excluded
	}
	_, wanted := c.isolated(f.Isolates)
	return wanted && (excluded || !f.Fallback)
}

// isolated gives the pod with an address, the first one that is open, and says whether it is to be isolated: a pod
// without flows is closed without that. Where no pod is attached with the address, the zero Owner and true.
func (c *Compiler) isolated(addr netip.Addr) (pod model.Owner, wanted bool) {
	pods := c.pods[addr]
	for _, pod := range pods {
		if !c.excluded[pod] && len(c.byOwner[pod].keys) > 0 {
			return pod, true
		}
	}
	return model.Owner{}, len(pods) == 0
}

// Part gives the owner with whose flows a flow must go in or stay out: for what isolates a pod that is the pod, which
// must not be open without it; for others it is the flow's own owner.
func (c *Compiler) Part(f Flow) model.Owner {
	if f.closes() {
		if pod, _ := c.isolated(f.Isolates); pod.Kind == model.KindPod {
			return pod
		}
	}
	return f.Owner
}

// Isolators are the policies that isolate a pod, in the owners' order.
func (c *Compiler) Isolators(pod model.Owner) []model.Owner {
	var policies []model.Owner
	for _, addr := range c.byOwner[pod].addrs {
		for key := range c.isolating[addr] {
			for _, f := range c.contributions[key] {
				if f.closes() && (!f.Fallback || c.excluded[f.Owner]) {
					policies = append(policies, f.Owner)
				}
			}
		}
	}
	slices.SortFunc(policies, model.Owner.Compare)
	return slices.Compact(policies)
}

// Conflict is a key that several owners want with different actions, or with more clauses than fit.
type Conflict struct {
	Key openflow.Key
	// Owners are all that want the key; the first one's flow is used. Losers are those that lack something by it.
	Owners, Losers []model.Owner
}

// Conflicts lists the keys that several owners want differently, in the tables' order.
func (c *Compiler) Conflicts() []Conflict {
	var conflicts []Conflict
	for key, losers := range c.conflicting {
		conflict := Conflict{Key: key, Losers: losers}
		for _, f := range c.contributions[key] {
			conflict.Owners = append(conflict.Owners, f.Owner)
		}
		conflict.Owners = slices.Compact(conflict.Owners)
		conflicts = append(conflicts, conflict)
	}
	slices.SortFunc(conflicts, func(a, b Conflict) int { return a.Key.Compare(b.Key) })
	return conflicts
}

// Losers counts, for each owner that lacks something because of others, the keys at which it does.
func (c *Compiler) Losers() map[model.Owner]int { return maps.Clone(c.losers) }

// setConflict notes who lacks something at a key.
func (c *Compiler) setConflict(key openflow.Key, losers []model.Owner) {
	for _, o := range c.conflicting[key] {
		c.losers[o]--
		if c.losers[o] == 0 {
			delete(c.losers, o)
		}
	}
	if len(losers) == 0 {
		delete(c.conflicting, key)
		return
	}
	c.conflicting[key] = losers
	for _, o := range losers {
		c.losers[o]++
	}
}

// OwnerError is the failure of one owner's flows.
type OwnerError struct {
	Owner model.Owner
	Err   error
}

func (e *OwnerError) Error() string { return fmt.Sprintf("%s: %v", e.Owner, e.Err) }

func (e *OwnerError) Unwrap() error { return e.Err }
