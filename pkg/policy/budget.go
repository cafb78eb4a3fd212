package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/share"
)

// maxNodeFlows is how many flows all policies of a node may take, before those that they share are merged
// (model.Policy.MostFlows). ovs-vswitchd and the agent need about 1 KB for each.
const maxNodeFlows = 1_000_000

// overBudget gives the policies that do not fit into room, of those whose flows are counted, by namespace/name. Each
// namespace has its fair share; in it the smaller policies fit first. It is a function of its arguments alone.
func overBudget(flows map[string]int, room int) map[string]bool {
	type named struct {
		name  string
		flows int
	}
	byNamespace, totals := map[string][]named{}, map[string]int{}
	for name, n := range flows {
		namespace, _, _ := strings.Cut(name, "/")
		byNamespace[namespace] = append(byNamespace[namespace], named{name, n})
		totals[namespace] += n
	}
	over := map[string]bool{}
	for namespace, left := range share.Divide(room, totals) {
		list := byNamespace[namespace]
		slices.SortFunc(list, func(a, b named) int {
			return cmp.Or(cmp.Compare(a.flows, b.flows), cmp.Compare(a.name, b.name))
		})
		for _, p := range list {
			if left -= p.flows; left < 0 {
				over[p.name] = true
			}
		}
	}
	return over
}

// overBudgetError says why a policy isolates and allows nothing. It names nothing that other policies change.
func overBudgetError(flows, room int) string {
	return fmt.Sprintf("its rules may take %d flows, for which its namespace's share of the %d that this node has for "+
		"policies has no room; use fewer policies, or fewer and wider peers", flows, room)
}

// countFlows counts the flows of a policy that is about pods of this node.
func countFlows(m model.Policy) int { return max(1, m.MostFlows()) }
