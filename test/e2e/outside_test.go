//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// outside is the host beyond the nodes: on their network, but no part of the cluster and without routes to pods.
type outside struct{}

func (outside) String() string { return state.OutsideName }

// command is the probe to be run outside.
func (outside) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	argv, err := env.record.Outside.Sandbox.Enter()
	if err != nil {
		return nil, err
	}
	argv = append(append(argv, env.image.Binary), args...)
	return exec.CommandContext(ctx, argv[0], argv[1:]...), nil
}

// probe runs the probe outside with a JSON request, and reads its JSON reply.
func (o outside) probe(ctx context.Context, request, reply any, args ...string) error {
	cmd, err := o.command(ctx, args...)
	if err != nil {
		return err
	}
	return runProbe(cmd, "outside: probe "+strings.Join(args, " "), request, reply)
}

// runProbe runs a probe outside pods with a JSON request, and reads its JSON reply.
func runProbe(cmd *exec.Cmd, what string, request, reply any) error {
	data, err := json.Marshal(request)
	if err != nil {
		return err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(data), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", what, err, stderr.String())
	}
	return decodeReply(stdout.String(), reply)
}

func (o outside) dial(ctx context.Context, request wire.DialRequest) (wire.DialReply, error) {
	var reply wire.DialReply
	err := o.probe(ctx, request, &reply, "dial")
	return reply, err
}

// start runs a long-running probe command outside, as pod.start does in a pod.
func (o outside) start(t *testing.T, args ...string) *session {
	t.Helper()
	return startSession(t, "outside: probe "+strings.Join(args, " "), func(ctx context.Context, in io.Reader, out,
		stderr io.Writer) error {
		cmd, err := o.command(ctx, args...)
		if err != nil {
			return err
		}
		stdin, err := cmd.StdinPipe() // Run would wait for the end of any other reader
		if err != nil {
			return err
		}
		cmd.Stdout, cmd.Stderr = out, stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		_, err = io.Copy(stdin, in)
		return errors.Join(err, stdin.Close(), cmd.Wait())
	})
}

// serveOutside runs the probe's servers outside until the test ends.
func serveOutside(t *testing.T) {
	t.Helper()
	var output bytes.Buffer
	cmd, err := outside{}.command(context.Background(), "serve", fmt.Sprintf("--echo=%d", echoPort),
		fmt.Sprintf("--http=%d", webPort))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatalf("serve outside: %v", err)
	}
	t.Cleanup(func() {
		// nsenter executes the probe in its own place, so this is the probe's process.
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("stop the server outside: %v", err)
		}
		_ = cmd.Wait() // it was killed, which Wait calls an error
	})
	own := target("itself", wire.TCP, env.record.Outside.Addrs[0], echoPort, smallPayload)
	must(t, 10*time.Second, func(ctx context.Context) error {
		reply, err := outside{}.dial(ctx, wire.DialRequest{Targets: []wire.Target{own}})
		if err == nil && !reply.Results[0].OK() {
			err = fmt.Errorf("the server outside does not answer: %s; it says %s", reply.Results[0].Error, output.String())
		}
		return err
	})
}
