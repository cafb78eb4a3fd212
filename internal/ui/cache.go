package ui

import (
	"sync"
	"time"
)

// kept is an answer with the time at which it was asked for. The zero value has none.
type kept[T any] struct {
	mu    sync.Mutex
	at    time.Time
	value T
}

// get returns the answer if it is not older than maxAge, and asks otherwise. Callers that come meanwhile wait for the
// same answer. An error is not kept.
func (k *kept[T]) get(maxAge time.Duration, ask func() (T, error)) (T, time.Time, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); k.at.IsZero() || now.Sub(k.at) > maxAge {
		value, err := ask()
		if err != nil {
			return value, now, err
		}
		k.value, k.at = value, now
	}
	return k.value, k.at, nil
}
