//go:build e2e

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/image"
	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// These tests start clusters of their own and look for what they leave with no help from the code that removes it: by
// an environment variable that every process inherits, by name in the machine's links, mounts and cgroups, and by the
// namespaces that were seen in use.

const (
	cleanName = "cleanup"
	marker    = "WEFT_CLEANUP_TEST=1"
)

type testCluster struct {
	tool string // the built program
	dir  string
	// namespaces are those that the cluster's processes were in just before it was removed, and running all processes that
	// the machine had then. The kernel soon gives the numbers of namespaces that are gone to others, so only a process
	// that is older can be in one of them still.
	namespaces map[string]bool
	running    []sandbox.Process
}

func newTestCluster(t *testing.T) *testCluster {
	t.Helper()
	tmp := t.TempDir()
	c := &testCluster{tool: filepath.Join(tmp, "cluster"), dir: filepath.Join(tmp, "state")}
	if out, err := exec.Command("go", "build", "-o", c.tool, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if left := c.leftovers(t); len(left) > 0 {
		t.Fatalf("the machine is not clean to begin with:\n%s", strings.Join(left, "\n"))
	}
	t.Cleanup(func() {
		if out, err := c.command("down").CombinedOutput(); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	})
	return c
}

func (c *testCluster) command(verb string, args ...string) *exec.Cmd {
	cmd := exec.Command(c.tool, append([]string{verb, "--dir", c.dir, "--name", cleanName}, args...)...)
	cmd.Env = append(os.Environ(), marker)
	return cmd
}

func (c *testCluster) up() *exec.Cmd {
	return c.command("up", "--no-weft", "--nodes", "2", "--ip-family", "dual")
}

func (c *testCluster) run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// down removes the cluster and demands that nothing of it is left.
func (c *testCluster) down(t *testing.T) {
	t.Helper()
	c.takeNote(t)
	c.run(t, c.command("down"))
	// Processes that were killed stay zombies until their new parent reaps them.
	var left []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if left = c.leftovers(t); len(left) == 0 {
			return
		}
	}
	t.Fatalf("after down:\n%s", strings.Join(left, "\n"))
}

// takeNote remembers what the machine runs, and the namespaces that the cluster's processes are in.
func (c *testCluster) takeNote(t *testing.T) {
	t.Helper()
	c.running, c.namespaces = nil, map[string]bool{}
	own := namespacesOf(os.Getpid())
	for pid := range c.processes(t) {
		for ns := range namespacesOf(pid) {
			if !own[ns] {
				c.namespaces[ns] = true
			}
		}
	}
	for _, pid := range allPIDs(t) {
		if p, err := sandbox.FindProcess(pid); err == nil {
			c.running = append(c.running, p)
		}
	}
}

// processes returns the cluster's processes.
func (c *testCluster) processes(t *testing.T) map[int]string {
	t.Helper()
	found := map[int]string{}
	for _, pid := range allPIDs(t) {
		environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		cgroup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if !bytes.Contains(environ, []byte(marker+"\x00")) && !bytes.Contains(cgroup, []byte("/"+cleanName+"/")) {
			continue
		}
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(cmdline) == 0 {
			continue // ended, or a zombie
		}
		found[pid] = string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))
	}
	return found
}

// leftovers lists everything on the machine that is the cluster's.
func (c *testCluster) leftovers(t *testing.T) []string {
	t.Helper()
	var left []string
	for pid, cmdline := range c.processes(t) {
		left = append(left, fmt.Sprintf("process %d: %s", pid, cmdline))
	}
	for _, p := range c.running {
		for ns := range namespacesOf(p.PID) {
			if c.namespaces[ns] && p.Alive() {
				left = append(left, fmt.Sprintf("namespace %s, in use by process %d", ns, p.PID))
			}
		}
	}
	for _, source := range [][]string{{"link", "ip", "-oneline", "link"}, {"mount", "cat", "/proc/self/mountinfo"},
		{"cgroup", "find", "/sys/fs/cgroup", "-type", "d"}, {"address", "ip", "-oneline", "address"}, {"route", "ip",
			"route"}} {
		out, err := exec.Command(source[1], source[2:]...).Output()
		if err != nil && source[0] != "cgroup" { // others' cgroups may vanish while find looks at them
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			// Names are cut where an interface name ends; the state directory's name does not hold the cluster's.
			if strings.Contains(line, cleanName+"/") || strings.Contains(line, cleanName+"-host") ||
				strings.Contains(line, c.dir) ||
				strings.HasSuffix(strings.TrimSpace(line), "/"+cleanName) {
				left = append(left, source[0]+" "+strings.TrimSpace(line))
			}
		}
	}
	if _, err := os.Stat(c.dir); !errors.Is(err, fs.ErrNotExist) {
		left = append(left, "state directory "+c.dir)
	}
	return left
}

