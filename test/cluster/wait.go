package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

const (
	// readyTimeout bounds how long a program may take to answer after it was started, on a busy machine.
	readyTimeout = 2 * time.Minute
	pollInterval = 100 * time.Millisecond
	// logTail is how many lines of a log are shown when its program fails.
	logTail = 15
)

// errHopeless marks a condition that waiting does not change.
var errHopeless = errors.New("waiting longer would not help")

// poll asks until condition succeeds, or fails with errHopeless. The error after the timeout is condition's last one.
func poll(ctx context.Context, timeout time.Duration, condition func(context.Context) error) error {
	timeout = testenv.Patience(timeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var last error
	for {
		asked := time.Now()
		err := condition(ctx)
		if err == nil || errors.Is(err, errHopeless) {
			return err
		}
		// The error of an attempt that the deadline cut short says less than the one before it.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (gave up after %s)", last, timeout)
		// Where asking is slow, it would otherwise keep the machine from getting on with what is asked about.
		case <-time.After(max(pollInterval, time.Since(asked))):
		}
	}
}

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
	err := poll(ctx, readyTimeout, ready)
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
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
