package testenv

import (
	"testing"
	"time"
)

// Eventually waits until the condition holds, and fails the test when it does not within ten seconds (see Patience).
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	limit := Patience(10 * time.Second)
	for deadline := time.Now().Add(limit); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}
