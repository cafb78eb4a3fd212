package programmer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/ofswitch"
)

// TestSentEvents: an event is expected once, for sentMemory at least and twice that at most.
func TestSentEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSentEvents()
		first, second := ofswitch.Event{Match: "first"}, ofswitch.Event{Match: "second"}
		time.Sleep(sentMemory - time.Second) // the worst moment
		s.add(first)
		s.add(second)
		time.Sleep(sentMemory)
		if !s.take(first) || s.take(first) || s.total != 1 {
			t.Errorf("the first event: want it once; %d are expected", s.total)
		}
		time.Sleep(sentMemory)
		if s.take(second) || s.total != 0 {
			t.Errorf("an event that did not come for long is expected; %d in all", s.total)
		}
	})
}
