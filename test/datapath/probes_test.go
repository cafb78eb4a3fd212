//go:build integration

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// agentProbes are the probes of the agent's container in the manifest.
func agentProbes(t *testing.T) (live, ready *corev1.Probe) {
	t.Helper()
	repo, err := testenv.Repository()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(repo, "deploy", "weft.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range bytes.Split(data, []byte("\n---\n")) {
		var ds appsv1.DaemonSet
		if yaml.Unmarshal(doc, &ds) == nil && ds.Kind == "DaemonSet" {
			c := ds.Spec.Template.Spec.Containers[0]
			return c.LivenessProbe, c.ReadinessProbe
		}
	}
	t.Fatal("deploy/weft.yaml has no DaemonSet")
	return nil, nil
}

// TestProbesWithoutPort: the manifest's probes pass while another process of the node has the port of healthAddr and
// answers there that nothing works, of an agent that starts meanwhile as well. They fail, in time, when the agent is
// stopped, whatever the other process says.
func TestProbesWithoutPort(t *testing.T) {
	const ns = "probes"
	w := upWalled(t, "probes", map[string]string{"f.yaml": walledPod(ns, "a", "node1", "app: a")})
	live, ready := agentProbes(t)
	// the lab itself asks the agents first, and waits for one that was stopped
	enter, err := w.node(t, "node1").Sandbox.Enter()
	if err != nil {
		t.Fatal(err)
	}
	probe := func(p *corev1.Probe) error {
		if p.Exec == nil {
			return fmt.Errorf("the probe is %+v, want a command", p.ProbeHandler)
		}
		args := slices.Concat(enter, []string{labtest.Program(t, filepath.Base(p.Exec.Command[0]))}, p.Exec.Command[1:])
		begin := time.Now()
		_, err := labtest.Run(exec.Command(args[0], args[1:]...))
		if took, limit := time.Since(begin), testenv.Patience(time.Duration(p.TimeoutSeconds)*time.Second); took > limit {
			t.Errorf("%v took %v, the kubelet gives it %v", args, took, limit)
		}
		return err
	}
	both := func() error { return errors.Join(probe(live), probe(ready)) }
	if err := both(); err != nil {
		t.Fatal(err)
	}
	// The other process takes the port while no agent runs.
	before := w.node(t, "node1").Agent
	for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		if err := before.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	host := w.host(t, "node1")
	var other net.Listener
	testenv.Eventually(t, 10*time.Second, func() error {
		return host.ns.Do(func() (err error) {
			other, err = net.Listen("tcp", "127.0.0.1:9470")
			return err
		})
	})
	t.Cleanup(func() { other.Close() })
	go func() {
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.0 500 no\r\n\r\n"))
			c.Close()
		}
	}()
	testenv.Eventually(t, 20*time.Second, func() error {
		s, err := agentOf(w.files["node1"]).Status(t.Context())
		if err != nil {
			return err
		}
		if !s.Ready || len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], "health address: ") ||
			!strings.Contains(s.Problems[0], "address already in use") {
			return fmt.Errorf("ready %t, problems %q; want the port in use", s.Ready, s.Problems)
		}
		return nil
	})
	agent := w.node(t, "node1").Agent
	for range 3 {
		if err := both(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
	}
	if now := w.node(t, "node1").Agent; now != agent {
		t.Errorf("the agent is process %v, was %v", now, agent)
	}
	if err := agent.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for what, p := range map[string]*corev1.Probe{"live": live, "ready": ready} {
		var exit *exec.ExitError
		if err := probe(p); !errors.As(err, &exit) || !strings.Contains(err.Error(), "did not answer in time") {
			t.Errorf("the probe of %s, of an agent that was stopped: %v", what, err)
		}
	}
	if err := agent.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := both(); err != nil {
		t.Error(err)
	}
}
