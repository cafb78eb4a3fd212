//go:build integration

package sandbox_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

const group sandbox.Group = "sbxtest"

func prefixes(texts ...string) (found []netip.Prefix) {
	for _, text := range texts {
		found = append(found, netip.MustParsePrefix(text))
	}
	return found
}

func destroy(t *testing.T) {
	t.Helper()
	if err := group.Destroy(context.Background()); err != nil {
		t.Fatal(err)
	}
	left, err := group.Leftovers()
	if err != nil || len(left) > 0 {
		t.Fatalf("after Destroy: %v, %v; want nothing", left, err)
	}
}

func run(t *testing.T, n sandbox.Node, args ...string) string {
	t.Helper()
	out, err := n.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestTwoNodes(t *testing.T) {
	destroy(t)
	t.Cleanup(func() { destroy(t) })
	underlay, err := group.StartUnderlay(t.Context(), 1500, prefixes("172.29.255.1/24", "fd57:6566:74ff::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := sandbox.Files{CopyOnWrite: []string{"/etc", "/opt"}, Binds: []sandbox.Bind{
		{Source: dir, Target: "/opt/sbx test/data"}}}
	var nodes []sandbox.Node
	for i, name := range []string{"a", "b"} {
		n, err := group.Start(name, files)
		if err != nil {
			t.Fatal(err)
		}
		if err := underlay.Attach(t.Context(), n, "eth0", true); err != nil {
			t.Fatal(err)
		}
		addrs := prefixes([]string{"172.29.255.2/24", "172.29.255.3/24"}[i], []string{"fd57:6566:74ff::2/64",
			"fd57:6566:74ff::3/64"}[i])
		if err := n.Configure("eth0", addrs, []netip.Addr{netip.MustParseAddr("172.29.255.1"),
			netip.MustParseAddr("fd57:6566:74ff::1")}); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	for _, target := range []string{"172.29.255.1", "172.29.255.3", "fd57:6566:74ff::1", "fd57:6566:74ff::3"} {
		run(t, nodes[0], "ping", "-c1", "-W2", target)
	}
	if got := run(t, nodes[1], "hostname"); got != "b" {
		t.Errorf("host name %q, want b", got)
	}
	if got := strings.Fields(run(t, nodes[0], "ls", "/sys/class/net")); !slices.Equal(got, []string{"eth0", "lo"}) {
		t.Errorf("/sys/class/net shows %q, want the node's own links", got)
	}
	run(t, nodes[0], "test", "-d", "/sys/fs/cgroup/pids")
	run(t, nodes[0], "sh", "-c",
		"for f in /run/sbx-test /etc/sbx-test; do echo mine >$f; done; echo data >'/opt/sbx test/data/file'")
	for _, file := range []string{"/run/sbx-test", "/etc/sbx-test"} {
		if _, err := nodes[1].Run(t.Context(), "cat", file); err == nil {
			t.Errorf("%s that one node wrote shows on another", file)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s that a node wrote shows on the machine", file)
		}
	}
	if got := run(t, nodes[1], "cat", "/opt/sbx test/data/file"); got != "data" {
		t.Errorf("file in a bind = %q, want data", got)
	}
}

// TestPriority: a daemon's priority counts against all other processes, also where sessions are scheduled as groups.
func TestPriority(t *testing.T) {
	destroy(t)
	t.Cleanup(func() { destroy(t) })
	n, err := group.Start("a", sandbox.Files{})
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	running, err := n.StartDaemon(sandbox.Daemon{Log: log, Nice: sandbox.OVSNice, Args: []string{"sh", "-c",
		"nice; cat /proc/self/autogroup || echo none"}})
	if err != nil {
		t.Fatal(err)
	}
	<-running.Exited
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(text))
	want := strconv.Itoa(sandbox.OVSNice)
	if _, err := os.Stat("/proc/self/autogroup"); err == nil && lines[len(lines)-1] != want || lines[0] != want {
		t.Errorf("the daemon runs with %q, want the priority %s, and its session the same", text, want)
	}
}

// TestDestroyFindsEverything ends what a crashed caller left: processes that ignore signals, that moved to a new
// session, that live in child cgroups, whose holder is dead.
func TestDestroyFindsEverything(t *testing.T) {
	destroy(t)
	t.Cleanup(func() { destroy(t) })
	if _, err := group.StartUnderlay(t.Context(), 1500, prefixes("172.29.255.1/24")); err != nil {
		t.Fatal(err)
	}
	n, err := group.Start("a", sandbox.Files{})
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	running, err := n.StartDaemon(sandbox.Daemon{Log: log, Args: []string{"sh", "-c",
		"trap '' TERM HUP INT; setsid sleep 1000 & mount -t tmpfs tmpfs /mnt; echo up; wait"}})
	if err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "the daemon starts", func() bool {
		text, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(text), "up")
	})
	child := n.Cgroup().Child("pods")
	if err := child.Create(); err != nil {
		t.Fatal(err)
	}
	inChild, err := child.StartDaemon(sandbox.Daemon{Log: log, Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Holder.Signal(9); err != nil {
		t.Fatal(err)
	}
	if left, err := group.Leftovers(); err != nil || len(left) < 6 {
		t.Errorf("Leftovers = %q, %v; want the processes, cgroups and link that stand", left, err)
	}
	destroy(t)
	for _, p := range []sandbox.Process{running.Process, inChild.Process, n.Holder} {
		if p.Alive() {
			t.Errorf("process %d still runs", p.PID)
		}
	}
}
