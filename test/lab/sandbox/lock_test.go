package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// lockVariable makes TestLockHolder the process that holds a lock for TestSeize.
const lockVariable = "WEFT_TEST_HOLD_LOCK"

func TestLock(t *testing.T) {
	l := LockFile{Path: filepath.Join(t.TempDir(), "state", "lock"), DirMode: 0o700}
	unlock, err := l.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Lock(); !errors.Is(err, syscall.EWOULDBLOCK) || !strings.Contains(err.Error(), l.Path) {
		t.Errorf("second lock: %v; want that it is taken", err)
	}
	unlock()
	again, err := l.Lock()
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// TestLockOfDeadHolder waits for a lock whose holder is dead: a child that it was starting shares the holder's open
// files until it executes its program, and outlives it for that long.
func TestLockOfDeadHolder(t *testing.T) {
	l := LockFile{Path: filepath.Join(t.TempDir(), "lock"), DirMode: 0o700}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	inherited, err := l.try()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.Path, fmt.Appendf(nil, `{"pid":%d,"start":1}`, dead.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, known := l.holder(); !known {
		t.Fatal("the file does not name the holder")
	}
	time.AfterFunc(200*time.Millisecond, inherited)
	unlock, err := l.Lock()
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestLockHolder(t *testing.T) {
	path := os.Getenv(lockVariable)
	if path == "" {
		return // it is TestSeize's other process
	}
	if _, err := (LockFile{Path: path, DirMode: 0o700}).Lock(); err != nil {
		t.Fatal(err)
	}
	<-t.Context().Done() // until it is killed, or the test times out
}

func TestSeize(t *testing.T) {
	l := LockFile{Path: filepath.Join(t.TempDir(), "lock"), DirMode: 0o700}
	holder := exec.Command(os.Args[0], "-test.run=^TestLockHolder$", "-test.timeout=1m")
	holder.Env = append(os.Environ(), lockVariable+"="+l.Path)
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- holder.Wait() }()
	testenv.Until(t, "the other process takes the lock", func() bool {
		// It writes down whose the lock is when it has it.
		data, err := os.ReadFile(l.Path)
		return err == nil && len(data) > 0
	})
	if _, err := l.Lock(); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("lock that another process has: %v; want that it is taken", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	unlock, err := l.Seize(ctx)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := <-ended; err == nil {
		t.Error("the holder ended by itself; want that it was killed")
	}
}
