//go:build integration

package lab_test

import (
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// A switch that is slow to answer does not count as a difference, and silence is waited for longer then. What is not
// answered in the time that a person gives is one.
func TestProbeTakesItsTime(t *testing.T) {
	l := labtest.Up(t, "slow", "-f", labtest.Write(t, map[string]string{"f.yaml": deployment("open", 2,
		80) + deployment("shut", 1, 80) +
		"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: wall}\n" +
		"spec: {podSelector: {matchLabels: {app: shut}}}\n"}), "--nodes=1")
	pid, err := strconv.Atoi(l.Run("node/node1", "cat", "/run/openvswitch/ovs-vswitchd.pid"))
	if err != nil {
		t.Fatal(err)
	}
	tell := func(signal syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(pid, signal); err != nil { // at once: weft-lab would ask the agent, which asks the switch
			t.Fatal(err)
		}
	}
	tell(syscall.SIGSTOP)
	reports := make(chan lab.Report, 1)
	failed := make(chan error, 1)
	go func() {
		r, err := lab.ReadProbe(t.Context(), l.Name, testenv.Patience(lab.ProbeTimeout))
		reports <- r
		failed <- err
	}()
	time.Sleep(1500 * time.Millisecond) // how slow it is
	tell(syscall.SIGCONT)
	r := <-reports
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if r.Counts[lab.AsExpected] != 9 {
		t.Errorf("of a switch that paused: %v, want 9 as expected: %+v", r.Counts, r.Probes)
	}
	if want := 3 * r.Slowest; r.Slowest < 1 || r.Seconds < want {
		t.Errorf("the slowest answer took %.2f s, want at least 1; all took %.2f s, want at least %.2f", r.Slowest, r.Seconds,
			want)
	}

	l.Run("node/node1", "ovs-ofctl", "add-flow", "weft", "table=60,priority=999,tcp,actions=drop") // not Weft's
	begin := time.Now()
	r, err = lab.ReadProbe(t.Context(), l.Name, 200*time.Millisecond)
	if took := time.Since(begin); err != nil || r.Counts[lab.Differs] == 0 || took > testenv.Patience(2*time.Second) {
		t.Errorf("with little time, and packets that are dropped: %v after %s, %v", r.Counts, took, err)
	}
	if _, err := lab.ReadProbe(t.Context(), l.Name, -time.Second); err == nil {
		t.Error("a probe with a timeout of -1s is done")
	}
}
