package programmer_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/state"
)

// TestEpochReachesTheSwitch: when the affinity of many Services has timed out, one bundle changes their groups; time
// that passes otherwise changes nothing, and nor does a restart.
func TestEpochReachesTheSwitch(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var services, programmed []model.Service
	for i := range byte(20) {
		s := service("s"+string('a'+rune(i)), 10+i, 2, 3)
		s.Affinity = time.Minute
		services = append(services, s)
		s.AffinityEpoch = 30_000_000
		programmed = append(programmed, s)
	}
	sw := withServices(t, programmed...)
	b := start(t, sw)
	b.Submit(state.SetTime{Now: now})
	for _, s := range services {
		b.Submit(state.SetJoinedService{Service: s})
	}
	eventually(t, "the loop knows the Services", func() bool { return len(b.View().Services) == len(services) })
	sw.Start()
	for _, step := range []struct {
		what   string
		after  time.Duration
		groups int
	}{{"the restart", 0, 0}, {"59 seconds", 59 * time.Second, 0}, {"a minute", time.Minute, len(services)}, {
		"two minutes less one second", 2*time.Minute - time.Second, 0}} {
		before := len(sw.Applied())
		b.Submit(state.SetTime{Now: now.Add(step.after)})
		if err := b.Programmed(t.Context(), b.Submitted()); err != nil {
			t.Fatal(err)
		}
		for _, d := range sw.Applied()[before:] {
			if len(d.SetGroups) != step.groups || len(d.Set)+len(d.Delete)+len(d.DeleteGroups) > 0 {
				t.Errorf("%s sent %+v", step.what, d)
			}
		}
		if bundles := len(sw.Applied()) - before; bundles != min(step.groups, 1) {
			t.Errorf("%s took %d bundles", step.what, bundles)
		}
	}
	for _, g := range b.groups() {
		if !strings.Contains(g.String(), "selection_method_param=30000001,") {
			t.Errorf("after the timeout: %s", g)
		}
	}
}

// TestLearnedAgain: what the switch learns once more for a Service whose affinity has ended, from its cache, is
// forgotten within seconds.
func TestLearnedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sw := ofswitch.NewFake(flows.Check)
		loop, stop := bubble(t, sw)
		defer stop()
		sticky := service("web", 1, 2, 3)
		sticky.Affinity = time.Hour
		loop.Submit(state.SetJoinedService{Service: sticky})
		synctest.Wait()
		learn(t, sw, "10.244.1.2", sticky)
		loop.Submit(state.SetJoinedService{Service: service("web", 1, 2, 3)})
		time.Sleep(time.Second)
		b := &bench{t: t, sw: sw}
		if b.has("nw_src=10.244.1.2,") {
			t.Fatal("the end of the affinity forgets nothing")
		}
		learn(t, sw, "10.244.1.2", sticky)
		time.Sleep(3 * time.Second)
		if b.has("nw_src=10.244.1.2,") {
			t.Error("what was learned again is still there after three seconds")
		}
	})
}
