package testenv

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// ErrHopeless marks a condition's error that waiting does not change: Poll returns it at once.
var ErrHopeless = errors.New("waiting longer would not help")

// pause is the time between two attempts of Poll, unless an attempt itself takes longer.
const pause = 10 * time.Millisecond

// Poll asks until the condition succeeds, for as long as the limit (see Patience) and the context allow. The error is
// the condition's last one, without that of an attempt which the end of the time cut short, unless it was the only one.
func Poll(ctx context.Context, limit time.Duration, condition func(context.Context) error) error {
	limit = Patience(limit)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		asked := time.Now()
		err := condition(ctx)
		if err == nil || errors.Is(err, ErrHopeless) {
			return err
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (gave up after %s)", last, limit)
		// Where asking is slow, it would otherwise keep the machine from getting on with what is asked about.
		case <-time.After(max(pause, time.Since(asked))):
		}
	}
}

// Eventually fails the test unless the condition succeeds within the limit (see Poll).
func Eventually(t testing.TB, limit time.Duration, condition func() error) {
	t.Helper()
	if err := Poll(t.Context(), limit, func(context.Context) error { return condition() }); err != nil {
		t.Fatal(err)
	}
}

// Until is Eventually for a condition that holds or not. A minute is its limit: what takes milliseconds on an idle
// machine takes seconds beside a build.
func Until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	Eventually(t, time.Minute, func() error {
		if !condition() {
			return errors.New("not so: " + what)
		}
		return nil
	})
}
