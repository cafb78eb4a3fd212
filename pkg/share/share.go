// Package share divides what a node has only so much of among those who ask for it, so that no tenant's demand takes
// another's part. It is pure arithmetic: it holds no state and starts no goroutine.
package share

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// Divide gives each claimant its max-min fair part of room: none gets more than it demands, and what one leaves is
// divided among the others. So a claimant that demands at most room divided by the number of claimants always gets all
// of it. The parts depend on the demands alone.
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

// Overflow gives the claims that have no room beside the others, of those that are counted by namespace/name. Each
// namespace has its fair part; in it the smaller claims fit first. The answer depends on the arguments alone.
func Overflow(claims map[string]int, room int) map[string]bool {
	type claim struct {
		name string
		size int
	}
	byNamespace, totals := map[string][]claim{}, map[string]int{}
	for name, size := range claims {
		namespace, _, _ := strings.Cut(name, "/")
		byNamespace[namespace] = append(byNamespace[namespace], claim{name, size})
		totals[namespace] += size
	}
	over := map[string]bool{}
	for namespace, left := range Divide(room, totals) {
		list := byNamespace[namespace]
		slices.SortFunc(list, func(a, b claim) int {
			return cmp.Or(cmp.Compare(a.size, b.size), cmp.Compare(a.name, b.name))
		})
		for _, c := range list {
			if left -= c.size; left < 0 {
				over[c.name] = true
			}
		}
	}
	return over
}
