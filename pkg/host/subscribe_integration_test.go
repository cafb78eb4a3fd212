//go:build integration

package host

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openFiles counts the open files of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files) - 1 // without the one that reads
}

// TestSubscribeLeavesNothing: when one subscription fails, the sockets and readers of the others end.
func TestSubscribeLeavesNothing(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	settled := func(files, goroutines int) bool {
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if openFiles(t) <= files && runtime.NumGoroutine() <= goroutines {
				return true
			}
		}
		return false
	}
	if sub, err := subscribe(); err != nil { // opens files that stay open
		t.Fatal(err)
	} else {
		_ = sub.end()
	}
	time.Sleep(100 * time.Millisecond)
	files, goroutines, failed := openFiles(t), runtime.NumGoroutine(), 0
	for room := range 12 {
		limit := before
		limit.Cur = uint64(files + room)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		sub, err := subscribe()
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			_ = sub.end()
		} else {
			failed++
		}
		if !settled(files, goroutines) {
			t.Fatalf("with room for %d files (%v): %d files and %d goroutines, before %d and %d", room, err, openFiles(t),
				runtime.NumGoroutine(), files, goroutines)
		}
	}
	if failed < 5 || failed == 12 {
		t.Errorf("%d of 12 calls failed: this test tests nothing", failed)
	}
}
