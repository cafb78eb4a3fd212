//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/e2e/internal/probeimage"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// sessionTimeout bounds how long a probe may take to be at work, and to end.
var sessionTimeout = testenv.Patience(30 * time.Second)

// execIn runs a command in a container as `kubectl exec` does and returns its standard output.
func execIn(ctx context.Context, namespace, podName, container string, stdin io.Reader, args ...string) (string,
	error) {
	var stdout, stderr bytes.Buffer
	err := execStream(ctx, namespace, podName, container, args, remotecommand.StreamOptions{Stdin: stdin, Stdout: &stdout,
		Stderr: &stderr})
	if err != nil {
		return stdout.String(), fmt.Errorf("exec in %s/%s: %s: %w: %s%s", namespace, podName, strings.Join(args, " "), err,
			stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

func execStream(ctx context.Context, namespace, podName, container string, args []string,
	options remotecommand.StreamOptions) error {
	request := env.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(podName).SubResource(
		"exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container, Command: args, Stdin: options.Stdin != nil, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(env.config, "GET", request.URL().String())
	if err != nil {
		return err
	}
	return executor.StreamWithContext(ctx, options)
}

// probe runs the probe in a pod, with a JSON request on its standard input unless that is nil, and reads its JSON
// reply.
func (p *pod) probe(ctx context.Context, request, reply any, args ...string) error {
	var stdin io.Reader
	if request != nil {
		data, err := json.Marshal(request)
		if err != nil {
			return err
		}
		stdin = bytes.NewReader(data)
	}
	out, err := execIn(ctx, env.namespace, p.name, "probe", stdin, append([]string{probeimage.Path}, args...)...)
	if err != nil {
		return err
	}
	return decodeReply(out, reply)
}

func decodeReply(out string, reply any) error {
	if err := json.Unmarshal([]byte(out), reply); err != nil {
		return fmt.Errorf("the probe's reply %q: %w", out, err)
	}
	return nil
}

// session is a probe command that runs until it is told to stop.
type session struct {
	name   string
	stdin  *io.PipeWriter
	lines  chan string // standard output after the line that says it is ready
	result chan error
	stderr bytes.Buffer
	cancel context.CancelFunc
}

// start runs a long-running probe command and returns when it is at work. The test's end stops it.
func (p *pod) start(t *testing.T, args ...string) *session {
	t.Helper()
	return startSession(t, p.name+": probe "+strings.Join(args, " "), func(ctx context.Context, in io.Reader, out,
		stderr io.Writer) error {
		return execStream(ctx, env.namespace, p.name, "probe", append([]string{probeimage.Path}, args...),
			remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: stderr})
	})
}

func startSession(t *testing.T, name string, run func(ctx context.Context, in io.Reader, out,
	stderr io.Writer) error) *session {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background()) // outlives t.Context, so that stop in a Cleanup works
	in, stdin := io.Pipe()
	out, stdout := io.Pipe()
	s := &session{name: name, stdin: stdin, cancel: cancel, lines: make(chan string, 16), result: make(chan error, 1)}
	go func() {
		err := run(ctx, in, stdout, &s.stderr)
		stdout.Close()
		s.result <- err
	}()
	go func() {
		defer close(s.lines)
		scanner := bufio.NewScanner(out)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			s.lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		stdin.Close()
		cancel()
	})
	select {
	case line := <-s.lines:
		if line == wire.Ready {
			return s
		}
		t.Fatalf("%s: printed %q, want %q: %v", s.name, line, wire.Ready, s.ended())
	case <-time.After(sessionTimeout):
		t.Fatalf("%s: not ready within %s", s.name, sessionTimeout)
	}
	return nil
}

// stop ends the command and reads its reply.
func (s *session) stop(t *testing.T, reply any) {
	t.Helper()
	s.stdin.Close()
	select {
	case line, ok := <-s.lines:
		if !ok {
			t.Fatalf("%s: ended without a reply: %v", s.name, s.ended())
		}
		if err := decodeReply(line, reply); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
	case <-time.After(sessionTimeout):
		t.Fatalf("%s: does not stop within %s", s.name, sessionTimeout)
	}
	if err := s.ended(); err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
}

// ended waits for the command's end and returns its error.
func (s *session) ended() error {
	select {
	case err := <-s.result:
		if err != nil {
			return fmt.Errorf("%w: %s", err, s.stderr.String())
		}
		return nil
	case <-time.After(sessionTimeout):
		return fmt.Errorf("still running after %s", sessionTimeout)
	}
}
