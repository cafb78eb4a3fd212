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

// TestHold: a loop that is held takes changes into the snapshot, answers who asks for that, and leaves the switch
// alone. Afterwards the switch has everything, after one reading and one bundle.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold, sw := make(chan struct{}), ofswitch.NewFake(flows.Check)
		loop := programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler), Hold: hold})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- loop.Run(ctx) }()
		for i := range byte(3) {
			loop.Submit(state.SetNode{Node: node("n"+string('1'+rune(i)), 1+i)})
			if err := loop.Viewed(t.Context(), loop.Submitted()); err != nil {
				t.Fatal(err)
			}
			if view := loop.View(); len(view.Nodes) != int(i) {
				t.Errorf("%d peer nodes, want %d", len(view.Nodes), i)
			}
		}
		short, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := loop.Programmed(short, loop.Submitted()); err == nil {
			t.Error("programmed while held")
		}
		if err := loop.Stuck(); err != nil || sw.Dumps() > 0 || len(sw.Applied()) > 0 {
			t.Errorf("while held: %v, %d readings, %d bundles", err, sw.Dumps(), len(sw.Applied()))
		}
		close(hold)
		if err := loop.Programmed(t.Context(), loop.Submitted()); err != nil {
			t.Error(err)
		}
		if n := len(sw.Applied()); n != 1 || loop.Status().Flows == 0 {
			t.Errorf("%d bundles, %+v", n, loop.Status())
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestHeldLoopEnds: a loop that is held ends with its context, and answers who waits.
func TestHeldLoopEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		loop := programmer.New(programmer.Options{
			Node: "n1", Switch: ofswitch.NewFake(flows.Check), Log: slog.New(slog.DiscardHandler), Hold: make(chan struct{}),
		})
		ctx, stop := context.WithCancel(t.Context())
		ended, waiting := make(chan error, 1), make(chan error, 1)
		go func() { ended <- loop.Run(ctx) }()
		go func() { waiting <- loop.Programmed(t.Context(), loop.Submitted()) }()
		synctest.Wait()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := <-waiting; err == nil {
			t.Error("programmed by a loop that was held")
		}
	})
}
