package agent

import (
	"testing"
	"time"
)

// Eventually waits until a condition holds.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// Queued is how many changes the loop has not taken yet.
func (l *Loop) Queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// Waiting is how many requests wait for the switch.
func (l *Loop) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting)
}

// OwnEvents is how many events of its own the loop remembers. The loop must be idle.
func (l *Loop) OwnEvents() int { return l.sent.total }
