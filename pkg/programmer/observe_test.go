package programmer_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// TestObservations: a change's latency reaches from its arrival until the switch holds it, outages of the switch
// included; the wait for the start does not count, nor does a change that changes nothing. Bundles are told of with
// their errors.
func TestObservations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sw := ofswitch.NewFake(flows.Check)
		var latencies []time.Duration // of the loop's goroutine until it has ended
		bundles, rejected, unreachable := 0, 0, 0
		hold := make(chan struct{})
		loop := programmer.New(programmer.Options{
			Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler), Hold: hold,
			Latency: func(d time.Duration) { latencies = append(latencies, d) },
			Bundle: func(_ time.Duration, err error) {
				bundles++
				switch {
				case errors.As(err, new(*ofswitch.RejectedError)):
					rejected++
				case err != nil:
					unreachable++
				}
			},
		})
		loop.Submit(state.SetNode{Node: node("n1", 1)})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- loop.Run(ctx) }()
		time.Sleep(time.Hour)
		close(hold)
		synctest.Wait()

		loop.Submit(state.SetNode{Node: node("n2", 2)})
		synctest.Wait()
		loop.Submit(state.SetNode{Node: node("n2", 2)}) // changes nothing
		synctest.Wait()

		sw.Stop()
		loop.Submit(state.SetNode{Node: node("n3", 3)})
		time.Sleep(10 * time.Second)
		sw.Start()
		time.Sleep(10 * time.Second)

		sw.Refuse(func(f openflow.Flow) bool { return f.Cookie != 0 && f.Match != (openflow.Match{}) })
		loop.Submit(state.SetNode{Node: node("n4", 4)})
		synctest.Wait()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if len(latencies) != 3 || latencies[0] != 0 || latencies[1] < 10*time.Second || latencies[1] > 15*time.Second {
			t.Errorf("latencies %s, want three: none, that of the outage, none", latencies)
		}
		if slices.Max(latencies) > time.Minute {
			t.Errorf("latencies %s: the start counts", latencies)
		}
		if bundles < 4 || rejected == 0 || unreachable == 0 {
			t.Errorf("%d bundles, %d rejected, %d unreachable; want some of each", bundles, rejected, unreachable)
		}
	})
}