func allPIDs(t *testing.T) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

func namespacesOf(pid int) map[string]bool {
	found := map[string]bool{}
	for _, kind := range []string{"net", "mnt", "uts"} {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
			found[ns] = true
		}
	}
	return found
}

// startPod runs a pod on every node that needs no network of its own, so that there are containers, shims and mounts.
func (c *testCluster) startPod(t *testing.T) {
	t.Helper()
	record, err := state.Load(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range record.Nodes {
		pod := fmt.Sprintf(
			`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"on-%s"},"spec":{"nodeName":%q,"hostNetwork":true,
			"containers":[{"name":"c","image":%q,"imagePullPolicy":"IfNotPresent","securityContext":{"privileged":true},
			"command":["sh","-c","trap : TERM; mount -t tmpfs tmpfs /tmp; while :; do sleep 1000; done"],
			"volumeMounts":[{"name":"scratch","mountPath":"/scratch","mountPropagation":"Bidirectional"}]}],
			"volumes":[{"name":"scratch","emptyDir":{"medium":"Memory"}}]}}`, n.Name, n.Name, image.AgnhostTag)
		cmd := exec.Command(record.Kubectl(), "--kubeconfig", record.Kubeconfig(), "apply", "-f", "-")
		cmd.Stdin = strings.NewReader(pod)
		// The controller that creates the namespace's service account may come later than the API server.
		err := testenv.Poll(t.Context(), time.Minute, func(context.Context) error {
			try := exec.Command(cmd.Path, cmd.Args[1:]...)
			try.Stdin = strings.NewReader(pod)
			if out, err := try.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		c.run(t, exec.Command(record.Kubectl(), "--kubeconfig", record.Kubeconfig(), "wait", "--for=condition=Ready",
			"--timeout=90s", "pod/on-"+n.Name))
	}
}

// TestDownLeavesNothing removes a cluster that works.
func TestDownLeavesNothing(t *testing.T) {
	c := newTestCluster(t)
	c.run(t, c.up())
	c.startPod(t)
	if left := c.leftovers(t); len(left) < 50 {
		t.Fatalf("the search finds only %d things of a cluster that stands:\n%s", len(left), strings.Join(left, "\n"))
	}
	c.down(t)
	c.run(t, c.command("down")) // idempotent
}

// TestDownAfterDamage removes a cluster half of whose processes are dead and whose record is lost.
func TestDownAfterDamage(t *testing.T) {
	c := newTestCluster(t)
	c.run(t, c.up())
	c.startPod(t)
	for i, pid := range slices.Sorted(maps.Keys(c.processes(t))) {
		if process, err := os.FindProcess(pid); err == nil && i%2 == 0 {
			_ = process.Kill() // it may have ended with one that was killed before
		}
	}
	if err := os.Remove(filepath.Join(c.dir, "state.json")); err != nil {
		t.Fatal(err)
	}
	c.down(t)
}

// TestCrash ends `up` without warning at several moments: `down` leaves nothing, and `up` on top of the leftovers
// works.
func TestCrash(t *testing.T) {
	c := newTestCluster(t)
	for _, moment := range []string{"state.json", "logs/etcd.log", "logs/kube-apiserver.log", "images/agnhost.tar",
		"logs/node1-ovsdb-server.log",
		"logs/node2-containerd.log", "logs/node2-kubelet.log"} {
		t.Run("at "+moment, func(t *testing.T) {
			c.crash(t, moment)
			c.down(t)
		})
	}
	c.crash(t, "logs/node2-containerd.log")
	c.run(t, c.up())
	c.startPod(t)
	c.down(t)
}

// crash starts a cluster and kills `up` as soon as a file appears in the state directory.
func (c *testCluster) crash(t *testing.T, file string) {
	t.Helper()
	cmd := c.up()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Join(c.dir, file)); err == nil {
			break
		}
		if time.Now().After(deadline) {
			break // killed below, and reported
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatalf("up ended before it could be killed at %s: %v\n%s", file, err, out.String())
	}
	if err := cmd.Wait(); err == nil {
		t.Fatalf("up succeeded before it could be killed at %s\n%s", file, out.String())
	}
}

// TestDownEndsUp removes a cluster while it is being started.
func TestDownEndsUp(t *testing.T) {
	c := newTestCluster(t)
	cmd := c.up()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Join(c.dir, "logs", "node1-containerd.log")); err == nil || time.Now().After(deadline) {
			break
		}
	}
	c.down(t)
	if err := <-done; err == nil {
		t.Error("up succeeded although its cluster was removed meanwhile")
	}
}
