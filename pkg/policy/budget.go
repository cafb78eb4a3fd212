package policy

import (
	"fmt"

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

// overflow returns the policies that have no room. Those of the cluster are like a namespace's.
func overflow(flows map[model.PolicyID]int, room int) map[model.PolicyID]bool {
	return share.Overflow(flows, room, func(id model.PolicyID) (namespace, name string) { return id.Namespace, id.Name })
}

// countFlows counts the flows of a policy that selects pods of this node.
func countFlows(m model.Policy) int { return max(1, m.MostFlows()) }
