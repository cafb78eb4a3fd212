package agent

// Queued is how many changes the loop has not taken yet.
func (l *Loop) Queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending.Len() + len(l.queue)
}

// Waiting is how many callers the loop holds.
func (l *Loop) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) + len(l.waiting)
}

// OwnEvents is how many events of its own the loop remembers.
func (l *Loop) OwnEvents() int { return l.sent.count() }
