package flows

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/openflow"
)

// Desired are the flows and groups that a switch should hold, by key and by number.
type Desired struct {
	Flows  map[openflow.Key]Flow
	Groups map[openflow.GroupID]Group
}

func newDesired() Desired {
	return Desired{Flows: map[openflow.Key]Flow{}, Groups: map[openflow.GroupID]Group{}}
}

// String is everything as text in a reader's order, one line per flow and then one per group. Equal contents give equal
// bytes.
func (d Desired) String() string {
	var b strings.Builder
	for _, key := range slices.SortedFunc(maps.Keys(d.Flows), openflow.Key.Compare) {
		b.WriteString(d.Flows[key].String())
		b.WriteByte('\n')
	}
	for _, id := range slices.Sorted(maps.Keys(d.Groups)) {
		b.WriteString(d.Groups[id].String())
		b.WriteByte('\n')
	}
	return b.String()
}

// Clone is a copy that does not change with the original.
func (d Desired) Clone() Desired {
	return Desired{Flows: maps.Clone(d.Flows), Groups: maps.Clone(d.Groups)}
}

// Delta is a change of Desired. It must be applied as a whole: flows may use groups of the same delta.
type Delta struct {
	// Set are flows to add, or to replace where the key exists.
	Set []Flow
	// Delete are flows to take away, as they were.
	Delete []Flow
	// SetGroups are groups to add, or to replace where the number exists.
	SetGroups []Group
	// DeleteGroups are groups to take away, as they were. No flow that stays uses one.
	DeleteGroups []Group
	// Forget are flows in table Affinity that the switch has learned and is to forget: one, or without a match all with
	// the cookie.
	Forget []Flow
}

// Empty says whether there is nothing to do.
func (d Delta) Empty() bool {
	return len(d.Set)+len(d.Delete)+len(d.SetGroups)+len(d.DeleteGroups)+len(d.Forget) == 0
}

// OpenFlow is the change as the switch takes it, without owners and reasons.
func (d Delta) OpenFlow() openflow.Delta {
	o := openflow.Delta{Set: plain(d.Set), Delete: plain(d.Delete), Forget: plain(d.Forget)}
	for _, g := range d.SetGroups {
		o.SetGroups = append(o.SetGroups, g.Group)
	}
	for _, g := range d.DeleteGroups {
		o.DeleteGroups = append(o.DeleteGroups, g.ID)
	}
	if slices.ContainsFunc(d.Set, Flow.Copies) {
		o.Meters = Meters
	}
	return o
}

func plain(list []Flow) []openflow.Flow {
	of := make([]openflow.Flow, len(list))
	for i, f := range list {
		of[i] = f.Flow
	}
	return of
}

func (d Delta) sort() {
	byKey := func(a, b Flow) int { return a.Key.Compare(b.Key) }
	slices.SortFunc(d.Set, byKey)
	slices.SortFunc(d.Delete, byKey)
	slices.SortFunc(d.Forget, func(a, b Flow) int { return cmp.Or(a.Key.Compare(b.Key), cmp.Compare(a.Cookie, b.Cookie)) })
	byID := func(a, b Group) int { return cmp.Compare(a.ID, b.ID) }
	slices.SortFunc(d.SetGroups, byID)
	slices.SortFunc(d.DeleteGroups, byID)
}

// Diff returns the change that brings a switch from what it holds to desired. What is not ours is left alone, unless it
// stands in the place of something of ours; so are the flows that the switch itself has learned, as long as it would
// learn them.
func Diff(actual openflow.Contents, desired Desired) Delta {
	var d Delta
	right := make(map[openflow.Key]bool, len(actual.Flows))
	for _, e := range actual.Flows {
		want, ok := desired.Flows[e.Key]
		switch {
		case ok && want.Flow == e.Flow:
			right[e.Key] = true
		case Volatile(e.Table, e.Actions):
		case !ok && Ours(e.Cookie):
			d.Delete = append(d.Delete, Flow{Flow: e.Flow})
		}
	}
	for key, want := range desired.Flows {
		if !right[key] {
			d.Set = append(d.Set, want)
		}
	}
	d.Forget = forget(actual.Flows, desired)
	rightGroup := make(map[openflow.GroupID]bool, len(actual.Groups))
	for _, g := range actual.Groups {
		want, ok := desired.Groups[g.ID]
		switch {
		case ok && want.Group == g:
			rightGroup[g.ID] = true
		case !ok && OurGroup(g.ID):
			d.DeleteGroups = append(d.DeleteGroups, Group{Group: g})
		}
	}
	for id, want := range desired.Groups {
		if !rightGroup[id] {
			d.SetGroups = append(d.SetGroups, want)
		}
	}
	d.sort()
	return d
}
