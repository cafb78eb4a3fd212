package policy

import (
	"maps"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// TestStagedTakesNoRoom: staged policies have the flows that enforced ones leave, whatever they ask for.
func TestStagedTakesNoRoom(t *testing.T) {
	a, b, c := model.NetworkPolicy("x", "a"), model.NetworkPolicy("y", "b"), model.NetworkPolicy("y", "c")
	for name, tc := range map[string]struct {
		flows map[model.PolicyID]demand
		want  map[model.PolicyID]bool
	}{
		"enforced first":       {map[model.PolicyID]demand{a: {90, false}, b: {50, true}}, map[model.PolicyID]bool{b: true}},
		"what is left":         {map[model.PolicyID]demand{a: {90, false}, b: {10, true}}, map[model.PolicyID]bool{}},
		"none left":            {map[model.PolicyID]demand{a: {100, false}, b: {1, true}}, map[model.PolicyID]bool{b: true}},
		"of enforced ones, as": {map[model.PolicyID]demand{a: {90, false}, b: {50, false}}, map[model.PolicyID]bool{a: true}},
		"and with a staged one": {map[model.PolicyID]demand{a: {90, false}, b: {50, false}, c: {51, true}},
			map[model.PolicyID]bool{a: true, c: true}},
	} {
		if got := overflow(tc.flows, 100); !maps.Equal(got, tc.want) {
			t.Errorf("%s: no room for %v, want %v", name, got, tc.want)
		}
	}
}

// TestStagedTakesNoPlace: where a tier has no room for the rules of staged policies, the others have their places.
func TestStagedTakesNoPlace(t *testing.T) {
	places := func(staged int) []place {
		return []place{
			{model.AdminTier, 1, model.ClusterNetworkPolicy("a"), staged, true},
			{model.AdminTier, 2, model.ClusterNetworkPolicy("b"), 70, false},
			{model.BaselineTier, 2, model.ClusterNetworkPolicy("c"), 1, true},
		}
	}
	ranks := assignRanks(places(10))
	if ranks[model.ClusterNetworkPolicy("a")] != 0 || ranks[model.ClusterNetworkPolicy("b")] != 10 {
		t.Errorf("with room: %v", ranks)
	}
	ranks = assignRanks(places(model.RulePlaces))
	if ranks[model.ClusterNetworkPolicy("a")] <= model.RulePlaces || ranks[model.ClusterNetworkPolicy("b")] != 0 ||
		ranks[model.ClusterNetworkPolicy("c")] != 2*perPriority {
		t.Errorf("without room: %v", ranks)
	}
}
