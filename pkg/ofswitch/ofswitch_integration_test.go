//go:build integration

package ofswitch_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// bridge has a name of its own in each process: the bridge is a network device, too.
var bridge = fmt.Sprintf("weft-o%d", os.Getpid())

// start gives an empty bridge on a private Open vSwitch.
func start(t testing.TB) (*vswitch.Instance, *ofswitch.Switch) {
	t.Helper()
	dir := t.TempDir()
	ovs, err := vswitch.Start(t.Context(), vswitch.Config{RunDir: dir + "/run", DataDir: dir + "/data"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := ovs.Run(ctx, "ovs-vsctl", "--if-exists", "del-br", bridge); err != nil {
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
	sw := ofswitch.New(ovs.RunDir(), ovs.RunDir(), bridge, ofswitch.Userspace)
	t.Cleanup(func() {
		if err := sw.Close(); err != nil {
			t.Error(err)
		}
	})
	return ovs, sw
}

func snapshot(nodes int) *model.Snapshot {
	s := &model.Snapshot{
		Self: model.Node{Name: "self", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.1"), netip.MustParseAddr("fd30::1")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd44::/64")}},
		Transport: model.Tunnel(model.Geneve),
		Nodes:     map[string]model.Node{},
		Attachments: map[model.AttachmentKey]model.Attachment{
			{ContainerID: "c", IfName: "eth0"}: {ContainerID: "c", IfName: "eth0", Pod: model.PodRef{Namespace: "ns", Name: "a"},
				OFPort: 16,
				MAC:    model.MAC{0x0a, 0x58, 10, 244, 0, 2}, IPs: []netip.Addr{netip.MustParseAddr("10.244.0.2"),
					netip.MustParseAddr("fd44::2")}},
		},
	}
	s.Services = map[string]model.Service{}
	for i, affinity := range []time.Duration{0, 3 * time.Hour} {
		svc := model.Service{Name: fmt.Sprintf("ns/s%d", i), Affinity: affinity}
		for j, ip := range []string{"10.96.0.1", "fd96::1"} {
			for k, protocol := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
				endpoint := []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd44::2")}[j]
				svc.Ports = append(svc.Ports, model.ServicePort{Protocol: protocol, Port: uint16(80 + i),
					ClusterIP: netip.MustParseAddr(ip), NodePort: uint16(30000 + 10*i + k),
					Elsewhere: true, Cluster: []model.Endpoint{{Addr: endpoint, Port: 8080, Weight: 1}, {Addr: endpoint, Port: 8081,
						Weight: 5}}})
			}
		}
		s.Services[svc.Name] = svc
	}
	for i := 1; i <= nodes; i++ {
		n := model.Node{
			Name:  fmt.Sprintf("n%d", i),
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{172, 30, byte(i >> 8), byte(i)})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + i>>8), byte(i), 0}), 24),
				netip.MustParsePrefix(fmt.Sprintf("fd44:%x::/64", i))},
		}
		if i%3 == 0 {
			n.Addrs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("fd30::%x", i))}
		}
		s.Nodes[n.Name] = n
	}
	return s
}

