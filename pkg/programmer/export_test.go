package programmer

import "github.com/weft-cni/weft/pkg/model"

// Queued is how many changes the loop has not taken yet.
func (l *Loop) Queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending.Len()
}

// Quarantined says why an owner's flows are not in the switch; nil when they are.
func (l *Loop) Quarantined(o model.Owner) error {
	_, quarantined := l.Installed()
	return quarantined[o]
}

// Waiting is how many callers the loop holds.
func (l *Loop) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting)
}

// OwnEvents is how many events of its own the loop remembers.
func (l *Loop) OwnEvents() int { return l.sent.count() }
