package main

import (
	"sync"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// maxLostListed bounds the lost sequence numbers that are named.
const maxLostListed = 100

// tally keeps what was sent and answered in one series. Sender and receiver are two goroutines, hence the lock.
type tally struct {
	mu       sync.Mutex
	sentAt   []time.Time
	answered []bool
	steady   wire.Steady
	last     time.Time
}

// sending counts the next request and returns its sequence number. It is called before the request leaves, so that no
// answer can come too early.
func (t *tally) sending(now time.Time) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last.IsZero() {
		t.last = now
	}
	t.sentAt = append(t.sentAt, now)
	t.answered = append(t.answered, false)
	t.steady.Sent++
	return t.steady.Sent - 1
}

// failed counts a request that the kernel refused; it stays unanswered, so it is lost as well.
func (t *tally) failed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.steady.SendErrors++
	if t.steady.FirstError == "" {
		t.steady.FirstError = err.Error()
	}
}

// got counts an answer; a second answer to the same request does not count.
func (t *tally) got(seq int, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if seq < 0 || seq >= len(t.sentAt) || t.answered[seq] {
		return
	}
	t.answered[seq] = true
	t.steady.Received++
	t.steady.MaxRTT = max(t.steady.MaxRTT, now.Sub(t.sentAt[seq]))
	t.steady.LongestGap = max(t.steady.LongestGap, now.Sub(t.last))
	t.last = now
}

// sent is how many requests were made so far.
func (t *tally) sent() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.steady.Sent
}

// complete tells whether nothing is outstanding.
func (t *tally) complete() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.steady.Received == t.steady.Sent
}

// result closes the series. An answer that never came leaves a gap that lasts until the end.
func (t *tally) result(now time.Time) wire.Steady {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.steady
	for seq, ok := range t.answered {
		if !ok && len(s.Lost) < maxLostListed {
			s.Lost = append(s.Lost, seq)
		}
	}
	if n := len(t.answered); n > 0 && !t.answered[n-1] {
		s.LongestGap = max(s.LongestGap, now.Sub(t.last))
	}
	return s
}