// TestCanonicalText is the proof that our text is OVS's own: what was sent is what is read back, byte for byte. If a
// flow's canonical form were wrong, every restart would rewrite it and reset its counters.
func TestCanonicalText(t *testing.T) {
	_, sw := start(t)
	for _, self6 := range []bool{false, true} {
		s := snapshot(30)
		if self6 {
			s.Self.Addrs = s.Self.Addrs[1:]
			s.Transport = model.Tunnel(model.VXLAN)
			s.KernelDatapath = true
		}
		desired, err := flows.Compile(s)
		if err != nil {
			t.Fatal(err)
		}
		actual, err := sw.Dump(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := sw.Apply(t.Context(), flows.Diff(actual, desired).OpenFlow()); err != nil {
			t.Fatal(err)
		}
		if actual, err = sw.Dump(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(desired.Groups) == 0 {
			t.Error("no group was compiled")
		}
		got := flows.Desired{Flows: map[openflow.Key]flows.Flow{}, Groups: map[openflow.GroupID]flows.Group{}}
		for _, e := range actual.Flows {
			got.Flows[e.Key] = flows.Flow{Flow: e.Flow}
		}
		for _, g := range actual.Groups {
			got.Groups[g.ID] = flows.Group{Group: g}
		}
		if diff := cmp.Diff(desired.String(), got.String()); diff != "" {
			t.Errorf("flows sent and read back differ (-sent +read):\n%s", diff)
		}
		if delta := flows.Diff(actual, desired); !delta.Empty() {
			t.Errorf("a second round would still change something: %+v", delta)
		}
	}
}

func flow(t testing.TB, line string) openflow.Flow {
	t.Helper()
	e, err := openflow.Parse(line)
	if err != nil {
		t.Fatal(err)
	}
	return e.Flow
}

func TestRejectedBundleChangesNothing(t *testing.T) {
	_, sw := start(t)
	good := flow(t, "cookie=0x5765000000000001,table=60,priority=5,ip actions=goto_table:90")
	for _, bad := range []string{
		"table=60,priority=6,ip actions=group:77",     // refused by the switch
		"table=60,priority=6,ip actions=no_such:77",   // refused by ovs-ofctl
		"table=60,priority=6,ip actions=goto_table:5", // backwards
	} {
		err := sw.Apply(t.Context(), openflow.Delta{Set: []openflow.Flow{good, flow(t, bad)}})
		var rejected *ofswitch.RejectedError
		if !errors.As(err, &rejected) || rejected.Detail == "" {
			t.Errorf("%s: error %v, want a RejectedError with a detail", bad, err)
		}
		actual, err := sw.Dump(t.Context())
		if err != nil || len(actual.Flows) != 0 {
			t.Errorf("%s: after a refused bundle the switch has %v, %v; want nothing", bad, actual, err)
		}
	}
	if err := sw.Apply(t.Context(), openflow.Delta{Set: []openflow.Flow{good}}); err != nil {
		t.Fatal(err)
	}
}

func TestDeleteSparesAnothersFlow(t *testing.T) {
	ovs, sw := start(t)
	ours := flow(t, "cookie=0x5765000000000001,table=60,priority=5,ip actions=goto_table:90")
	if _, err := ovs.Run(t.Context(), "ovs-ofctl", "-O", "OpenFlow15", "add-flow", bridge,
		"cookie=0x9,table=60,priority=5,ip,actions=drop"); err != nil {
		t.Fatal(err)
	}
	if err := sw.Apply(t.Context(), openflow.Delta{Delete: []openflow.Flow{ours}}); err != nil {
		t.Fatal(err)
	}
	if actual, err := sw.Dump(t.Context()); err != nil || len(actual.Flows) != 1 || actual.Flows[0].Cookie != 9 {
		t.Errorf("the switch has %v, %v; want the foreign flow", actual, err)
	}
}

func TestUnreachableSwitchIsNotARejection(t *testing.T) {
	sw := ofswitch.New(t.TempDir(), t.TempDir(), "none", ofswitch.Kernel)
	err := sw.Apply(t.Context(), openflow.Delta{Set: []openflow.Flow{flow(t, "table=0 actions=drop")}})
	var rejected *ofswitch.RejectedError
	if err == nil || errors.As(err, &rejected) {
		t.Errorf("error = %v, want one that is not a rejection", err)
	}
	if _, err := sw.Dump(t.Context()); err == nil {
		t.Error("Dump of a bridge that does not exist gave no error: an empty table would have been believed")
	}
}

// A cache that cannot be emptied is an error, and is emptied as soon as that is possible, although there is nothing to
// send then.
func TestCacheThatCannotBeEmptied(t *testing.T) {
	ovs, sw := start(t)
	pid := filepath.Join(ovs.RunDir(), "ovs-vswitchd.pid")
	if err := os.Rename(pid, pid+".away"); err != nil {
		t.Fatal(err)
	}
	err := sw.Apply(t.Context(), openflow.Delta{Set: []openflow.Flow{flow(t, "table=0 actions=drop")}})
	var rejected *ofswitch.RejectedError
	if err == nil || errors.As(err, &rejected) || !strings.Contains(err.Error(), "--pidfile") {
		t.Errorf("without a control socket: %v; want an error that says what to do and is not a rejection", err)
	}
	if err := sw.Apply(t.Context(), openflow.Delta{}); err == nil {
		t.Error("the cache was not emptied, and no error says so")
	}
	if err := os.Rename(pid+".away", pid); err != nil {
		t.Fatal(err)
	}
	if err := sw.Apply(t.Context(), openflow.Delta{}); err != nil {
		t.Error(err)
	}
}

func TestWatch(t *testing.T) {
	ovs, sw := start(t)
	ready, events, ended := make(chan struct{}), make(chan ofswitch.Event, 10), make(chan error, 1)
	go func() {
		ended <- sw.Watch(t.Context(), func() { close(ready) }, func(e ofswitch.Event) { events <- e })
	}()
	wait(t, ready)
	f := flow(t, "cookie=0x5765000000000001,table=60,priority=5,ip,nw_dst=10.0.0.0/8 "+
		"actions=set_field:0x3->reg1,goto_table:90")
	if err := sw.Apply(t.Context(), openflow.Delta{Set: []openflow.Flow{f}}); err != nil {
		t.Fatal(err)
	}
	want := ofswitch.Event{Table: 60, Match: openflow.ParseMatch("ip,nw_dst=10.0.0.0/8"), Actions: f.Actions}
	if got := wait(t, events); got != want {
		t.Errorf("event = %+v, want %+v", got, want)
	}
	drop := flow(t, "cookie=0x5765000000000001,table=60,priority=5,ip,nw_dst=10.0.0.0/8 actions=drop")
	if err := sw.Apply(t.Context(), openflow.Delta{Set: []openflow.Flow{drop}}); err != nil {
		t.Fatal(err)
	}
	want.Actions = openflow.Actions{}
	if got := wait(t, events); got != want {
		t.Errorf("event = %+v, want %+v", got, want)
	}
	if _, err := ovs.Run(t.Context(), "ovs-ofctl", "del-flows", bridge); err != nil {
		t.Fatal(err)
	}
	want.Deleted = true
	if got := wait(t, events); got != want {
		t.Errorf("event = %+v, want %+v", got, want)
	}

	// Groups, in bundles and not, as long as some buckets and all groups at once.
	g := group(t, firstGroup)
	if err := sw.Apply(t.Context(), openflow.Delta{SetGroups: []openflow.Group{g}}); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, events); got != (ofswitch.Event{Group: g}) {
		t.Errorf("event = %+v, want the new group", got)
	}
	changed := group(t, fmt.Sprintf("group_id=%d,"+
		"type=select,selection_method=hash,fields=ip_src,bucket=bucket_id:7,weight:2,actions=drop", g.ID))
	ofctl(t, ovs, "mod-group", bridge, changed.String())
	if got := wait(t, events); got != (ofswitch.Event{Group: changed}) {
		t.Errorf("event = %+v, want %+v", got, changed)
	}
	for _, args := range [][]string{
		{"insert-buckets", bridge, fmt.Sprintf("group_id=%d,command_bucket_id=last,bucket=bucket_id:9,actions=drop", g.ID)},
		{"remove-buckets", bridge, fmt.Sprintf("group_id=%d,command_bucket_id=first", g.ID)},
	} {
		ofctl(t, ovs, args...)
		if got := wait(t, events); got.Group.ID != g.ID && got.Group.ID != ofswitch.AllGroups || got.Deleted {
			t.Errorf("%s: event = %+v, want a change of the group", args[0], got)
		}
	}
	if err := sw.Apply(t.Context(), openflow.Delta{DeleteGroups: []openflow.GroupID{g.ID}}); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, events); got != (ofswitch.Event{Deleted: true, Group: openflow.Group{ID: g.ID}}) {
		t.Errorf("event = %+v, want the group's end", got)
	}
	ofctl(t, ovs, "del-groups", bridge)
	if got := wait(t, events); got != (ofswitch.Event{Deleted: true, Group: openflow.Group{ID: ofswitch.AllGroups}}) {
		t.Errorf("event = %+v, want the end of all groups", got)
	}
	if err := ovs.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, ended); err == nil || !strings.Contains(err.Error(), "watch the switch") {
		t.Errorf("Watch of a switch that went away ended with %v", err)
	}
	if err := ovs.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func wait[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing within 10 s")
		panic("unreachable")
	}
}

