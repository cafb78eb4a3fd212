//go:build integration

package programmer_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// realSwitch is a bridge of an Open vSwitch of its own.
type realSwitch struct {
	ovs    *vswitch.Instance
	bridge string
	sw     *ofswitch.Switch
}

// startFull starts one in which a table takes so many flows.
func startFull(t *testing.T, table openflow.TableID, limit int) *realSwitch {
	t.Helper()
	dir, bridge := t.TempDir(), fmt.Sprintf("weft-a%d", os.Getpid())
	ovs, err := vswitch.Start(t.Context(), vswitch.Config{RunDir: dir + "/run", DataDir: dir + "/data"})
	if err != nil {
		t.Fatal(err)
	}
	r := &realSwitch{ovs, bridge, ofswitch.New(ovs.RunDir(), ovs.RunDir(), bridge, ofswitch.Userspace)}
	t.Cleanup(func() {
		r.vsctl(t, "--if-exists", "del-br", bridge)
		if err := ovs.Stop(); err != nil {
			t.Error(err)
		}
	})
	r.vsctl(t, "add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev", "fail_mode=secure",
		"protocols=OpenFlow10,OpenFlow13,OpenFlow15",
		"--", "--id=@full", "create", "Flow_Table", fmt.Sprintf("flow_limit=%d", limit), "overflow_policy=refuse",
		"--", "set", "bridge", bridge, fmt.Sprintf("flow_tables:%d=@full", table))
	return r
}

func (r *realSwitch) vsctl(t *testing.T, args ...string) {
	t.Helper()
	if _, err := r.ovs.Run(context.WithoutCancel(t.Context()), "ovs-vsctl", args...); err != nil {
		t.Error(err)
	}
}

// run runs a loop on the switch until the test ends.
func (r *realSwitch) run(t *testing.T, loop *programmer.Loop) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := r.sw.Close(); err != nil {
			t.Error(err)
		}
	})
}

// restart restarts ovs-vswitchd under a running loop.
func (r *realSwitch) restart(t *testing.T, loop *programmer.Loop) {
	t.Helper()
	if err := r.ovs.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "the switch is missed", func() bool { return loop.Status().Error != "" })
	if err := r.ovs.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "the switch is programmed again", func() bool {
		s := loop.Status()
		return s.Error == "" && s.Programmed == s.Desired
	})
}

// grow gives the table room, and waits until everything is in.
func (r *realSwitch) grow(t *testing.T, loop *programmer.Loop) {
	t.Helper()
	r.vsctl(t, "clear", "bridge", r.bridge, "flow_tables")
	for end := time.Now().Add(40 * time.Second); len(loop.Status().Quarantined) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("there is room, and these are still in quarantine: %v", loop.Status().Quarantined)
		}
	}
	desired, err := loop.Desired(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	actual, err := r.sw.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := flows.Diff(actual, desired); !d.Empty() {
		t.Errorf("the switch is not what it should be: %+v", d)
	}
}

// TestFullTable: what a real switch has no room for is quarantined, everything else is in, and the rest follows as soon
// as there is room. A restart of the switch meanwhile is not a reason to reject anything.
func TestFullTable(t *testing.T) {
	r := startFull(t, flows.Forwarding, 60)
	loop := programmer.New(programmer.Options{Node: "n1", Switch: r.sw, Log: slog.New(slog.DiscardHandler)})
	for n := byte(1); n <= 40; n++ {
		loop.Submit(state.SetNode{Node: node(fmt.Sprintf("n%d", n), n)})
	}
	r.run(t, loop)
	full := func() bool {
		s := loop.Status()
		return s.Error == "" && s.Programmed == s.Desired && len(s.Quarantined) > 5 && len(s.Quarantined) < 35
	}
	testenv.Until(t, "the table is full, and the other nodes' flows are in", full)
	r.restart(t, loop)
	testenv.Until(t, "the table is full again", full)
	r.grow(t, loop)
}

// TestFullIsolation: pods for whose isolation a real switch has no room are closed, the others are isolated; what a
// policy does not allow reaches none of them, before and after a restart of the switch.
func TestFullIsolation(t *testing.T) {
	const limit, pods = 8, 16
	r := startFull(t, flows.IngressDefault, limit)
	loop := programmer.New(programmer.Options{Node: "n1", Switch: r.sw, Log: slog.New(slog.DiscardHandler)})
	loop.Submit(state.SetNode{Node: node("n1", 1)})
	loop.Submit(state.SetNamespace{Namespace: policy.Namespace{Name: "ns"}})
	var attachments []model.Attachment
	for n := byte(2); n < 2+pods; n++ {
		a := pod(fmt.Sprintf("p%d", n), n)
		attachments = append(attachments, a)
		loop.Submit(podOf(a))
		loop.Submit(state.SetAttachment{Attachment: a})
	}
	r.run(t, loop)
	// reached counts the pods that a packet from a source reaches.
	reached := func(source string) int {
		n := 0
		for _, a := range attachments {
			out, err := r.ovs.Run(t.Context(), "ovs-appctl", "ofproto/trace", r.bridge,
				fmt.Sprintf("in_port=%d,tcp,dl_src=%s,dl_dst=%s,nw_src=%s,nw_dst=%s,nw_ttl=64,tp_src=40000,tp_dst=80",
					model.PortGateway, model.GatewayMAC, model.RouterMAC, source, a.IPs[0]))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(out, fmt.Sprintf("output port is %d\n", a.OFPort)) {
				n++
			}
		}
		return n
	}
	testenv.Until(t, "all pods are open before there is a policy", func() bool {
		return reached("192.0.2.1") == pods
	})
	loop.Submit(state.SetPolicy{Policy: wall()}) // which lets in 10.0.0.0/8
	check := func(when string) {
		t.Helper()
		if err := loop.Programmed(t.Context(), loop.Submitted()); err != nil {
			t.Fatal(err)
		}
		if n := reached("192.0.2.1"); n > 0 {
			t.Errorf("%s: %d pods are reached by what their policy denies", when, n)
		}
		// The table has one more flow, that of packets to pods that are not isolated.
		if n, closed := reached("10.1.1.1"), len(loop.Status().Quarantined); n != limit-1 || n+closed != pods {
			t.Errorf("%s: %d pods are reached by what their policy allows, %d are closed", when, n, closed)
		}
	}
	check("the policy is new")
	r.restart(t, loop)
	check("the switch has restarted")
	r.grow(t, loop)
	if denied, allowed := reached("192.0.2.1"), reached("10.1.1.1"); denied > 0 || allowed != pods {
		t.Errorf("there is room: %d pods are reached by what their policy denies, %d by what it allows", denied, allowed)
	}
}
