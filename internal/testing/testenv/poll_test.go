package testenv

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestPoll(t *testing.T) {
	reason := errors.New("the reason")
	for name, c := range map[string]struct {
		answers []error // the last one again and again
		limit   time.Duration
		want    error
		tries   int // 0: not counted
	}{
		"succeeds":        {[]error{reason, reason, nil}, time.Minute, nil, 3},
		"the time is up":  {[]error{reason}, time.Millisecond, reason, 0},
		"it has no point": {[]error{ErrHopeless}, time.Minute, ErrHopeless, 1},
	} {
		t.Run(name, func(t *testing.T) {
			tries := 0
			err := Poll(t.Context(), c.limit, func(context.Context) error {
				tries++
				return c.answers[min(tries, len(c.answers))-1]
			})
			if !errors.Is(err, c.want) || c.tries != 0 && tries != c.tries {
				t.Errorf("%v after %d tries, want %v after %d", err, tries, c.want, c.tries)
			}
		})
	}
	// What an attempt says that the deadline cut short is not the reason.
	err := Poll(t.Context(), 50*time.Millisecond, func(ctx context.Context) error {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("an attempt has no deadline")
		}
		defer func() { reason = context.DeadlineExceeded }()
		if errors.Is(reason, context.DeadlineExceeded) {
			<-ctx.Done()
		}
		return reason
	})
	if errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the reason of the first attempt", err)
	}
}
