package state_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// sticky is a Service with affinity.
func sticky(name string, timeout time.Duration, endpoints int) model.Service {
	s := model.Service{Name: name, Affinity: timeout, Algorithm: model.HashConnection, Ports: []model.ServicePort{
		{Protocol: model.TCP, Port: 80, ClusterIP: netip.MustParseAddr("10.96.0.1")}}}
	for i := range endpoints {
		s.Ports[0].Cluster = append(s.Ports[0].Cluster, model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i >> 8),
			byte(i)}), Port: 80, Weight: 1})
	}
	return s
}

// TestAffinityEpochs: a Service's epoch changes when its timeout has passed, also when the Service was set again
// meanwhile; the change marks only that Service dirty. An epoch follows from the clock alone, so it survives a
// restart.
func TestAffinityEpochs(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	s := state.New("n1")
	s.Apply(state.SetTime{Now: start})
	bySource, local := sticky("by source", time.Minute, 3), sticky("local", time.Minute, 1)
	bySource.Algorithm = model.HashSource
	local.Ports[0].Local = sticky("", 0, 2).Ports[0].Cluster
	all := []model.Service{
		sticky("none", 0, 3), sticky("minute", time.Minute, 3), sticky("hour", time.Hour, 3), sticky("second", time.Second,
			3),
		sticky("alone", time.Minute, 1), sticky("day", 24*time.Hour, 3), bySource, local,
	}
	for _, one := range all {
		s.Apply(state.SetJoinedService{Service: one})
	}
	before, _ := s.Take()
	for _, name := range []string{"none", "alone", "day", "by source"} {
		if epoch := before.Services[name].AffinityEpoch; epoch != 0 {
			t.Errorf("%s has the epoch %d, want none: its clients stay", name, epoch)
		}
	}
	for _, step := range []struct {
		after time.Duration
		want  []string
	}{
		{0, nil}, {9 * time.Second, nil}, {10 * time.Second, []string{"second"}}, {59 * time.Second, []string{"second"}}, {
			60 * time.Second, []string{"local", "minute", "second"}},
		{time.Hour - time.Second, []string{"local", "minute", "second"}}, {time.Hour, []string{"hour", "local", "minute",
			"second"}}, {time.Hour, nil},
		// a clock that is set back
		{48 * time.Hour, []string{"hour", "local", "minute", "second"}}, {time.Hour, []string{"hour", "local", "minute",
			"second"}},
	} {
		was := s.Snapshot()
		s.Apply(state.SetTime{Now: start.Add(step.after)})
		now, owners := s.Take()
		var got []string
		for _, o := range owners {
			got = append(got, o.Name)
			if was.Services[o.Name].AffinityEpoch == now.Services[o.Name].AffinityEpoch {
				t.Errorf("after %s: %s is touched, its epoch is the same", step.after, o)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, step.want) {
			t.Errorf("after %s: %v are touched, want %v", step.after, got, step.want)
		}
		if now.ServicesRevision != before.ServicesRevision {
			t.Errorf("after %s: counts as a change of Services: the host's network would follow it", step.after)
		}
		again := state.New("n1")
		again.Apply(state.SetTime{Now: start.Add(step.after)})
		for _, one := range all {
			s.Apply(state.SetJoinedService{Service: one}) // as it is known
			again.Apply(state.SetJoinedService{Service: one})
		}
		fresh, _ := again.Take()
		for name, service := range now.Services {
			if got := fresh.Services[name].AffinityEpoch; got != service.AffinityEpoch {
				t.Errorf("after %s: %s has the epoch %d, after a restart %d", step.after, name, service.AffinityEpoch, got)
			}
		}
		if _, owners := s.Take(); len(owners) > 0 {
			t.Errorf("after %s: what was known touches %v", step.after, owners)
		}
	}
}

// TestEpochsAreBounded: however many Services time out at once, and however large they are, what is compiled at one
// time is little; all get their turn.
func TestEpochsAreBounded(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	s := state.New("n1")
	s.Apply(state.SetTime{Now: start})
	const services, endpoints = 1000, 10
	for i := range services {
		s.Apply(state.SetJoinedService{Service: sticky(fmt.Sprint(i), time.Hour, endpoints)})
	}
	s.Apply(state.SetJoinedService{Service: sticky("huge", time.Hour, 20000)})
	s.Take()
	left, steps := services+1, 0
	for ; left > 0 && steps < 100; steps++ {
		s.Apply(state.SetTime{Now: start.Add(time.Hour + time.Duration(steps)*5*time.Second)})
		_, owners := s.Take()
		if len(owners) > 200 {
			t.Fatalf("%d Services of %d endpoints change at once", len(owners), endpoints)
		}
		left -= len(owners)
	}
	// 30,000 ways in all, 2,000 at a time.
	if left != 0 || steps < 6 || steps > 20 {
		t.Errorf("after %d steps %d Services have the old epoch", steps, left)
	}
}
