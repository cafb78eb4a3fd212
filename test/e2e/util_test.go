//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// must fails the test unless check succeeds within the time.
func must(t *testing.T, atMost time.Duration, check func(context.Context) error) {
	t.Helper()
	if err := testenv.Poll(t.Context(), atMost, check); err != nil {
		t.Fatal(err)
	}
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
