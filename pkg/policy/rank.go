package policy

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// perPriority is how many rules all policies of one tier and priority may have on a node, so that each priority has a
// fixed range of ranks: then a policy that comes or goes changes the ranks of no other priority. With more rules the
// whole tier is numbered without gaps.
const perPriority = 64

// place is what the rank of a policy follows from. It does not follow from pods, beyond that the policy selects some.
type place struct {
	tier     model.Tier
	priority int32
	id       model.PolicyID
	rules    int // in the longer direction
	staged   bool
}

func (policy Policy) place() place {
	return place{policy.Tier, policy.Priority, policy.ID(), max(len(policy.Ingress), len(policy.Egress)),
		policy.Staged}
}

// assignRanks gives the policies of ordered tiers their ranks (model.Policy): in the order of priorities and names, and
// of the rules of each policy. The result depends on the set of places alone. Where a tier has no room for all rules,
// the staged policies have no place in it: they take none away.
func assignRanks(places []place) map[model.PolicyID]int {
	ranks, total := map[model.PolicyID]int{}, map[model.Tier]int{}
	for _, p := range places {
		total[p.tier] += p.rules
	}
	places = slices.DeleteFunc(places, func(p place) bool {
		without := p.staged && p.tier.Ordered() && total[p.tier] > model.RulePlaces
		if without {
			ranks[p.id] = model.RulePlaces + 1
		}
		return without
	})
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.tier, b.tier), cmp.Compare(a.priority, b.priority), a.id.Compare(b.id))
	})
	type level struct {
		tier     model.Tier
		priority int32
	}
	rules, dense := map[level]int{}, map[model.Tier]bool{}
	for _, p := range places {
		at := level{p.tier, p.priority}
		rules[at] += p.rules
		dense[p.tier] = dense[p.tier] || rules[at] > perPriority || p.priority < 0 || p.priority > maxPriority
	}
	next, last := 0, level{}
	for i, p := range places {
		switch at := (level{p.tier, p.priority}); {
		case !p.tier.Ordered():
			continue
		case i == 0 || at.tier != last.tier:
			next = 0
			fallthrough
		case at.priority != last.priority:
			if last = at; !dense[p.tier] {
				next = int(p.priority) * perPriority
			}
		}
		ranks[p.id] = next
		next += p.rules
	}
	return ranks
}

// nodePrefixes are the addresses of the selected nodes, sorted and disjoint.
func nodePrefixes(nodes iter.Seq[Node], s Selector) []netip.Prefix {
	var list []netip.Prefix
	for n := range nodes {
		if s.Matches(n.Labels) {
			for _, a := range n.Addrs {
				list = append(list, hostPrefix(a))
			}
		}
	}
	slices.SortFunc(list, comparePrefixes)
	return disjoint(list)
}
