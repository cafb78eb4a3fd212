package programmer_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/state"
)

// stuck is a switch that does not return until it is told to answer.
type stuck struct {
	*ofswitch.Fake
	answer chan struct{}
}

func (s stuck) wait(ctx context.Context) error {
	select {
	case <-s.answer:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestNothingGrowsWithoutSwitch: while the switch is away, the container runtime tries again and again, and objects
// change. The loop keeps one change for each object, only callers that still wait, and of the pods that came and went
// none of which the switch never heard.
func TestNothingGrowsWithoutSwitch(t *testing.T) {
	if testing.Short() {
		t.Skip("many flows: left to make unit")
	}
	synctest.Test(t, func(t *testing.T) {
		sw := ofswitch.NewFake(flows.Check)
		programmed := []model.Attachment{pod("a", 2), pod("b", 3)}
		b := start(t, sw, programmed...)
		time.Sleep(5 * time.Second)
		b.mu.Lock()
		b.sweeps = nil
		b.mu.Unlock()
		sw.Stop()
		b.Verify()
		time.Sleep(time.Second)
		for i := range 1000 {
			again := pod(fmt.Sprintf("p%d", i), byte(4+i%200))
			again.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 245, byte(i >> 8), byte(i)})}
			b.Submit(podOf(again))
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if err := b.Loop.Attach(ctx, again); err == nil {
				t.Fatal("a pod was attached without a switch")
			}
			if err := b.Detach(ctx, again.Key()); err == nil {
				t.Fatal("a pod was detached without a switch")
			}
			cancel()
			if i == 500 {
				go func() { _ = b.Detach(t.Context(), programmed[0].Key()) }()
			}
			b.Submit(state.DeletePod{Namespace: "ns", Name: again.Pod.Name})
			b.Submit(state.SetNode{Node: node("n2", byte(2+i%2))})
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if queued, waiting := b.Queued(), b.Waiting(); queued > 0 || waiting != 1 {
			t.Errorf("%d changes are queued, and %d callers wait; want none and one", queued, waiting)
		}
		sw.Start()
		b.holds("everything is in")
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.sweeps) == 0 {
			t.Fatal("no sweep follows")
		}
		for _, r := range b.sweeps {
			if len(r.Gone) > 1 || len(r.Gone) == 1 && r.Gone[0] != programmed[0].IPs[0] {
				t.Errorf("%d addresses are to be swept, want the one of the pod that the switch knew: %v", len(r.Gone), r.Gone)
			}
		}
	})
}

func (s stuck) Apply(ctx context.Context, d openflow.Delta) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.Fake.Apply(ctx, d)
}

// TestQueueIsBounded: what changes while the switch does not answer takes one place for each object.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sw := stuck{ofswitch.NewFake(flows.Check), make(chan struct{})}
		loop, stop := bubble(t, sw)
		for i := range 10000 {
			loop.Submit(state.SetJoinedService{Service: service("web", 1, byte(i), byte(i>>8))})
			loop.Submit(state.SetTime{Now: time.Now()})
			loop.Submit(podOf(pod("a", byte(i%3))))
		}
		synctest.Wait()
		if n := loop.Queued(); n > 100 {
			t.Errorf("%d changes of three objects are queued", n)
		}
		close(sw.answer)
		time.Sleep(time.Minute)
		if s := loop.Status(); loop.Queued() > 0 || s.Error != "" || s.Groups != 1 {
			t.Errorf("%d changes are queued, and the status is %+v", loop.Queued(), s)
		}
		stop()
	})
}
