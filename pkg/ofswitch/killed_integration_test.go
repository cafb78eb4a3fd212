//go:build integration

package ofswitch_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// numbered gives flows that differ in one address. Each can be cut in its middle and still be parsed, as another flow.
func numbered(t testing.TB, n int) []openflow.Flow {
	list := make([]openflow.Flow, n)
	for i := range list {
		list[i] = flow(t,
			fmt.Sprintf("cookie=0x5765000000000001,table=60,priority=5,ip,nw_src=10.244.%d.%d,nw_dst=10.244.100.123 "+
				"actions=goto_table:90", i/256, i%256))
	}
	return list
}

// The environment of a writer: the bridge's run directory and name, and how many flows it deletes.
const (
	writerRunDir = "WEFT_TEST_WRITER_RUN_DIR"
	writerBridge = "WEFT_TEST_WRITER_BRIDGE"
	writerFlows  = "WEFT_TEST_WRITER_FLOWS"
)

// TestWriter is the process that TestKilledWriter kills. It says when it begins and when it is done.
func TestWriter(t *testing.T) {
	runDir := os.Getenv(writerRunDir)
	if runDir == "" {
		return // not a test of its own
	}
	n, err := strconv.Atoi(os.Getenv(writerFlows))
	if err != nil {
		t.Fatal(err)
	}
	sw := ofswitch.New(runDir, runDir, os.Getenv(writerBridge), ofswitch.Kernel)
	// With the program in waiting, as an agent that has run for a while.
	nothing := flow(t, "cookie=0x5765000000000001,table=1 actions=drop")
	if err := sw.Apply(t.Context(), openflow.Delta{Delete: []openflow.Flow{nothing}}); err != nil {
		t.Fatal(err)
	}
	delta := openflow.Delta{Delete: numbered(t, n)}
	fmt.Println("begin")
	if err := sw.Apply(t.Context(), delta); err != nil {
		t.Fatal(err)
	}
	fmt.Println("done")
	time.Sleep(time.Minute) // until it is killed
}

// TestKilledWriter: an agent that is killed leaves a bundle that is in effect as a whole or not at all, whatever the
// moment and the bundle's size. The moments are parts of the time that the write takes on this machine, now.
func TestKilledWriter(t *testing.T) {
	const tries = 30
	for _, test := range []struct {
		name  string
		flows int
	}{
		{"small", 30}, {"whole pipe", 500}, {"large", 3000},
	} {
		t.Run(test.name, func(t *testing.T) {
			ovs, sw := start(t)
			left := map[int]int{}
			kill := func(after time.Duration) (took time.Duration) {
				if err := sw.Apply(t.Context(), openflow.Delta{Set: numbered(t, test.flows)}); err != nil {
					t.Fatal(err)
				}
				took = killWriter(t, ovs, test.flows, after)
				actual, err := sw.Dump(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				left[len(actual.Flows)]++
				if n := len(actual.Flows); n != 0 && n != test.flows || n != 0 && after == whenDone {
					t.Errorf("killed after %s: %d of %d flows are left", took, n, test.flows)
				}
				return took
			}
			whole := kill(whenDone)
			for i := range tries {
				kill(whole * time.Duration(i) / (tries * 2 / 3)) // to one and a half of the time
			}
			t.Logf("flows left, and how often: %v; a whole write took %s", left, whole)
			if left[test.flows] == 0 && test.name == "large" { // the others are written within microseconds
				t.Error("all moments were too late: this test tests nothing")
			}
		})
	}
}

// whenDone is the moment at which the writer says that the switch has acknowledged its bundle.
const whenDone = time.Duration(-1)

// killWriter starts a process that deletes flows, kills it when it has begun that long ago, and waits for what it has
// started. It says how long the process had written.
func killWriter(t *testing.T, ovs *vswitch.Instance, n int, after time.Duration) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestWriter$")
	cmd.Env = append(os.Environ(),
		writerRunDir+"="+ovs.RunDir(), writerBridge+"="+bridge, writerFlows+"="+strconv.Itoa(n))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "begin" {
	}
	began := time.Now()
	if after == whenDone {
		for lines.Scan() && lines.Text() != "done" {
		}
	} else {
		time.Sleep(after)
	}
	took := time.Since(began)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if pids := bundles(t, ovs.RunDir()); len(pids) <= 1 { // this process has one in waiting
			return took
		} else if time.Now().After(end) {
			t.Fatalf("programs of a killed writer still run: %v", pids)
		}
	}
}

// bundles lists the programs of any process that send, or wait for, a bundle of the switch in runDir.
func bundles(t *testing.T, runDir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		command, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(command), "bundle") && strings.Contains(string(command), runDir) {
			found = append(found, filepath.Dir(file))
		}
	}
	return found
}

// TestLargeBundleIsRejected: what is wrong in a bundle that is not written at once is named in the same way.
func TestLargeBundleIsRejected(t *testing.T) {
	_, sw := start(t)
	for _, bad := range []string{"group:77", "no_such:77"} { // refused by the switch, and by ovs-ofctl
		list := numbered(t, 3000)
		list[2000].Actions = openflow.ParseActions(bad)
		err := sw.Apply(t.Context(), openflow.Delta{Set: list})
		var rejected *ofswitch.RejectedError
		if !errors.As(err, &rejected) || rejected.Detail == "" {
			t.Errorf("%s: error %v, want a RejectedError with a detail", bad, err)
		}
		if actual, err := sw.Dump(t.Context()); err != nil || len(actual.Flows) != 0 {
			t.Errorf("%s: the switch has %d flows, %v; want none", bad, len(actual.Flows), err)
		}
	}
}
