package programmer_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// slowSwitch takes its time for each bundle.
type slowSwitch struct {
	*ofswitch.Fake
	apply func()
}

func (s slowSwitch) Apply(ctx context.Context, d openflow.Delta) error {
	s.apply()
	return s.Fake.Apply(ctx, d)
}

const burstObjects = 500 // of each kind

// burst is one of many changes: endpoints move, pods get labels, policies ports, and nodes come and go.
func burst(i int) state.Change {
	object, version := i/4%burstObjects, i/4/burstObjects
	addr := func(third int) netip.Addr { return netip.AddrFrom4([4]byte{10, 100, byte(third), byte(object)}) }
	switch i % 4 {
	case 0:
		s := model.Service{Name: fmt.Sprint("ns/s", object), Algorithm: model.HashConnection}
		s.Ports = []model.ServicePort{{Protocol: model.TCP, Port: 80, ClusterIP: netip.AddrFrom4([4]byte{10, 96,
			byte(object >> 8), byte(object)}),
			Cluster: []model.Endpoint{{Addr: addr(version), Port: uint16(8080 + version), Weight: 1}}}}
		return state.SetJoinedService{Service: s}
	case 1:
		return state.SetPod{Pod: policy.Pod{Namespace: "ns", Name: fmt.Sprint("p", object), Node: "n2",
			Addrs: []netip.Addr{addr(200)}, Labels: map[string]string{"v": fmt.Sprint(version)}}}
	case 2:
		return state.SetPolicy{Policy: policy.Policy{Namespace: "ns", Name: fmt.Sprint("policy", object%20),
			Ingress: []policy.Rule{{Ports: []policy.Port{{Number: uint16(1 + object + version)}}}}}}
	}
	if n := node(fmt.Sprint("peer", object%100), byte(3+object%100)); version%2 == 0 {
		return state.SetNode{Node: n}
	}
	return state.DeleteNode{Name: fmt.Sprint("peer", object%100)}
}

// attachInBurst attaches and detaches pods, some at a time, while changes come, and returns how long each ADD took.
func attachInBurst(tb testing.TB, loop *programmer.Loop, changes, pods int) (took []time.Duration, longest int) {
	tb.Helper()
	var background, requests sync.WaitGroup
	background.Go(func() {
		for i := range changes {
			loop.Submit(burst(i))
			longest = max(longest, loop.Queued())
		}
	})
	var mu sync.Mutex
	const atOnce = 10
	for worker := range atOnce {
		requests.Go(func() {
			for i := range pods / atOnce {
				a := pod(fmt.Sprintf("w%d-%d", worker, i), byte(2+worker))
				loop.Submit(podOf(a))
				start := time.Now()
				if err := loop.Attach(tb.Context(), a); err != nil {
					tb.Errorf("attach: %v", err)
				}
				mu.Lock()
				took = append(took, time.Since(start))
				mu.Unlock()
				if err := loop.Detach(tb.Context(), a.Key()); err != nil {
					tb.Errorf("detach: %v", err)
				}
			}
		})
	}
	requests.Wait()
	background.Wait()
	return took, longest
}

// TestBurst: thousands of changes at once hold no CNI request up for good, and neither the queue nor the memory grows
// with them, only with the objects that they are about.
func TestBurst(t *testing.T) {
	changes := 10_000
	if testing.Short() {
		changes = 2000
	}
	b := start(t, ofswitch.NewFake(flows.Check))
	took, _ := attachInBurst(t, b.Loop, changes, 100)
	if len(took) != 100 {
		t.Errorf("%d of 100 requests were answered", len(took))
	}
	b.holds("the last of the changes")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	attachInBurst(t, b.Loop, changes, 20)
	b.holds("the same changes again")
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 20<<20 {
		t.Errorf("the second burst, of the same objects, left %d KB", grown>>10)
	}
}

// TestQueueDuringABundle: while the switch takes a bundle, the queue holds one change of each object, the latest; a
// request that waits for an answer is forgotten when its caller gives up.
func TestQueueDuringABundle(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{}, 1000)
	blocking := true
	var mu sync.Mutex
	sw := slowSwitch{ofswitch.NewFake(flows.Check), func() {
		mu.Lock()
		wait := blocking
		mu.Unlock()
		entered <- struct{}{}
		if wait {
			<-gate
		}
	}}
	loop := programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler)})
	loop.Submit(state.SetNode{Node: node("n1", 1)})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := loop.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	open := sync.OnceFunc(func() {
		mu.Lock()
		blocking = false
		mu.Unlock()
		close(gate)
	})
	defer func() { open(); stop(); <-ended }()
	<-entered
	// Setting and deleting are two changes of one object; what was replaced is taken out when it is half of all.
	const most = 2*2*(2*burstObjects+20+100) + 64 // Services and pods, policies, nodes
	for i := range 10_000 {
		loop.Submit(burst(i))
		if n := loop.Queued(); n > most {
			t.Fatalf("%d changes are queued after %d", n, i+1)
		}
	}
	open()
	if err := loop.Programmed(ctx, loop.Submitted()); err != nil {
		t.Fatal(err)
	}
	// What is in the view is what the last change of each object says.
	want := state.New("n1")
	want.Apply(state.SetNode{Node: node("n1", 1)})
	for i := range 10_000 {
		want.Apply(burst(i))
	}
	snapshot, _ := want.Take()
	full, err := flows.Compile(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	got, err := loop.Desired(ctx)
	if err != nil || got.String() != full.String() {
		t.Errorf("the flows are not those of the last changes: %v", err)
	}

	sw.Stop()
	for i := range 200 {
		short, cancel := context.WithTimeout(ctx, 100*time.Microsecond)
		if err := loop.Detach(short, pod(fmt.Sprint("d", i), 2).Key()); err == nil {
			t.Error("detached without a switch")
		}
		cancel()
	}
	eventually(t, "abandoned requests are forgotten", func() bool { return loop.Waiting() == 0 && loop.Queued() == 0 })
}

// BenchmarkBurst is how long an ADD waits for the loop, alone and while ten thousand changes come.
func BenchmarkBurst(b *testing.B) {
	for _, changes := range []int{0, 10_000} {
		b.Run(fmt.Sprint(changes), func(b *testing.B) {
			var all []time.Duration
			for b.Loop() {
				sw := slowSwitch{ofswitch.NewFake(flows.Check), func() { time.Sleep(5 * time.Millisecond) }} // as Open vSwitch
				loop := programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler)})
				loop.Submit(state.SetNode{Node: node("n1", 1)})
				ctx, stop := context.WithCancel(b.Context())
				ended := make(chan struct{})
				go func() { defer close(ended); _ = loop.Run(ctx) }()
				took, _ := attachInBurst(b, loop, changes, 200)
				all = append(all, took...)
				stop()
				<-ended
			}
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}
