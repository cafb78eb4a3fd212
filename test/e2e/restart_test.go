//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/e2e/internal/dump"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// The agent of a node is deleted and comes back, under pings in all directions and open TCP connections: nothing is
// lost, and the switch's flows are the very ones from before.
func TestAgentRestart(t *testing.T) {
	pods, hosts := meshPods(t)
	const index = 1
	n := env.nodes[index]
	traffic := pingBetweenNodes(t, pods)
	traffic.ping(t, pods[2*index], pods[2*index+1])  // on the node
	traffic.ping(t, hosts[index], pods[2*index])     // from the node
	traffic.stream(t, pods[0], pods[2*index])        // into the node
	traffic.stream(t, pods[2*index], pods[4])        // out of the node
	traffic.stream(t, pods[2*index+1], hosts[index]) // to the node

	before, err := n.flows(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	uid, err := n.deleteAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	must(t, 2*time.Minute, func(ctx context.Context) error { return n.agentReady(ctx, uid) })
	t.Logf("a new agent was Ready after %.1f s", time.Since(start).Seconds())
	// It serves again: it can say what it has programmed.
	must(t, 30*time.Second, func(ctx context.Context) error {
		_, err := n.status(ctx)
		return err
	})
	elapsed := time.Since(start)
	after, err := n.flows(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	traffic.wantNoLoss(t)
	if diff := dump.Difference(identities(before), identities(after)); len(diff) > 0 {
		t.Errorf("the restart changed flows:\n  %s", strings.Join(diff, "\n  "))
	}
	for _, f := range after {
		if f.Duration < elapsed {
			t.Errorf("this flow is %s old, the restart began %s ago: %s", f.Duration, elapsed, f.Identity())
		}
	}
}

func identities(flows []dump.Flow) []string {
	var ids []string
	for _, f := range flows {
		ids = append(ids, f.Identity())
	}
	return ids
}

// ovs-vswitchd of a node ends and starts again, as in a package upgrade. In the userspace datapath that takes the
// node's own network with it, so there is a gap; but Weft brings everything back without help.
func TestSwitchRestart(t *testing.T) {
	pods, hosts := meshPods(t)
	const index = 2
	n := env.nodes[index]
	// Both come from other nodes: this node's own are cut off from their watchers.
	traffic := &steadyTraffic{}
	traffic.ping(t, pods[0], pods[2*index])
	traffic.ping(t, hosts[1], pods[2*index+1])
	before, err := n.flowIdentities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	restartSwitch(t, index)
	t.Logf("ovs-vswitchd was back after %.1f s", time.Since(start).Seconds())
	must(t, time.Minute, func(ctx context.Context) error {
		now, err := n.flowIdentities(ctx)
		if err != nil {
			return err
		}
		if diff := dump.Difference(before, now); len(diff) > 0 {
			return fmt.Errorf("flows of %s differ from before:\n  %s", n.name, strings.Join(diff, "\n  "))
		}
		return nil
	})
	t.Logf("all %d flows were back after %.1f s", len(before), time.Since(start).Seconds())
	back := map[dialer][]wire.Target{pods[0]: targetsOf(pods[2*index]), hosts[1]: targetsOf(pods[2*index+1])}
	reach(t, back)
	for name, r := range traffic.stop(t) {
		t.Logf("%s: %d of %d answered, gap %.1f s", name, r.Received, r.Sent, r.LongestGap.Seconds())
	}
	// From here on the node is as good as before.
	reach(t, map[dialer][]wire.Target{
		pods[2*index]:   append(targetsOf(pods[0]), targetsOf(pods[2*index+1])...),
		hosts[index]:    append(targetsOf(pods[2]), targetsOf(pods[2*index])...),
		pods[2*index+1]: targetsOf(hosts[index]),
	})
}

// restartSwitch ends a node's ovs-vswitchd, starts it with the same arguments, and gives the uplink the node's
// addresses again, which is what a real node's network configuration does when the physical bridge appears.
func restartSwitch(t *testing.T, index int) {
	t.Helper()
	const program = "ovs-vswitchd"
	node := &env.record.Nodes[index]
	old := node.Processes[program]
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", old.PID))
	if err != nil || !old.Alive() {
		t.Fatalf("%s of %s does not run as process %d: %v", program, node.Name, old.PID, err)
	}
	if err := old.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	must(t, 20*time.Second, func(context.Context) error {
		if old.Alive() {
			return fmt.Errorf("%s of %s does not end", program, node.Name)
		}
		return nil
	})
	running, err := node.Sandbox.StartDaemon(sandbox.Daemon{
		Args: strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00"),
		Log:  env.record.Dir + "/" + node.Name + "-" + program + "-restarted.log",
		Nice: sandbox.OVSNice,
	})
	if err != nil {
		t.Fatal(err)
	}
	node.Processes[program] = running.Process
	if err := env.record.Save(); err != nil {
		t.Fatal(err)
	}
	must(t, 20*time.Second, func(context.Context) error {
		return env.record.Datapath.Readdress(node.Sandbox, env.record.Plan.Uplink(index))
	})
}
