package programmer_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// TestPace: where a bundle empties the datapath's cache, changes that keep coming share bundles, and each is in effect
// soon; a single change does not wait. Where bundles cost nothing, each change is one.
func TestPace(t *testing.T) {
	for name, costly := range map[string]bool{"costly": true, "cheap": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sw := ofswitch.NewFake(flows.Check)
				loop := programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler),
					Costly: func() bool { return costly }})
				loop.Submit(state.SetNode{Node: node("n1", 1)})
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- loop.Run(ctx) }()
				time.Sleep(time.Minute / 2)
				alone := time.Now()
				loop.Submit(podOf(pod("alone", 9)))
				if err := loop.Attach(t.Context(), pod("alone", 9)); err != nil || time.Since(alone) > 0 {
					t.Errorf("a change by itself took %s: %v", time.Since(alone), err)
				}
				before, began := len(sw.Applied()), time.Now()
				var slowest time.Duration
				for i := range 500 { // ten seconds
					loop.Submit(state.SetNode{Node: node("n2", byte(2+i%2))})
					if i%50 == 0 {
						asked := time.Now()
						if err := loop.Programmed(t.Context(), loop.Submitted()); err != nil {
							t.Error(err)
						}
						slowest = max(slowest, time.Since(asked))
					}
					time.Sleep(20 * time.Millisecond)
				}
				bundles, seconds := len(sw.Applied())-before, int(time.Since(began)/time.Second)
				switch {
				case costly && (bundles > 8+4*seconds+1 || bundles < 4*seconds || slowest > 250*time.Millisecond):
					t.Errorf("%d bundles in %d s, the slowest change took %s", bundles, seconds, slowest)
				case !costly && (bundles < 490 || slowest > 0):
					t.Errorf("%d bundles of 500 changes, the slowest took %s", bundles, slowest)
				}
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
