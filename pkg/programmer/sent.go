package programmer

import (
	"hash/maphash"
	"time"

	"github.com/weft-cni/weft/pkg/ofswitch"
)

// maxSent bounds the events that sentEvents remembers: a larger bundle is verified by reading the switch instead.
const maxSent = 4096

// sentMemory is how long at least an event is expected, and half of how long at most. The switch reports within
// milliseconds unless it is very busy.
const sentMemory = 5 * time.Second

// sentEvents are the events that the loop's own bundles cause and that the switch has not reported yet. Each counts
// once: an event that comes again is another program's. It keeps hashes, because the text of a group with many
// endpoints has tens of kilobytes; a collision would hide a difference until the next audit. It belongs to the loop's
// goroutine.
type sentEvents struct {
	seed maphash.Seed
	// recent and older are how often each is expected. A change that changes nothing is never reported.
	recent, older map[uint64]int
	since         time.Time // when recent was begun
	total         int
}

func newSentEvents() *sentEvents {
	s := &sentEvents{seed: maphash.MakeSeed()}
	s.reset()
	return s
}

// reset forgets all: too many, or of before the watch on the switch began. A cleared map would keep the size that the
// first bundle gave it.
func (s *sentEvents) reset() {
	*s = sentEvents{seed: s.seed, recent: map[uint64]int{}, older: map[uint64]int{}, since: time.Now()}
}

// age forgets what has been expected for too long.
func (s *sentEvents) age() {
	switch passed := time.Since(s.since); {
	case passed >= 2*sentMemory:
		s.reset()
	case passed >= sentMemory:
		for _, n := range s.older {
			s.total -= n
		}
		s.older, s.recent, s.since = s.recent, map[uint64]int{}, time.Now()
	}
}

// add remembers an event to come. When there are too many it forgets all of them and returns false: the switch has to
// be read to tell own changes from others'.
func (s *sentEvents) add(e ofswitch.Event) bool {
	s.age()
	if s.total >= maxSent {
		s.reset()
		return false
	}
	s.recent[maphash.Comparable(s.seed, e)]++
	s.total++
	return true
}

// take returns whether the event was expected, and expects it once less.
func (s *sentEvents) take(e ofswitch.Event) bool {
	s.age()
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
