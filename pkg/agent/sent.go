package agent

import (
	"hash/maphash"

	"github.com/weft-cni/weft/pkg/ofswitch"
)

// maxSent bounds the events that sentEvents remembers: a larger bundle is verified by reading the switch instead.
const maxSent = 4096

// sentEvents are the events that the loop's own bundles cause and that the switch has not reported yet. Each counts
// once: an event that comes again is another program's. It keeps hashes, because the text of a group with many
// endpoints has tens of kilobytes; a collision would hide a difference until the next audit. It belongs to the loop's
// goroutine.
type sentEvents struct {
	seed   maphash.Seed
	counts map[uint64]int
	total  int
}

func newSentEvents() *sentEvents {
	return &sentEvents{seed: maphash.MakeSeed(), counts: map[uint64]int{}}
}

// add remembers an event to come. When there are too many it forgets all of them and returns false: the switch has to
// be read to tell own changes from others'.
func (s *sentEvents) add(e ofswitch.Event) bool {
	if s.total >= maxSent {
		s.reset()
		return false
	}
	s.counts[maphash.Comparable(s.seed, e)]++
	s.total++
	return true
}

// take returns whether the event was expected, and expects it once less.
func (s *sentEvents) take(e ofswitch.Event) bool {
	h := maphash.Comparable(s.seed, e)
	switch s.counts[h] {
	case 0:
		return false
	case 1:
		delete(s.counts, h)
	default:
		s.counts[h]--
	}
	s.total--
	return true
}

func (s *sentEvents) reset() {
	s.counts, s.total = map[uint64]int{}, 0 // a cleared map keeps the size that the first bundle gave it
}
