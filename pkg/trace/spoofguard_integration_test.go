//go:build integration

package trace_test

import (
	"testing"

	"github.com/weft-cni/weft/pkg/trace"
)

// TestSpoofGuardOfOpenVSwitch: a real switch takes the same flows.
func TestSpoofGuardOfOpenVSwitch(t *testing.T) {
	r := startSwitch(t)
	desired := guardedFlows(t, false)
	r.load(t, desired)
	sw, err := trace.Of(desired)
	if err != nil {
		t.Fatal(err)
	}
	states := []string{"trk,new", "trk,new"}
	for _, g := range guarded {
		actual, full := r.trace(t, g.packet, states)
		if err := same(desired, actual,
			sw.Run(packet(t, g.packet), trace.Options{States: states, Steps: true}).Visited); err != nil {
			t.Errorf("%s: %v\n%s", g.packet, err, full)
		}
	}
}
