// Package share divides a node's limited resources fairly among namespaces, so that one tenant's demand cannot take
// another's share. It is pure arithmetic: no state, no goroutine.
package share

import (
	"cmp"
	"maps"
	"slices"
)

// Divide gives each claimant its max-min fair part of room: no claimant gets more than it demands, and the unused part
// of a share is divided among the others. So a claimant that demands at most room divided by the number of claimants
// gets all of its demand. The result depends on the arguments alone.
func Divide(room int, demands map[string]int) map[string]int {
	names := slices.SortedFunc(maps.Keys(demands), func(a, b string) int {
		return cmp.Or(cmp.Compare(demands[a], demands[b]), cmp.Compare(a, b))
	})
	parts := make(map[string]int, len(names))
	for i, name := range names {
		part := min(demands[name], room/(len(names)-i))
		parts[name] = part
		room -= part
	}
	return parts
}

// Overflow returns the claims that do not fit into room. Each namespace has its fair part; within it smaller claims fit
// first, and of equal ones the first by name. The result depends on the arguments alone.
func Overflow[K comparable](claims map[K]int, room int, identity func(K) (namespace, name string)) map[K]bool {
	type claim struct {
		key  K
		name string
		size int
	}
	byNamespace, totals := map[string][]claim{}, map[string]int{}
	for key, size := range claims {
		namespace, name := identity(key)
		byNamespace[namespace] = append(byNamespace[namespace], claim{key, name, size})
		totals[namespace] += size
	}
	over := map[K]bool{}
	for namespace, left := range Divide(room, totals) {
		list := byNamespace[namespace]
		slices.SortFunc(list, func(a, b claim) int {
			return cmp.Or(cmp.Compare(a.size, b.size), cmp.Compare(a.name, b.name))
		})
		for _, c := range list {
			if left -= c.size; left < 0 {
				over[c.key] = true
			}
		}
	}
	return over
}
