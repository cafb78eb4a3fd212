package programmer

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// setting is a bundle that adds flows with these matches.
func setting(matches ...string) (d flows.Delta) {
	for _, m := range matches {
		d.Set = append(d.Set, flows.Flow{Flow: openflow.Flow{Key: openflow.Key{Match: openflow.ParseMatch(m)}}})
	}
	return d
}

// TestSentEvents: an event is expected once, for sentMemory at least and twice that at most; one of a bundle that the
// switch rejected is not.
func TestSentEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSentEvents()
		first, second := ofswitch.Event{Match: openflow.ParseMatch("first")},
			ofswitch.Event{Match: openflow.ParseMatch("second")}
		time.Sleep(sentMemory - time.Second) // the worst moment
		s.add(setting("first", "second", "rejected"), minSent)
		s.remove(setting("rejected"))
		time.Sleep(sentMemory)
		if !s.take(first) || s.take(first) || s.count() != 1 {
			t.Errorf("the first event: want it once; %d are expected", s.count())
		}
		time.Sleep(sentMemory)
		if s.take(second) || s.count() != 0 {
			t.Errorf("an event that did not come for long is expected; %d in all", s.count())
		}
	})
}

// TestSentEventsOfBeforeTheWatch: when the watch has begun, the events of a bundle that was under way are expected for
// a moment, older ones no longer, and those that are sent now as long as any.
func TestSentEventsOfBeforeTheWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSentEvents()
		s.add(setting("older"), minSent)
		time.Sleep(sentMemory)
		s.add(setting("before", "under way"), minSent)
		s.watchBegan()
		s.add(setting("now"), minSent)
		if !s.take(ofswitch.Event{Match: openflow.ParseMatch("under way")}) {
			t.Error("an event of the bundle that was under way passes for another program's")
		}
		time.Sleep(watchGrace)
		if s.take(ofswitch.Event{Match: openflow.ParseMatch("before")}) ||
			s.take(ofswitch.Event{Match: openflow.ParseMatch("older")}) {
			t.Error("an event of before the watch is expected still")
		}
		time.Sleep(sentMemory - watchGrace)
		if !s.take(ofswitch.Event{Match: openflow.ParseMatch("now")}) || s.count() != 0 {
			t.Errorf("an event of after the beginning is not expected; %d are", s.count())
		}
	})
}

// TestSentEventsWithoutRoom: what does not fit is forgotten as a whole, and until the switch has reported it no event
// passes for another program's.
func TestSentEventsWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSentEvents()
		var many []string
		for i := range 100 {
			many = append(many, fmt.Sprint(i))
		}
		if unsure := s.add(setting(many...), 100); !unsure.IsZero() {
			t.Error("100 events have no room for 100")
		}
		unsure := s.add(setting("one more"), 100)
		if want := time.Now().Add(2 * sentMemory); !unsure.Equal(want) {
			t.Errorf("unsure until %v, want %v", unsure, want)
		}
		if !s.take(ofswitch.Event{Match: openflow.ParseMatch("7")}) ||
			!s.take(ofswitch.Event{Match: openflow.ParseMatch("one more")}) {
			t.Error("an own event passes for another program's")
		}
		time.Sleep(time.Until(unsure))
		if s.take(ofswitch.Event{Match: openflow.ParseMatch("7")}) {
			t.Error("another program's event passes for an own one")
		}
	})
}
