package flows

import (
	"slices"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/share"
)

// maxClauses is how many clauses one flow may have. OVS 3.1 takes one more than 4,087 and then prints it no more; of
// 4,200 it says that they are too big.
const maxClauses = 4000

// clauseList is the clauses that owners want in one flow, each once, in the owners' order.
type clauseList struct {
	all  []ownedClause
	seen map[openflow.Action]bool
}

type ownedClause struct {
	owner  model.Owner
	clause openflow.Action
}

// add takes the clauses of a flow that are new.
func (l *clauseList) add(f Flow) {
	for clause := range f.Actions.All() {
		if !l.seen[clause] {
			l.seen[clause] = true
			l.all = append(l.all, ownedClause{f.Owner, clause})
		}
	}
}

// fit gives the clauses that have room, sorted, and the owners of those that have none: a rule does not match where it
// lacks a clause, so that it allows less. Room is shared fairly between namespaces, and by a namespace's policies.
func (l *clauseList) fit(room int) (kept []openflow.Action, without []model.Owner) {
	var left map[owningPolicy]int
	if len(l.all) > room {
		left = l.shares(room)
	}
	kept = make([]openflow.Action, 0, min(len(l.all), room))
	for _, c := range l.all {
		if left != nil {
			if left[nameOf(c.owner)] == 0 {
				without = append(without, c.owner)
				continue
			}
			left[nameOf(c.owner)]--
		}
		kept = append(kept, c.clause)
	}
	slices.SortFunc(kept, openflow.Action.Compare)
	return kept, without
}

// owningPolicy is a NetworkPolicy, staged or not: only they share clauses.
type owningPolicy struct{ namespace, name string }

func nameOf(o model.Owner) owningPolicy { return owningPolicy{o.Namespace, o.Name} }

// stagedOwners are those of flows whose policies are staged.
func stagedOwners(list []Flow) (owners []model.Owner) {
	for _, f := range list {
		if _, staged := f.Owner.Kind.Policy(); staged {
			owners = append(owners, f.Owner)
		}
	}
	return owners
}

// shares divides room between the owners.
func (l *clauseList) shares(room int) map[owningPolicy]int {
	demands := map[string]map[string]int{} // by namespace and policy
	totals := map[string]int{}
	for _, c := range l.all {
		namespace := c.owner.Namespace
		if demands[namespace] == nil {
			demands[namespace] = map[string]int{}
		}
		demands[namespace][c.owner.Name]++
		totals[namespace]++
	}
	shares := map[owningPolicy]int{}
	for namespace, part := range share.Divide(room, totals) {
		for name, n := range share.Divide(part, demands[namespace]) {
			shares[owningPolicy{namespace, name}] = n
		}
	}
	return shares
}
