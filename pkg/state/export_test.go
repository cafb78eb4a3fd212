package state

import "github.com/weft-cni/weft/pkg/policy"

// NewBounded returns a store with this much room for the flows of all Services, and of all policies.
func NewBounded(node string, services, policies int) *Store {
	s := New(node)
	s.budget.room, s.resolver = services, policy.NewBoundedResolver(node, policies)
	return s
}
