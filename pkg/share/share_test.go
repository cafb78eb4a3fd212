package share_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/share"
)

func TestDivide(t *testing.T) {
	for _, c := range []struct {
		room       int
		have, want map[string]int
	}{
		{10, nil, map[string]int{}},
		{10, map[string]int{"a": 4, "b": 6}, map[string]int{"a": 4, "b": 6}},
		{10, map[string]int{"a": 1000, "b": 2}, map[string]int{"a": 8, "b": 2}},
		{11, map[string]int{"a": 1000, "b": 1000, "c": 1}, map[string]int{"a": 5, "b": 5, "c": 1}},
		{1, map[string]int{"a": 3, "b": 3}, map[string]int{"a": 0, "b": 1}},
	} {
		if diff := cmp.Diff(c.want, share.Divide(c.room, c.have)); diff != "" {
			t.Errorf("%d for %v (-want +got)\n%s", c.room, c.have, diff)
		}
	}
}

// TestDivideIsFair: nothing is wasted, and a claimant gets less than its demand only when no other gets more than it.
func TestDivideIsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		room := rapid.IntRange(0, 100).Draw(t, "room")
		demands, total := map[string]int{}, 0
		for i := range rapid.IntRange(0, 8).Draw(t, "claimants") {
			demands[fmt.Sprint(i)] = rapid.IntRange(0, 60).Draw(t, "demand")
			total += demands[fmt.Sprint(i)]
		}
		parts, sum := share.Divide(room, demands), 0
		for name, part := range parts {
			sum += part
			if part > demands[name] {
				t.Fatalf("%s gets %d of %v", name, part, demands)
			}
			for _, other := range parts {
				if part < demands[name] && other > part+1 {
					t.Fatalf("%s lacks some and another gets more: %v of %v", name, parts, demands)
				}
			}
		}
		if sum != min(room, total) {
			t.Fatalf("%d of %d are given for %v", sum, room, demands)
		}
	})
}

// TestOverflow: a namespace whose claims fit into its share has all of them in spite of the claims of other namespaces.
func TestOverflow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const room = 100
		flows, totals := map[string]int{}, map[string]int{}
		for range rapid.IntRange(0, 12).Draw(t, "claims") {
			name := fmt.Sprintf("%s/%d", rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "namespace"), len(flows))
			flows[name] = rapid.IntRange(1, 90).Draw(t, "flows")
			totals[name[:1]] += flows[name]
		}
		over, total := share.Overflow(flows, room, func(s string) (string, string) { return s[:1], s[2:] }), 0
		for name, n := range flows {
			if !over[name] {
				total += n
			} else if totals[name[:1]] <= room/len(totals) {
				t.Fatalf("%s is over budget: %v", name, flows)
			}
		}
		if total > room {
			t.Fatalf("%d flows fit into %d: %v without %v", total, room, flows, over)
		}
	})
}
