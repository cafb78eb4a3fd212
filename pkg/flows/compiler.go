package flows

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Desired is what a switch shall hold: one flow for each key.
type Desired map[openflow.Key]Flow

// String is the whole table as text in a reader's order: one line per flow. Equal tables give equal bytes.
func (d Desired) String() string {
	var b strings.Builder
	for _, key := range slices.SortedFunc(maps.Keys(d), openflow.Key.Compare) {
		b.WriteString(d[key].String())
		b.WriteByte('\n')
	}
	return b.String()
}

// Delta is a change of what a switch shall hold.
type Delta struct {
	// Set are flows to add, or to replace where the key exists.
	Set []Flow
	// Delete are flows to take away, as they were.
	Delete []Flow
}

// Empty says whether there is nothing to do.
func (d Delta) Empty() bool { return len(d.Set) == 0 && len(d.Delete) == 0 }

func (d Delta) sort() {
	byKey := func(a, b Flow) int { return a.Key.Compare(b.Key) }
	slices.SortFunc(d.Set, byKey)
	slices.SortFunc(d.Delete, byKey)
}

// Compiler holds the flows of the last snapshot, so that an update costs only what changed.
type Compiler struct {
	desired Desired
	// contributions holds, for every key, the flow of each owner that wants it, in the owners' order. Two owners want the
	// same key when, say, two nodes claim one pod CIDR; then the first owner's flow is used, whatever the order of arrival.
	contributions map[openflow.Key][]Flow
	byOwner       map[model.Owner][]openflow.Key
	// excluded are the owners whose flows the switch refuses: they contribute nothing until they change.
	excluded map[model.Owner]bool
	// disputed are the keys whose contributions differ.
	disputed map[openflow.Key]bool
}

// NewCompiler gives a compiler that holds nothing.
func NewCompiler() *Compiler {
	return &Compiler{
		desired:       Desired{},
		contributions: map[openflow.Key][]Flow{},
		byOwner:       map[model.Owner][]openflow.Key{},
		excluded:      map[model.Owner]bool{},
		disputed:      map[openflow.Key]bool{},
	}
}

// Compile is the full compilation of a snapshot: the reference that every update must agree with.
func Compile(s *model.Snapshot) (Desired, error) {
	c := NewCompiler()
	_, failed := c.Update(s, Owners(s))
	errs := make([]error, len(failed))
	for i, err := range failed {
		errs[i] = err
	}
	return c.desired, errors.Join(errs...)
}

// Desired is what the switch shall hold now. It is the compiler's own; callers must not change it, and it changes with
// the next Update.
func (c *Compiler) Desired() Desired { return c.desired }

// Update compiles the owners that a change touched and says what is different now. An owner that cannot be compiled
// keeps none of its flows (its pods stay closed) and is listed as failed; the others are not affected.
func (c *Compiler) Update(s *model.Snapshot, owners []model.Owner) (d Delta, failed []*OwnerError) {
	touched := map[openflow.Key]bool{}
	for _, o := range owners {
		delete(c.excluded, o)
		compiled, err := compileOwner(s, o)
		if err == nil {
			for _, f := range compiled {
				if err = Check(f.Flow); err != nil {
					compiled = nil
					break
				}
			}
		}
		if err != nil {
			failed = append(failed, &OwnerError{Owner: o, Err: err})
		}
		c.replace(o, compiled, touched)
	}
	return c.settle(touched), failed
}

// Exclude leaves an owner's flows out until the owner is updated again, and says what is different now: where others
// want the same keys, theirs are used.
func (c *Compiler) Exclude(o model.Owner) Delta {
	c.excluded[o] = true
	touched := map[openflow.Key]bool{}
	for _, key := range c.byOwner[o] {
		touched[key] = true
	}
	return c.settle(touched)
}

// replace exchanges what one owner contributes.
func (c *Compiler) replace(o model.Owner, compiled []Flow, touched map[openflow.Key]bool) {
	for _, key := range c.byOwner[o] {
		touched[key] = true
		rest := slices.DeleteFunc(slices.Clone(c.contributions[key]), func(f Flow) bool { return f.Owner == o })
		if len(rest) == 0 {
			delete(c.contributions, key)
		} else {
			c.contributions[key] = rest
		}
	}
	delete(c.byOwner, o)
	for _, f := range compiled {
		touched[f.Key] = true
		// A sorted list, so that the fold in settle does not depend on who came first.
		c.contributions[f.Key] = insertSorted(c.contributions[f.Key], f)
		c.byOwner[o] = append(c.byOwner[o], f.Key)
	}
}

func insertSorted(list []Flow, f Flow) []Flow {
	at, _ := slices.BinarySearchFunc(list, f, func(a, b Flow) int {
		return cmp.Or(a.Owner.Compare(b.Owner), cmp.Compare(a.Actions, b.Actions))
	})
	return slices.Insert(list, at, f)
}

// settle folds the contributions of the touched keys and moves desired to the result.
func (c *Compiler) settle(touched map[openflow.Key]bool) Delta {
	var d Delta
	for key := range touched {
		old, had := c.desired[key]
		contributions := c.contributions[key]
		if len(c.excluded) > 0 {
			contributions = slices.DeleteFunc(slices.Clone(contributions), func(f Flow) bool { return c.excluded[f.Owner] })
		}
		if len(contributions) > 1 && slices.ContainsFunc(contributions[1:], func(f Flow) bool { return f.Actions != contributions[0].Actions }) {
			c.disputed[key] = true
		} else {
			delete(c.disputed, key)
		}
		switch {
		case len(contributions) == 0 && had:
			delete(c.desired, key)
			d.Delete = append(d.Delete, old)
		case len(contributions) > 0:
			now := contributions[0]
			c.desired[key] = now
			if !had || old.Flow != now.Flow {
				d.Set = append(d.Set, now)
			}
		}
	}
	d.sort()
	return d
}

// Conflict is a key that several owners want with different actions; the first owner's flow is used.
type Conflict struct {
	Key    openflow.Key
	Owners []model.Owner
}

// Conflicts lists the keys that several owners want differently, in the tables' order.
func (c *Compiler) Conflicts() []Conflict {
	var conflicts []Conflict
	for key := range c.disputed {
		conflict := Conflict{Key: key}
		for _, f := range c.contributions[key] {
			conflict.Owners = append(conflict.Owners, f.Owner)
		}
		conflicts = append(conflicts, conflict)
	}
	slices.SortFunc(conflicts, func(a, b Conflict) int { return a.Key.Compare(b.Key) })
	return conflicts
}

// Diff says how to make what a switch holds into what it shall hold. Flows that are not ours are left alone, unless they
// stand in the place of one of ours.
func Diff(actual []openflow.Entry, desired Desired) Delta {
	var d Delta
	right := make(map[openflow.Key]bool, len(actual))
	for _, e := range actual {
		want, ok := desired[e.Key]
		switch {
		case ok && want.Flow == e.Flow:
			right[e.Key] = true
		case !ok && Ours(e.Cookie):
			d.Delete = append(d.Delete, Flow{Flow: e.Flow})
		}
	}
	for key, want := range desired {
		if !right[key] {
			d.Set = append(d.Set, want)
		}
	}
	d.sort()
	return d
}

// OwnerError is the failure of one owner's flows.
type OwnerError struct {
	Owner model.Owner
	Err   error
}

func (e *OwnerError) Error() string { return fmt.Sprintf("%s: %v", e.Owner, e.Err) }

func (e *OwnerError) Unwrap() error { return e.Err }
