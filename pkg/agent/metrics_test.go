package agent

import (
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
)

// TestDropsOnlyGrow: flows come, go and start again; the totals never fall.
func TestDropsOnlyGrow(t *testing.T) {
	d := &drops{totals: map[flows.Reason]uint64{}}
	flow := func(match string, reason flows.Reason, packets uint64) FlowReport {
		return FlowReport{Match: match, Reason: reason, Stats: openflow.Stats{Packets: packets}}
	}
	for i, step := range []struct {
		flows []FlowReport
		want  uint64
	}{
		{[]FlowReport{flow("a", flows.SpoofedIP, 10), flow("b", flows.SpoofedIP, 1), flow("c", "", 99)}, 11},
		{[]FlowReport{flow("a", flows.SpoofedIP, 12), flow("b", flows.SpoofedIP, 1)}, 13},
		{[]FlowReport{flow("b", flows.SpoofedIP, 2)}, 14},                                // a's pod has gone
		{[]FlowReport{flow("b", flows.SpoofedIP, 1)}, 15},                                // b was replaced and has counted 1
		{[]FlowReport{flow("a", flows.SpoofedIP, 3), flow("b", flows.SpoofedIP, 1)}, 18}, // a is back
	} {
		d.count(step.flows)
		if got := d.totals[flows.SpoofedIP]; got != step.want {
			t.Errorf("step %d: total %d, want %d", i, got, step.want)
		}
	}
}