// waiting lists the programs that this process has started for bundles of the switch in runDir and that still run.
func waiting(t *testing.T, runDir string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for _, text := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			command, err := os.ReadFile("/proc/" + text + "/cmdline")
			if err == nil && strings.Contains(string(command), "bundle") && strings.Contains(string(command), runDir) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// TestSpareKilled: the program that waits for the next bundle may be killed at any time; then a bundle fails, is not
// taken for applied, and the next one works.
func TestSpareKilled(t *testing.T) {
	ovs, sw := start(t)
	first := flow(t, "cookie=0x5765000000000001,table=60,priority=5,ip actions=goto_table:90")
	second := flow(t, "cookie=0x5765000000000001,table=60,priority=6,ip actions=goto_table:90")
	if err := sw.Apply(t.Context(), openflow.Delta{Set: []openflow.Flow{first}}); err != nil {
		t.Fatal(err)
	}
	pids := waiting(t, ovs.RunDir())
	if len(pids) != 1 {
		t.Fatalf("programs that wait: %v, want 1", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := sw.Apply(t.Context(), openflow.Delta{Set: []openflow.Flow{second}}); err == nil {
		t.Error("a bundle that was not sent counts as applied")
	}
	if err := sw.Apply(t.Context(), openflow.Delta{Set: []openflow.Flow{second}}); err != nil {
		t.Fatal(err)
	}
	if actual, err := sw.Dump(t.Context()); err != nil || len(actual.Flows) != 2 {
		t.Errorf("the switch has %v, %v; want both flows", actual, err)
	}
}

// BenchmarkApply is what a pod's start waits for: one bundle of a pod's flows, with the program that waits and without;
// and a bundle that is too large for that program.
func BenchmarkApply(b *testing.B) {
	s := snapshot(1)
	desired, err := flows.Compile(s)
	if err != nil {
		b.Fatal(err)
	}
	var pod openflow.Delta
	for _, f := range desired.Flows {
		if f.Owner.Kind == model.KindPod {
			pod.Set = append(pod.Set, f.Flow)
		}
	}
	for _, test := range []struct {
		name  string
		delta openflow.Delta
		cold  bool
	}{{"spare=true", pod, false}, {"spare=false", pod, true}, {"flows=3000", openflow.Delta{Set: numbered(b, 3000)},
		false}} {
		b.Run(test.name, func(b *testing.B) {
			_, sw := start(b)
			for b.Loop() {
				if test.cold {
					if err := sw.Close(); err != nil {
						b.Fatal(err)
					}
				}
				if err := sw.Apply(b.Context(), test.delta); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestPurgesAreCounted: each bundle is one emptied cache with the versions of Open vSwitch that need it, and an empty
// change is none.
func TestPurgesAreCounted(t *testing.T) {
	ovs, sw := start(t)
	version, err := ovs.Run(t.Context(), "ovs-appctl", "-t", "ovs-vswitchd", "version")
	if err != nil {
		t.Fatal(err)
	}
	if sw.PurgesCache() || sw.Purges() != 0 {
		t.Errorf("before the first bundle: %t, %d", sw.PurgesCache(), sw.Purges())
	}
	for i := range 2 {
		d := openflow.Delta{Set: []openflow.Flow{flow(t, fmt.Sprintf("cookie=0x1,table=0,priority=%d actions=drop", i+1))}}
		if err := sw.Apply(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	if err := sw.Apply(t.Context(), openflow.Delta{}); err != nil {
		t.Fatal(err)
	}
	needed := strings.Contains(version, " 3.1.0")
	if want := map[bool]uint64{true: 2}[needed]; sw.PurgesCache() != needed || sw.Purges() != want {
		t.Errorf("%s: emptied %d times, the next one will be: %t", version, sw.Purges(), sw.PurgesCache())
	}
}
