package programmer_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// bubble runs a loop in the time of synctest.Test, where a sleep ends when everything else is idle: it is a
// condition, not a guess. It returns when the loop is past the readings of its start, and the watch reports events.
func bubble(t *testing.T, sw programmer.Switch) (*programmer.Loop, func()) {
	t.Helper()
	loop := programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler)})
	loop.Submit(state.SetNode{Node: node("n1", 1)})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := loop.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	time.Sleep(5 * time.Second)
	return loop, func() { stop(); <-ended }
}

// TestAuditIsNotPutOff: the switch is read back every minute, however often objects change meanwhile.
func TestAuditIsNotPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sw := ofswitch.NewFake(flows.Check)
		loop, stop := bubble(t, sw)
		for range 12 * 60 { // an hour
			time.Sleep(5 * time.Second)
			loop.Submit(state.SetNode{Node: node("n2", 2)}) // mostly what is known already
		}
		if n := sw.Dumps(); n < 59 || n > 65 {
			t.Errorf("the switch was read %d times in an hour, want once a minute", n)
		}
		stop()
	})
}

// deaf is a switch whose watch reports no event.
type deaf struct{ programmer.Switch }

func (d deaf) Watch(ctx context.Context, ready func(), _ func(ofswitch.Event)) error {
	ready()
	<-ctx.Done()
	return nil
}

// TestOwnEventsAreBounded: the loop forgets an event of its own as soon as the switch has reported it, and stops
// remembering them where the switch reports none.
func TestOwnEventsAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("many flows: left to make unit")
	}
	const changes = 2000
	for name, limit := range map[string]int{"reported": 10, "not reported": 4096} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var sw programmer.Switch = ofswitch.NewFake(flows.Check)
				if name == "not reported" {
					sw = deaf{sw}
				}
				loop, stop := bubble(t, sw)
				most := 0
				for i := range changes {
					for n := range 10 { // a minute has more changes than the limit
						loop.Submit(state.SetJoinedService{Service: service("web"+string(rune('a'+n)), byte(n+1), byte(i), byte(i>>8),
							7)})
					}
					time.Sleep(10 * time.Millisecond)
					synctest.Wait()
					most = max(most, loop.OwnEvents())
				}
				if most > limit {
					t.Errorf("the loop remembers %d events of its own, want at most %d", most, limit)
				}
				stop()
			})
		})
	}
}

// TestReplayIsDrift: a group that the loop replaced, and that another program installs again, is drift. It is
// repaired at once, not at the next audit.
func TestReplayIsDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sw := ofswitch.NewFake(flows.Check)
		loop, stop := bubble(t, sw)
		group := func() openflow.Group {
			c, err := sw.Dump(t.Context())
			if err != nil || len(c.Groups) != 1 {
				t.Fatalf("groups %v, %v", c.Groups, err)
			}
			return c.Groups[0]
		}
		program := func(endpoints ...byte) openflow.Group {
			loop.Submit(state.SetJoinedService{Service: service("web", 1, endpoints...)})
			time.Sleep(time.Second)
			return group()
		}
		old := program(2, 3)
		now := program(4, 5)
		if old == now {
			t.Fatal("the group did not change: this test tests nothing")
		}
		sw.PutGroup(old)
		time.Sleep(time.Second)
		if got := group(); got != now {
			t.Errorf("the switch holds the replayed group %s a second later", old)
		}
		stop()
	})
}
