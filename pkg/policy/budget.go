package policy

import (
	"fmt"
	"maps"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/share"
)

// maxNodeFlows bounds the flows of all policies of a node, counted before shared flows are merged
// (model.Policy.MostFlows). ovs-vswitchd and the agent need about 1 KB for each.
const maxNodeFlows = 1_000_000

// overBudgetError is the reason why a policy over budget allows nothing. It does not depend on other policies.
func overBudgetError(flows, room int) string {
	return fmt.Sprintf("its rules may take %d flows, for which its namespace's share of the %d that this node has for "+
		"policies has no room; use fewer policies, or fewer and wider peers", flows, room)
}

// demand is how many flows a policy may take.
type demand struct {
	flows  int
	staged bool
}

// overflow returns the policies that have no room. Those of the cluster are like a namespace's. Staged ones have the
// room that the others leave, so that they take none away.
func overflow(flows map[model.PolicyID]demand, room int) map[model.PolicyID]bool {
	all := map[model.PolicyID]bool{}
	for _, staged := range []bool{false, true} {
		claims := map[model.PolicyID]int{}
		for id, d := range flows {
			if d.staged == staged {
				claims[id] = d.flows
			}
		}
		over := share.Overflow(claims, room, func(id model.PolicyID) (string, string) { return id.Namespace, id.Name })
		maps.Copy(all, over)
		for id, n := range claims {
			if !over[id] {
				room -= n
			}
		}
	}
	return all
}

// countFlows counts the flows of a policy that selects pods of this node.
func countFlows(m model.Policy) int { return max(1, m.MostFlows()) }
