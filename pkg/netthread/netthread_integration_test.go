//go:build integration

package netthread_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netthread"
)

func namespace(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Error(err)
	}
	return name
}

// TestDo: fn runs in the other namespace; later code, on any thread, does not; errors are returned.
func TestDo(t *testing.T) {
	here := namespace(t)
	unshare := func() error { return unix.Unshare(unix.CLONE_NEWNET) }
	failed := errors.New("failed")
	for range 50 {
		if err := netthread.Do(unshare, func() error {
			if namespace(t) == here {
				t.Error("the function runs in our own namespace")
			}
			return failed
		}); !errors.Is(err, failed) {
			t.Errorf("the function's error became %v", err)
		}
		back := make(chan string)
		go func() { back <- namespace(t) }()
		if got := <-back; got != here {
			t.Fatalf("a goroutine runs in %s, want %s", got, here)
		}
	}
	if err := netthread.Do(func() error { return failed }, func() error {
		t.Error("the function runs although its namespace could not be entered")
		return nil
	}); !errors.Is(err, failed) {
		t.Errorf("enter's error became %v", err)
	}
}
