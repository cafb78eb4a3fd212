//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// pollInterval is the time between two looks at something that has to become true.
const pollInterval = 200 * time.Millisecond

// eventually runs check until it succeeds. When the time is up it returns what was still wrong.
func eventually(ctx context.Context, atMost time.Duration, check func(context.Context) error) error {
	atMost = testenv.Patience(atMost)
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // the error of a check that ran out of time says less than the one before it
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", atMost, last)
		case <-time.After(pollInterval):
		}
	}
}

// must is eventually inside a test.
func must(t *testing.T, atMost time.Duration, check func(context.Context) error) {
	t.Helper()
	if err := eventually(t.Context(), atMost, check); err != nil {
		t.Fatal(err)
	}
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
