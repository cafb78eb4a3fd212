//go:build integration

package datapath

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// manifests put two pods on every node: a-NODE and b-NODE.
func manifests() string {
	var text strings.Builder
	for _, name := range []string{"a", "b"} {
		fmt.Fprintf(&text, `---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      containers:
        - name: c
          ports: [{containerPort: 7000}, {containerPort: 7000, protocol: UDP}, {containerPort: 7000, protocol: SCTP}]
`, name)
	}
	return text.String()
}

// mesh is a lab with two pods on each of three nodes.
type mesh struct {
	*labtest.Lab
	pods  map[string]lab.PodStatus
	nodes map[string]lab.NodeStatus
	mtu   int
	// manifests is the file that the lab follows.
	manifests string
}

func up(t *testing.T, family lab.Family, tunnel model.Encapsulation, more ...string) mesh {
	t.Helper()
	file := filepath.Join(labtest.Write(t, map[string]string{"mesh.yaml": manifests()}), "mesh.yaml")
	l := labtest.Up(t, "path", append([]string{"-f", file, "--nodes=3", "--ip-family=" + string(family),
		"--tunnel=" + string(tunnel)}, more...)...)
	m := mesh{Lab: l, pods: map[string]lab.PodStatus{}, nodes: map[string]lab.NodeStatus{}, manifests: file}
	s := l.Status()
	for _, p := range s.Pods {
		m.pods[p.Name] = p
	}
	for _, n := range s.Nodes {
		m.nodes[n.Name] = n
	}
	if len(m.pods) != 6 || len(m.nodes) != 3 {
		t.Fatalf("%d pods on %d nodes, want 6 on 3", len(m.pods), len(m.nodes))
	}
	m.mtu = 1500 - tunnel.Overhead(m.nodes["node1"].Addrs[0])
	return m
}

// status is what a node's agent says of the node. Beside other work, an answer may come too late.
func (m mesh) status(t *testing.T, node string) (s report.Status) {
	t.Helper()
	testenv.Eventually(t, 30*time.Second, func() (err error) {
		s, err = agentOf(m.nodes[node].Files).Status(t.Context())
		return err
	})
	return s
}

func (m mesh) drops(t *testing.T, node string) map[string]uint64 {
	t.Helper()
	drops := map[string]uint64{}
	for _, d := range m.status(t, node).Drops {
		drops[string(d.Reason)] = d.Packets
	}
	return drops
}

// session is a long-running command of the probe.
type session struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

// start starts a command of the probe and returns when it is at work.
func (m mesh) start(t *testing.T, where string, args ...string) *session {
	t.Helper()
	s := &session{cmd: m.Exec(where, append([]string{labtest.Program(t, "probe")}, args...)...)}
	in, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.in, s.out = in, bufio.NewReader(out)
	var stderr strings.Builder
	s.cmd.Stderr = &stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := s.out.ReadString('\n'); err != nil || strings.TrimSpace(line) != wire.Ready {
		_ = s.cmd.Wait()
		t.Fatalf("probe %v in %s says %q (%v): %s", args, where, line, err, stderr.String())
	}
	return s
}

// stop ends the command and reads its reply.
func (s *session) stop(t *testing.T, reply any) {
	t.Helper()
	if err := s.in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(s.out).Decode(reply); err != nil {
		t.Fatalf("read the reply of %v: %v", s.cmd.Args, err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// of picks the address of a family.
func of(addrs []netip.Addr, v4 bool) netip.Addr {
	for _, a := range addrs {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

func familyName(v4 bool) string {
	if v4 {
		return "IPv4"
	}
	return "IPv6"
}
