//go:build integration

package ofswitch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// TestWatchFullSwitch: the flows that a switch already has are not told once more, which would keep ovs-vswitchd from
// its packets, and what a killed watch left behind does not matter. Open vSwitch's directory may be read-only, as it is
// in the agent's container.
func TestWatchFullSwitch(t *testing.T) {
	ovs, _ := start(t)
	runDir := t.TempDir()
	sw := ofswitch.New(readOnly(t, ovs.RunDir()), runDir, bridge, ofswitch.Userspace)
	var d openflow.Delta
	for i := range 20000 {
		d.Set = append(d.Set,
			flow(t, fmt.Sprintf("cookie=0x5765000000000001,table=60,priority=5,ip,nw_dst=10.0.%d.%d actions=drop", i>>8,
				i&0xff)))
	}
	if err := sw.Apply(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(runDir, "watch-"+bridge+".ctl"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ready, events, ended := make(chan struct{}), make(chan ofswitch.Event, 10), make(chan error, 1)
	go func() {
		ended <- sw.Watch(t.Context(), func() { close(ready) }, func(e ofswitch.Event) { events <- e })
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	if n := printed(t, "monitor"); n > 10_000 {
		t.Errorf("the watch printed %d bytes before anything changed, as if it were told of all flows", n)
	}
	g := group(t, seededGroup)
	if err := sw.Apply(t.Context(), openflow.Delta{Delete: d.Set[7:8], SetGroups: []openflow.Group{g}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if e := wait(t, events); e.Group != g && (!e.Deleted || e.Match != d.Set[7].Match) {
			t.Errorf("event = %+v, want the deleted flow and the new group", e)
		}
	}
}

// readOnly is another path of a directory, through which nothing can be written.
func readOnly(t *testing.T, dir string) string {
	t.Helper()
	path := t.TempDir()
	if err := unix.Mount(dir, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	return path
}

// printed is how many bytes our one running ovs-ofctl with this command has written.
func printed(t *testing.T, command string) int {
	t.Helper()
	children, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range children {
		pids, err := os.ReadFile(file)
		if err != nil {
			continue // of a thread that ended
		}
		for pid := range strings.FieldsSeq(string(pids)) {
			args, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
			if err != nil || !slices.Contains(strings.Split(string(args), "\x00"), command) {
				continue
			}
			io, err := os.ReadFile(filepath.Join("/proc", pid, "io"))
			if err != nil {
				t.Fatal(err)
			}
			var read, written int
			if _, err := fmt.Sscanf(string(io), "rchar: %d\nwchar: %d\n", &read, &written); err != nil {
				t.Fatal(err)
			}
			return written
		}
	}
	t.Fatalf("no ovs-ofctl %s of ours runs", command)
	return 0
}
