package agent

import (
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/ofswitch"
)

// TestSentEvents: an event is expected once, also when the switch was read between the change and its report, but not
// longer than twice sentMemory.
func TestSentEvents(t *testing.T) {
	s, now := newSentEvents(), time.Now()
	first, second := ofswitch.Event{Match: "first"}, ofswitch.Event{Match: "second"}
	s.verified(now)
	s.add(first)
	s.verified(now.Add(sentMemory))
	s.verified(now.Add(sentMemory + time.Second)) // reading it often is no reason to forget
	s.add(second)
	if !s.take(first) || s.take(first) || s.total != 1 {
		t.Errorf("the first event: want it once; %d are expected", s.total)
	}
	s.verified(now.Add(2 * sentMemory))
	s.verified(now.Add(3 * sentMemory))
	if s.take(second) || s.total != 0 {
		t.Errorf("an event that did not come for long is expected; %d in all", s.total)
	}
}
