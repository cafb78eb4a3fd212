package programmer

import (
	"hash/maphash"
	"iter"
	"sync"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// minSent is how many events sentEvents remembers at least. More than that it remembers up to twice what the switch
// holds, so that bundles may rewrite all of it: the hashes are small beside the compiled flows.
const minSent = 4096

// sentMemory is how long at least an event is expected, and half of how long at most. The switch reports within
// milliseconds unless it is very busy.
const sentMemory = 5 * time.Second

// sentEvents are the events that the loop's own bundles cause and that the switch has not reported yet. Each counts
// once: an event that comes again is another program's. It keeps hashes, because the text of a group with many
// endpoints has tens of kilobytes; a collision would hide a difference until the next audit. The loop's goroutine adds,
// the watch's takes.
type sentEvents struct {
	seed maphash.Seed

	mu sync.Mutex
	// recent and older are how often each is expected. A change that changes nothing is never reported.
	recent, older map[uint64]int
	since         time.Time // when recent was begun
	total         int
	// unsureUntil is when the events that were forgotten for want of room have been reported. Until then any event may
	// be an own one.
	unsureUntil time.Time
}

func newSentEvents() *sentEvents {
	s := &sentEvents{seed: maphash.MakeSeed()}
	s.clear()
	return s
}

// watchGrace is how long after the watch on the switch has begun an event is expected that was sent before.
const watchGrace = 500 * time.Millisecond

// watchBegan makes all events that are expected now be forgotten after watchGrace: those of before the watch began are
// never reported, but those of a bundle that was under way then are.
func (s *sentEvents) watchBegan() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.age()
	for h, n := range s.recent {
		s.older[h] += n
	}
	s.recent, s.since = map[uint64]int{}, time.Now().Add(watchGrace-sentMemory)
}

// clear makes new maps: a cleared one would keep the size that the first bundle gave it.
func (s *sentEvents) clear() {
	s.recent, s.older, s.since, s.total = map[uint64]int{}, map[uint64]int{}, time.Now(), 0
}

// age forgets what has been expected for too long.
func (s *sentEvents) age() {
	switch passed := time.Since(s.since); {
	case passed >= 2*sentMemory:
		s.clear()
	case passed >= sentMemory:
		for _, n := range s.older {
			s.total -= n
		}
		s.older, s.recent, s.since = s.recent, map[uint64]int{}, time.Now()
	}
}

// add remembers the events that a bundle is about to cause. When there are more than limit it forgets all of them, and
// returns when the switch has reported them: until then no event tells of another program's change, so the switch has
// to be read at that time. Otherwise it returns the zero time.
func (s *sentEvents) add(d flows.Delta, limit int) (unsureUntil time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.age()
	for e := range eventsOf(d) {
		if s.total >= limit {
			s.clear()
			s.unsureUntil = time.Now().Add(2 * sentMemory)
			return s.unsureUntil
		}
		s.recent[maphash.Comparable(s.seed, e)]++
		s.total++
	}
	return time.Time{}
}

// remove forgets the events of a bundle that the switch rejected.
func (s *sentEvents) remove(d flows.Delta) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := range eventsOf(d) {
		s.takeLocked(e)
	}
}

// take returns whether the event was expected, and expects it once less.
func (s *sentEvents) take(e ofswitch.Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.age()
	return s.takeLocked(e) || time.Now().Before(s.unsureUntil)
}

func (s *sentEvents) takeLocked(e ofswitch.Event) bool {
	h := maphash.Comparable(s.seed, e)
	for _, counts := range []map[uint64]int{s.older, s.recent} {
		switch counts[h] {
		case 0:
			continue
		case 1:
			delete(counts, h)
		default:
			counts[h]--
		}
		s.total--
		return true
	}
	return false
}

// count is how many events are expected.
func (s *sentEvents) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// eventsOf goes through the events that a bundle causes in a switch where it changes all that it names.
func eventsOf(d flows.Delta) iter.Seq[ofswitch.Event] {
	return func(yield func(ofswitch.Event) bool) {
		for _, list := range []struct {
			flows   []flows.Flow
			groups  []flows.Group
			deleted bool
		}{{d.Delete, d.DeleteGroups, true}, {d.Set, d.SetGroups, false}} {
			for _, f := range list.flows {
				if !yield(ofswitch.Event{Deleted: list.deleted, Table: f.Table, Match: f.Match, Actions: f.Actions}) {
					return
				}
			}
			for _, g := range list.groups {
				e := ofswitch.Event{Deleted: list.deleted, Group: g.Group}
				if list.deleted { // nothing else of it is reported
					e.Group = openflow.Group{ID: g.ID}
				}
				if !yield(e) {
					return
				}
			}
		}
	}
}

// expectEvents remembers the events that a bundle will cause.
func (l *Loop) expectEvents(d flows.Delta) {
	desired := l.compiler.Desired()
	held := len(desired.Flows) + len(desired.Groups) + len(d.Delete) + len(d.DeleteGroups)
	limit := max(minSent, 2*held)
	l.readAt(l.sent.add(d, limit))
	if len(d.Forget) > 0 {
		l.readAt(time.Now().Add(learnedAgain))
	}
}

// readAt makes the loop read the switch at a time, or later if it is to be read later already.
func (l *Loop) readAt(t time.Time) {
	if t.After(l.unsureUntil) {
		l.unsureUntil = t
	}
}
