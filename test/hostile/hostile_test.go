package hostile

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
	"github.com/weft-cni/weft/pkg/trace"
)

var size = flag.Int("size", 1, "how much the hostile objects are; the large run's is in the Makefile")

// world is an agent's pipeline on an API server and a switch.
type world struct {
	t     testing.TB
	ctx   context.Context
	store *apiserver.Store
	loop  *programmer.Loop
	sw    *ofswitch.Fake

	mu       sync.Mutex
	reported map[model.Owner]string // flows that the switch or the compiler rejects
	problems map[model.Owner]string // what of an object cannot be used
}

// newWorld starts an agent's pipeline and returns when the switch holds what the objects ask for.
func newWorld(t testing.TB, o objects) *world {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), time.Duration(*size)*5*time.Minute)
	w := &world{t: t, ctx: ctx, store: apiserver.NewStore(), sw: ofswitch.NewFake(flows.Check),
		reported: map[model.Owner]string{}, problems: map[model.Owner]string{}}
	w.apply(o)
	server := httptest.NewServer(w.store.Handler())
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	w.loop = programmer.New(programmer.Options{Node: "n1", Switch: w.sw, Log: slog.New(slog.DiscardHandler),
		Report: w.note(w.reported), Problem: w.note(w.problems)})
	watcher, err := kube.NewWatcher(client, "n1", w.loop.Submit, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range o.attached {
		w.loop.Submit(state.SetAttachment{Attachment: a})
	}
	var running sync.WaitGroup
	running.Go(func() { watcher.Run(ctx) })
	t.Cleanup(func() { stop(); server.CloseClientConnections(); server.Close(); running.Wait() })
	if err := watcher.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
	running.Go(func() {
		if err := w.loop.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := w.loop.Programmed(ctx, w.loop.Submitted()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) note(in map[model.Owner]string) func(model.Owner, error) {
	return func(o model.Owner, err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(in, o)
		if err != nil {
			in[o] = err.Error()
		}
	}
}

func (w *world) apply(o objects) {
	w.t.Helper()
	if _, started := w.store.Get(apiserver.Nodes, types.NamespacedName{Name: "n1"}); !started {
		// Honest nodes are older than others by a second at least, in which the API counts: an attacker cannot write that.
		if err := w.store.Apply(apiserver.Nodes, honest().byResource[apiserver.Nodes]); err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
	}
	for _, resource := range []string{apiserver.Nodes, apiserver.Namespaces, apiserver.ServiceCIDRs, apiserver.Pods,
		apiserver.Services, apiserver.EndpointSlices, apiserver.NetworkPolicies} {
		if err := w.store.Apply(resource, o.byResource[resource]); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) desired() flows.Desired {
	w.t.Helper()
	d, err := w.loop.Desired(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// becomes waits until the flows are these.
func (w *world) becomes(what string, want flows.Desired) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Duration(*size) * 2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if w.loop.Status().Flows != len(want.Flows) && time.Now().Before(deadline) {
			continue // a copy of all flows would hold the loop up
		}
		got := w.desired()
		if maps.Equal(flowsOf(got), flowsOf(want)) && maps.Equal(got.Groups, want.Groups) {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: the flows are not those of a fresh start:\n%s", what, difference(flowsOf(want), flowsOf(got)))
		}
	}
}

func flowsOf(d flows.Desired) map[openflow.Key]openflow.Flow {
	all := make(map[openflow.Key]openflow.Flow, len(d.Flows))
	for key, f := range d.Flows {
		all[key] = f.Flow
	}
	return all
}

func difference(want, got map[openflow.Key]openflow.Flow) string {
	var lines []string
	for key, f := range want {
		if got[key] != f {
			lines = append(lines, fmt.Sprintf("- %s\n+ %s", f, got[key]))
		}
	}
	for key, f := range got {
		if _, ok := want[key]; !ok {
			lines = append(lines, "+ "+f.String())
		}
	}
	slices.Sort(lines)
	return strings.Join(lines[:min(20, len(lines))], "\n")
}

// together are both clusters' objects. The honest ones come first, so their nodes are older.
func together(a, b objects) objects {
	all := objects{byResource: maps.Clone(a.byResource), attached: slices.Concat(a.attached, b.attached)}
	for resource, list := range b.byResource {
		all.byResource[resource] = slices.Concat(all.byResource[resource], list)
	}
	return all
}

func isHostile(o model.Owner) bool {
	switch o.Kind {
	case model.KindPipeline, model.KindSelf:
		return false
	case model.KindNode:
		return !slices.Contains([]string{"n1", "n2", "n3"}, o.Name)
	}
	name := cmp.Or(o.Namespace, o.Name) // policies have their namespace by itself
	return strings.HasPrefix(name, tenants[0]) || strings.HasPrefix(name, tenants[1])
}

// The bounds of what all hostile objects may cost beside the honest ones. They do not depend on the machine; a size of
// 1 was measured to need about half of each.
const (
	mostFlows = 150_000
	mostBytes = 3 << 30 // allocated, those of the API server and the client's decoding among them
	mostHeld  = 300 << 20
)

// TestHostileObjects compares an agent with honest objects alone, one that starts with hostile ones beside them, and
// one to which these come and from which they go.
func TestHostileObjects(t *testing.T) {
	good, bad := honest(), hostile(*size)
	alone := newWorld(t, good)
	before := alone.desired()
	if len(alone.reported)+len(alone.problems) > 0 {
		t.Fatalf("honest objects are reported: %v %v", alone.reported, alone.problems)
	}
	memory := measure()
	all := together(good, bad)
	start := time.Now()
	beside := newWorld(t, all)
	after := beside.desired()
	cost := measure().less(memory)
	t.Logf("size %d: %d flows and %d groups, before %d and %d; %d MB allocated, %d MB held; %v", *size, len(after.Flows),
		len(after.Groups),
		len(before.Flows), len(before.Groups), cost.allocated>>20, cost.held>>20, time.Since(start))

	honestFlowsStay(t, before, after)
	honestPacketsGoWhereTheyWent(t, before, after)
	beside.mu.Lock()
	for _, list := range []map[model.Owner]string{beside.reported, beside.problems} {
		for o, why := range list {
			if !isHostile(o) {
				t.Errorf("%s is reported: %.300s", o, why)
			}
			if len(why) > 20_000 {
				t.Errorf("%s: the report has %d bytes", o, len(why))
			}
		}
	}
	t.Logf("%d owners rejected, %d with values that cannot be used", len(beside.reported), len(beside.problems))
	beside.mu.Unlock()
	perOwner := map[model.Owner]int{}
	for _, f := range after.Flows {
		perOwner[f.Owner]++
	}
	for o, n := range perOwner {
		if n > 250_000 {
			t.Errorf("%s has %d flows", o, n)
		}
	}
	if n := len(after.Flows); n > mostFlows**size {
		t.Errorf("%d flows, more than %d", n, mostFlows**size)
	}
	if cost.allocated > mostBytes*uint64(*size) || cost.held > mostHeld*int64(*size) {
		t.Errorf("%d MB allocated and %d MB held, more than %d and %d", cost.allocated>>20, cost.held>>20,
			mostBytes>>20**size, mostHeld>>20**size)
	}

	// They come to an agent that runs, and go.
	for _, a := range bad.attached {
		alone.loop.Submit(state.SetAttachment{Attachment: a})
	}
	alone.apply(all)
	alone.becomes("with hostile objects", after)
	for _, a := range bad.attached {
		alone.loop.Submit(state.DeleteAttachment{Key: a.Key()})
	}
	alone.apply(good)
	alone.becomes("without them again", before)
	if err := alone.loop.Programmed(alone.ctx, alone.loop.Submitted()); err != nil {
		t.Error(err)
	}
	alone.mu.Lock()
	defer alone.mu.Unlock()
	if len(alone.reported)+len(alone.problems) > 0 {
		t.Errorf("reported although the objects are gone: %v %v", alone.reported, alone.problems)
	}
}

type usage struct {
	allocated uint64
	held      int64
}

func (u usage) less(v usage) usage { return usage{u.allocated - v.allocated, u.held - v.held} }

func measure() usage {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{m.TotalAlloc, int64(m.HeapAlloc)}
}

// honestFlowsStay: each flow of an honest object is there as it was. The one exception is a flow of clauses, which
// several policies that name the same peer have together: it has at least the clauses that it had.
func honestFlowsStay(t *testing.T, before, after flows.Desired) {
	t.Helper()
	failures := 0
	for key, f := range before.Flows {
		now, ok := after.Flows[key]
		if ok && now.Actions == f.Actions || ok && clausesOf(now.Actions, f.Actions) {
			continue
		}
		failures++
		if failures <= 10 {
			t.Errorf("%s of %s\n is now %s of %s", f.Flow, f.Owner, now.Flow, now.Owner)
		}
	}
	for id, g := range before.Groups {
		if after.Groups[id] != g {
			t.Errorf("group %v is now %v", g, after.Groups[id])
		}
	}
	if failures > 10 {
		t.Errorf("and %d more", failures-10)
	}
}

func clausesOf(all, some openflow.Actions) bool {
	have := slices.Collect(all.All())
	for clause := range some.All() {
		if !slices.Contains(have, clause) {
			return false
		}
	}
	return some.Clauses()
}

// honestPacketsGoWhereTheyWent sends packets between all honest addresses. An address of a hostile pod, Service or
// node, and an external address that no honest object has, are not among them.
func honestPacketsGoWhereTheyWent(t *testing.T, before, after flows.Desired) {
	t.Helper()
	was, err := trace.Of(before)
	if err != nil {
		t.Fatal(err)
	}
	is, err := trace.Of(after)
	if err != nil {
		t.Fatal(err)
	}
	sources := []struct {
		port uint32
		addr string
		mac  model.MAC
	}{
		{model.PortPodMin + 2, "10.244.1.2", model.MAC{0x0a, 0x58, 10, 244, 1, 2}},
		{model.PortPodMin + 3, "10.244.1.3", model.MAC{0x0a, 0x58, 10, 244, 1, 3}},
		{model.PortPodMin + 4, "10.244.1.4", model.MAC{0x0a, 0x58, 10, 244, 1, 4}},
		{model.PortGateway, "10.244.1.1", model.GatewayMAC},
		{model.PortGateway, "203.0.113.7", model.GatewayMAC},
		{model.PortGateway, "203.0.113.200", model.GatewayMAC},
	}
	targets := []string{
		"10.244.1.1", "10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.2.2", "10.244.3.2", "10.96.0.1", dnsAddr, webAddr,
		"10.96.0.11", "10.96.0.77",
		externalAddr, "169.254.87.1", "240.87.0.80", "172.30.0.1", "172.30.0.2", apiServerAddr, "203.0.113.7",
		"127.0.0.1", "169.254.169.254", "0.0.0.0", "255.255.255.255",
	}
	failures, packets := 0, 0
	for _, src := range sources {
		for _, dst := range targets {
			for _, protocol := range []uint8{6, 17} {
				for _, port := range []uint16{53, 80, 443, 5432, 6443, 8080, 30080} {
					p := trace.IP(src.port, netip.MustParseAddr(src.addr), netip.MustParseAddr(dst), protocol, 40000,
						port).WithMACs(src.mac, model.RouterMAC)
					then, now := outcome(was, p), outcome(is, p)
					packets++
					if then == now || documented(dst, then) {
						continue
					}
					failures++
					if failures <= 20 {
						t.Errorf("%s to %s, protocol %d, port %d: %s, before %s", src.addr, dst, protocol, port, now, then)
					}
				}
			}
		}
	}
	t.Logf("%d packets, %d differ", packets, failures)
}

// documented are the packets that docs/services.md leaves to authors of externalIPs: pods' packets to nodes and to the
// API server, and to ports of a ClusterIP that its Service does not have.
func documented(dst, before string) bool {
	return slices.Contains([]string{"172.30.0.1", "172.30.0.2", apiServerAddr}, dst) ||
		strings.HasPrefix(dst, "10.96.") && strings.Contains(before, model.RejectAddr(true).String())
}

func outcome(sw *trace.Switch, p trace.Packet) string {
	r := sw.Run(p, trace.Options{Conntrack: &trace.Conntrack{}})
	if r.Dropped() {
		return "dropped"
	}
	var to []string
	for _, out := range r.Outputs {
		to = append(to, fmt.Sprintf("port %d, %s to %s:%d", out.Port, out.Packet.Src(), out.Packet.Dst(),
			out.Packet.DstPort()))
	}
	return strings.Join(to, "; ")
}

// BenchmarkHostileStart is the time that an agent takes to start beside hostile objects, its API server's included.
func BenchmarkHostileStart(b *testing.B) {
	all := together(honest(), hostile(*size))
	for b.Loop() {
		newWorld(b, all)
	}
}
