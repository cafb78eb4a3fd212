package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Plan is what would change on a node if objects were applied or deleted.
type Plan struct {
	// Changes are by owner, in the owners' order; none if nothing changes.
	Changes []OwnerChange `json:"changes"`
	// Problems are the objects that could not be programmed, or only in part.
	Problems []string `json:"problems"`
	// Warnings are the objects of the request that mean less than their manifests say.
	Warnings []string `json:"warnings"`
	// Flows are all flows after the change; only if the request asked for them.
	Flows []Flow `json:"flows,omitempty"`
}

// OwnerChange is what changes of an owner's flows. A flow whose actions or groups change is removed and added.
type OwnerChange struct {
	Owner   string `json:"owner"`
	Removed []Flow `json:"removed"`
	Added   []Flow `json:"added"`
}

// Compiled are the flows of a switch that has what it should, and has seen no packet: all, or those of an object (see
// Flows).
func Compiled(desired flows.Desired, view *model.Snapshot, object string) []Flow {
	var c openflow.Contents
	for _, key := range slices.SortedFunc(maps.Keys(desired.Flows), openflow.Key.Compare) {
		c.Flows = append(c.Flows, openflow.Entry{Flow: desired.Flows[key].Flow})
	}
	for _, id := range slices.Sorted(maps.Keys(desired.Groups)) {
		c.Groups = append(c.Groups, desired.Groups[id].Group)
	}
	return Flows(c, desired, view, object)
}

// Changes are the flows that are only in before or only in after, by owner. Counters do not matter.
func Changes(before, after []Flow) []OwnerChange {
	by := map[string]*OwnerChange{}
	of := func(owner string) *OwnerChange {
		if by[owner] == nil {
			by[owner] = &OwnerChange{Owner: owner, Removed: []Flow{}, Added: []Flow{}}
		}
		return by[owner]
	}
	for _, f := range Without(before, after) {
		of(f.Owner).Removed = append(of(f.Owner).Removed, f)
	}
	for _, f := range Without(after, before) {
		of(f.Owner).Added = append(of(f.Owner).Added, f)
	}
	list := []OwnerChange{}
	for _, c := range by {
		list = append(list, *c)
	}
	slices.SortFunc(list, func(a, b OwnerChange) int { return cmp.Compare(a.Owner, b.Owner) })
	return list
}

// Without are the flows that another list does not have, in their order. Counters do not matter.
func Without(list, than []Flow) []Flow {
	has := map[string]bool{}
	for _, f := range than {
		has[flowText(f)] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(f Flow) bool { return has[flowText(f)] })
}

// flowText is everything of a flow but its counters, with the groups behind it.
func flowText(f Flow) string {
	return fmt.Sprintf("%d %d %s %s %s %+v", f.TableID, f.Priority, f.Match, f.Actions, f.Owner, f.Groups)
}
