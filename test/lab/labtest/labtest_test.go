package labtest_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// recorder is a test that only notes that it failed.
type recorder struct {
	testing.TB
	failed string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatal(args ...any) {
	r.failed = fmt.Sprint(args...)
	runtime.Goexit()
}

// Whatever waits with Eventually believes that it fails when the condition never holds, in time, and says what was
// still wrong.
func TestEventually(t *testing.T) {
	calls := 0
	if failed := outcome(t, func(r testing.TB) {
		testenv.Eventually(r, time.Minute, func() error {
			calls++
			if calls < 3 {
				return errors.New("not yet")
			}
			return nil
		})
	}); failed != "" || calls != 3 {
		t.Errorf("of a condition that holds the third time: %q after %d looks", failed, calls)
	}
	begin := time.Now()
	failed := outcome(t, func(r testing.TB) {
		testenv.Eventually(r, 200*time.Millisecond, func() error { return errors.New("still shut") })
	})
	if took := time.Since(begin); !strings.Contains(failed, "still shut") || took > 30*time.Second {
		t.Errorf("of a condition that never holds: %q after %s", failed, took)
	}
}

// outcome runs a part of a test and returns why it failed.
func outcome(t *testing.T, part func(testing.TB)) string {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		part(r)
	}()
	<-done
	return r.failed
}

func TestRun(t *testing.T) {
	out, err := labtest.Run(exec.Command("sh", "-c", "echo out; echo why >&2; exit 3"))
	var exit *exec.ExitError
	if out != "out\n" || !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "why") {
		t.Errorf("%q, %v: want the output, the status, and what was said of it", out, err)
	}
}

func TestWrite(t *testing.T) {
	dir := labtest.Write(t, map[string]string{"a.yaml": "one"})
	if got, err := os.ReadFile(filepath.Join(dir, "a.yaml")); err != nil || string(got) != "one" {
		t.Errorf("%q, %v", got, err)
	}
}
