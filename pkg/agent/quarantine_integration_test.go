//go:build integration

package agent_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/pkg/agent"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/state"
)

// TestFullTable: what a real switch has no room for is quarantined, everything else is in, and the rest follows as soon
// as there is room. A restart of the switch meanwhile is no reason to refuse anything.
func TestFullTable(t *testing.T) {
	dir, bridge := t.TempDir(), fmt.Sprintf("weft-a%d", os.Getpid())
	ovs, err := vswitch.Start(t.Context(), vswitch.Config{RunDir: dir + "/run", DataDir: dir + "/data"})
	if err != nil {
		t.Fatal(err)
	}
	vsctl := func(args ...string) {
		t.Helper()
		if _, err := ovs.Run(context.WithoutCancel(t.Context()), "ovs-vsctl", args...); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		vsctl("--if-exists", "del-br", bridge)
		if err := ovs.Stop(); err != nil {
			t.Error(err)
		}
	})
	vsctl("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev", "fail_mode=secure",
		"protocols=OpenFlow10,OpenFlow13,OpenFlow15",
		"--", "--id=@full", "create", "Flow_Table", "flow_limit=60", "overflow_policy=refuse",
		"--", "set", "bridge", bridge, fmt.Sprintf("flow_tables:%d=@full", flows.Forwarding))
	sw := ofswitch.New(ovs.RunDir(), bridge, ofswitch.Userspace)
	loop := agent.NewLoop(agent.LoopOptions{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler)})
	for n := byte(1); n <= 40; n++ {
		loop.Submit(state.SetNode{Node: node(fmt.Sprintf("n%d", n), n)})
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := sw.Close(); err != nil {
			t.Error(err)
		}
	}()
	full := func() bool {
		s := loop.Status()
		return s.Error == "" && s.Realised == s.Desired && len(s.Quarantined) > 5 && len(s.Quarantined) < 35
	}
	agent.Eventually(t, "the table is full, and the other nodes' flows are in", full)
	if err := ovs.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	agent.Eventually(t, "the switch is missed", func() bool { return loop.Status().Error != "" })
	if err := ovs.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	agent.Eventually(t, "the table is full again", full)
	vsctl("clear", "bridge", bridge, "flow_tables")
	for end := time.Now().Add(40 * time.Second); len(loop.Status().Quarantined) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("there is room, and these are still in quarantine: %v", loop.Status().Quarantined)
		}
	}
	desired, err := loop.Desired(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	actual, err := sw.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := flows.Diff(actual, desired); !d.Empty() {
		t.Errorf("the switch is not what it should be: %+v", d)
	}
}
