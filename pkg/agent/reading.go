package agent

import (
	"context"
	"sync"
	"time"
)

// readingAge is for how long metrics are served from one reading of the switch. A reading takes a share of
// ovs-vswitchd's main thread, and healthAddr answers every process of the node.
const readingAge = 10 * time.Second

// readingTimeout bounds one reading.
const readingTimeout = 10 * time.Second

// reading keeps what was read for readingAge, errors, too. Calls that come while one reads share its result. Any
// goroutine may use it.
type reading[T any] struct {
	read func(context.Context) (T, error)

	mu    sync.Mutex // also while it reads
	at    time.Time
	value T
	err   error
}

func newReading[T any](read func(context.Context) (T, error)) *reading[T] {
	return &reading[T]{read: read}
}

// get returns what was read at most readingAge ago.
func (r *reading[T]) get() (T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at.IsZero() || time.Since(r.at) >= readingAge {
		ctx, cancel := context.WithTimeout(context.Background(), readingTimeout)
		defer cancel()
		r.value, r.err = r.read(ctx)
		r.at = time.Now()
	}
	return r.value, r.err
}
