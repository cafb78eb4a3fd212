package agent

import (
	"hash/maphash"
	"time"

	"github.com/weft-cni/weft/pkg/ofswitch"
)

// maxSent bounds the events that sentEvents remembers: a larger bundle is verified by reading the switch instead.
const maxSent = 4096

// sentMemory is how long at least an event is expected. The switch reports within milliseconds unless it is very busy.
const sentMemory = 5 * time.Second

// sentEvents are the events that the loop's own bundles cause and that the switch has not reported yet. Each counts
// once: an event that comes again is another program's. It keeps hashes, because the text of a group with many
// endpoints has tens of kilobytes; a collision would hide a difference until the next audit. It belongs to the loop's
// goroutine.
type sentEvents struct {
	seed maphash.Seed
	// recent and older are how often each is expected. Reading the switch says that it has done what was sent before, but not
	// that it has reported it.
	recent, older map[uint64]int
	since         time.Time // of the oldest of recent, about
	total         int
}

func newSentEvents() *sentEvents {
	return &sentEvents{seed: maphash.MakeSeed(), recent: map[uint64]int{}, older: map[uint64]int{}}
}

// add remembers an event to come. When there are too many it forgets all of them and returns false: the switch has to
// be read to tell own changes from others'.
func (s *sentEvents) add(e ofswitch.Event) bool {
	if s.total >= maxSent {
		*s = sentEvents{seed: s.seed, recent: map[uint64]int{}, older: map[uint64]int{}}
		return false
	}
	s.recent[maphash.Comparable(s.seed, e)]++
	s.total++
	return true
}

// take returns whether the event was expected, and expects it once less.
func (s *sentEvents) take(e ofswitch.Event) bool {
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

// verified forgets what has been expected for long: the switch was read, and what it has not reported until now it will
// not report (it reports no change that changes nothing).
func (s *sentEvents) verified(now time.Time) {
	if now.Sub(s.since) < sentMemory {
		return
	}
	for _, n := range s.older {
		s.total -= n
	}
	s.older, s.recent, s.since = s.recent, map[uint64]int{}, now // a cleared map keeps the size that the first bundle gave it
}
