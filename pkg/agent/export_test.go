package agent

// Queued is how many changes the loop has not taken yet.
func (l *Loop) Queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// OwnEvents is how many events of its own the loop remembers. The loop must be idle.
func (l *Loop) OwnEvents() int { return l.sent.total }
