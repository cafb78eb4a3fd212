//go:build integration

package trace_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/internal/unixctl"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/trace"
	"github.com/weft-cni/weft/pkg/trace/tracetest"
)

const bridge = "weft-trace"

// realSwitch is a bridge on a private Open vSwitch, and its daemon's control socket.
type realSwitch struct {
	ovs    *vswitch.Instance
	socket string
}

func startSwitch(t *testing.T) *realSwitch {
	t.Helper()
	dir := t.TempDir()
	ovs, err := vswitch.Start(t.Context(), vswitch.Config{RunDir: dir + "/run", DataDir: dir + "/data"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := ovs.Run(context.WithoutCancel(t.Context()), "ovs-vsctl", "--if-exists", "del-br", bridge); err != nil {
			t.Error(err)
		}
		if err := ovs.Stop(); err != nil {
			t.Error(err)
		}
	})
	if _, err := ovs.Run(t.Context(), "ovs-vsctl", "add-br", bridge, "--", "set", "bridge", bridge,
		"datapath_type=netdev", "fail_mode=secure", "protocols=OpenFlow10,OpenFlow13,OpenFlow15"); err != nil {
		t.Fatal(err)
	}
	socket, err := unixctl.Socket(ovs.RunDir(), "ovs-vswitchd")
	if err != nil {
		t.Fatal(err)
	}
	return &realSwitch{ovs: ovs, socket: socket}
}

// load replaces all flows and groups of the switch.
func (r *realSwitch) load(t *testing.T, d flows.Desired) {
	t.Helper()
	var b strings.Builder
	b.WriteString("flow delete\ngroup delete group_id=0xfffffffc\n")
	for _, g := range d.Groups {
		fmt.Fprintf(&b, "group add %s\n", g)
	}
	for _, f := range d.Flows {
		fmt.Fprintf(&b, "flow add %s\n", f)
	}
	file := filepath.Join(t.TempDir(), "bundle")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ovs.Run(t.Context(), "ovs-ofctl", "-O", "OpenFlow15", "bundle", bridge, file); err != nil {
		t.Fatal(err)
	}
}

// met is a matched flow.
type met struct {
	table    openflow.TableID
	priority uint16
	match    string
}

var tableLine = regexp.MustCompile(`^ *(\d+)\. (?:(.*), )?priority (\d+)`)

// trace asks the real switch for a packet's flows. States are the results of ct, in order.
func (r *realSwitch) trace(t *testing.T, packet string, states []string) ([]met, string) {
	t.Helper()
	params := []string{bridge, packet}
	for _, s := range states {
		params = append(params, "--ct-next", s)
	}
	text, err := unixctl.Call(t.Context(), r.socket, "ofproto/trace", params...)
	if err != nil {
		t.Fatalf("%q: %v", params, err)
	}
	var list []met
	for line := range strings.Lines(text) {
		m := tableLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			continue
		}
		table, err := strconv.ParseUint(m[1], 10, 8)
		if err != nil {
			t.Fatal(err)
		}
		priority, err := strconv.ParseUint(m[3], 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, met{openflow.TableID(table), uint16(priority), m[2]})
	}
	return list, text
}

// same compares the flows of a packet. Where several flows of one priority match, the switch may take any, so they must
// be equivalent.
func same(d flows.Desired, actual []met, ours []*flows.Flow) error {
	if len(actual) != len(ours) {
		return fmt.Errorf("the switch meets %d flows, the interpreter %d", len(actual), len(ours))
	}
	for i, m := range actual {
		f, ok := d.Flows[openflow.Key{Table: m.table, Priority: m.priority, Match: openflow.ParseMatch(m.match)}]
		if !ok {
			return fmt.Errorf("flow %d: %+v is none of ours", i, m)
		}
		if f.Table != ours[i].Table || f.Priority != ours[i].Priority || f.Actions != ours[i].Actions {
			return fmt.Errorf("flow %d: the switch meets %s, the interpreter %s", i, f, ours[i])
		}
	}
	return nil
}

// TestLookupOfOpenVSwitch: hand-written priorities, masks and conjunctions have the same results in a real switch and
// in the interpreter.
func TestLookupOfOpenVSwitch(t *testing.T) {
	r := startSwitch(t)
	for _, tc := range lookups {
		d := flows.Desired{Flows: map[openflow.Key]flows.Flow{}}
		for _, f := range parseFlows(t, tc.flows) {
			d.Flows[f.Key] = f
		}
		r.load(t, d)
		for text := range tc.packets {
			ours := newSwitch(t, tc.flows).Run(packet(t, text), trace.Options{Steps: true})
			protocol, _, _ := strings.Cut(text, ",")
			actual, full := r.trace(t, strings.ReplaceAll(text, "tp_dst", strings.TrimSuffix(protocol, "6")+"_dst"), nil)
			if err := same(d, actual, ours.Visited); err != nil {
				t.Errorf("%s: %s: %v\n%s", tc.name, text, err, full)
			}
		}
	}
}

// TestAgainstOpenVSwitch: with compiled flows of random policies, packets take the same flows in a real switch and in
// the interpreter: first packets, replies of allowed and denied connections, later packets, invalid ones.
func TestAgainstOpenVSwitch(t *testing.T) {
	sets := 40
	if text := os.Getenv("WEFT_TRACE_SETS"); text != "" {
		var err error
		if sets, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	r := startSwitch(t)
	type drawn struct {
		c       tracetest.Cluster
		packets []tracetest.Packet
	}
	gen := rapid.Custom(func(t *rapid.T) drawn {
		d := drawn{c: tracetest.DrawCluster(t)}
		d.c.Kernel = false
		d.c.Policies = tracetest.DrawPolicies(t)
		d.packets = tracetest.DrawPackets(t, d.c)
		return d
	})
	traces := 0
	var spent time.Duration
	for seed := range sets {
		d := gen.Example(seed)
		n, err := tracetest.New(d.c)
		if err != nil {
			t.Fatal(err)
		}
		desired := n.Desired("n1")
		r.load(t, desired)
		sw, err := trace.Of(desired)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range d.packets {
			if i%7 != seed%7 {
				continue // many of a set's packets take the same flows
			}
			for _, in := range n.Entries(p, "n1") {
				for _, how := range []struct {
					marks  string
					states []string
				}{
					{"", []string{"trk,new", "trk,new", "trk,new"}},
					{",ct_mark=0x1", []string{"trk,est", "trk,est", "trk,est"}},
					{",ct_mark=0x1", []string{"trk,est,rpl", "trk,est,rpl", "trk,est,rpl"}},
					{"", []string{"trk,est,rpl", "trk,est,rpl", "trk,est,rpl"}},
					{"", []string{"trk,inv"}},
				} {
					text := in.String() + how.marks
					packet, err := trace.ParsePacket(text)
					if err != nil {
						t.Fatal(err)
					}
					ours := sw.Run(packet, trace.Options{States: how.states, Steps: true})
					start := time.Now()
					actual, full := r.trace(t, text, how.states)
					spent += time.Since(start)
					traces++
					if err := same(desired, actual, ours.Visited); err != nil {
						t.Fatalf("set %d, %s, %v: %v\nthe switch:\n%s\nthe interpreter:\n%s", seed, text, how.states, err, full, ours)
					}
				}
			}
		}
	}
	t.Logf("%d sets, %d traces, %.0f a second", sets, traces, float64(traces)/spent.Seconds())
}
