package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

const (
	// readyTimeout bounds how long a program may take to answer after it was started, on a busy machine.
	readyTimeout = 2 * time.Minute
	// logTail is how many lines of a log are shown when its program fails.
	logTail = 15
)

// waitReady waits until a program that was just started answers, and gives up at once when it ends.
func waitReady(ctx context.Context, running sandbox.Running, what, log string,
	ready func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := errors.New("it ended")
	go func() {
		select {
		case <-running.Exited:
			cancel(ended)
		case <-ctx.Done():
		}
	}()
	err := testenv.Poll(ctx, readyTimeout, ready)
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(ctx), ended) {
		err = ended
	}
	return fmt.Errorf("start %s: %w; the end of %s:\n%s", what, err, log, tail(log))
}

func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return "    " + strings.Join(lines[max(0, len(lines)-logTail):], "\n    ")
}

// kubectl runs kubectl as the administrator and returns its standard output.
func kubectl(ctx context.Context, c state.Cluster, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.Kubectl(), append([]string{"--kubeconfig=" + c.Kubeconfig()}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // one that waits for a server would outlive `down`
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
