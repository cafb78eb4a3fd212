package agent

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/model"
)

// record is what fake parts have done, in order.
type record struct {
	mu     sync.Mutex
	events []string
}

func (r *record) add(event string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event)
}

// at is when an event was first recorded; -1 when it was not.
func (r *record) at(event string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Index(r.events, event)
}

func (r *record) count(event string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e == event {
			n++
		}
	}
	return n
}

// fakeParts are the agent's parts, each of which takes a second to become ready and one to end, and does nothing else.
func fakeParts(r *record) []part {
	parts := (&Agent{cfg: config.Default()}).parts(nil)
	for i, p := range parts {
		parts[i].sources = nil
		try := func(ctx context.Context) error {
			r.add("start " + p.name)
			sleep(ctx, time.Second)
			r.add("ready " + p.name)
			return nil
		}
		switch {
		case p.once != nil:
			parts[i].once = try
		case p.sync != nil:
			parts[i].sync = try
		default:
			parts[i].run = func(ctx context.Context, _ <-chan struct{}, ready func()) error {
				_ = try(ctx)
				ready()
				<-ctx.Done()
				return nil
			}
		}
		parts[i].close = func() {
			r.add("ending " + p.name)
			time.Sleep(time.Second)
			r.add("closed " + p.name)
		}
	}
	return parts
}

// runTable runs a table in a bubble and returns what ends it.
func runTable(t *testing.T, table *table) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- table.run(ctx) }()
	return func() error { cancel(); return <-ended }
}

// TestStartAndEnd: each part of the agent starts when those that it is after are ready, and is closed before they end.
func TestStartAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &record{}
		parts := fakeParts(r)
		stop := runTable(t, newTable(parts, func(string, error) {}))
		time.Sleep(50 * time.Second) // less than syncEvery
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			if r.count("start "+p.name) != 1 || r.count("closed "+p.name) != 1 {
				t.Errorf("%s was started %d times and closed %d times", p.name, r.count("start "+p.name), r.count("closed "+p.name))
			}
			for _, before := range p.after {
				if r.at("start "+p.name) < r.at("ready "+before) {
					t.Errorf("%s started before %s was ready", p.name, before)
				}
				if r.at("closed "+p.name) > r.at("ending "+before) {
					t.Errorf("%s ended before %s was closed", before, p.name)
				}
			}
		}
		// What the invariants ask for, whatever the table says.
		for _, order := range [][2]string{
			{"ready " + informersPart, "start " + switchPart},    // nothing is written before the objects are known
			{"ready " + objectsPart, "start " + loopPart},        // one compilation of all
			{"ready " + attachedPart, "start " + switchPart},     // or attached pods lose their flows
			{"ready " + addressesPart, "start " + switchPart},    // or policies lose flows for a moment
			{"ready " + underlayPart, "start " + bridgePart},     // or the gateway changes its MTU
			{"ready " + programmedPart, "start " + confListPart}, // the kubelet sees a node that works
			{"ready " + hostPart, "start " + confListPart},
			{"ready " + restoreWaitPart, "start " + confListPart},
			{"closed CNI server", "ending " + loopPart}, // it rolls back what it has begun
			{"closed " + bridgePart, "ending " + ovsdbPart},
		} {
			if first, second := r.at(order[0]), r.at(order[1]); first < 0 || second < first {
				t.Errorf("%q is event %d, %q %d", order[0], first, order[1], second)
			}
		}
	})
}

// TestStartWaitsForAFailingPart: a part that fails is tried again with growing pauses and named; those after it wait,
// others do not. The end does not wait for it.
func TestStartWaitsForAFailingPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, begun := &record{}, time.Now()
		parts := fakeParts(r)
		var pauses []time.Duration
		problems := map[string]error{}
		last := begun
		for i, p := range parts {
			if p.name == ovsdbPart {
				parts[i].once = func(context.Context) error {
					pauses, last = append(pauses, time.Since(last)), time.Now()
					if time.Since(begun) < time.Minute {
						return errors.New("no answer")
					}
					return nil
				}
			}
		}
		var mu sync.Mutex
		stop := runTable(t, newTable(parts, func(part string, err error) {
			mu.Lock()
			defer mu.Unlock()
			problems[part] = err
		}))
		time.Sleep(50 * time.Second)
		mu.Lock()
		if problems[ovsdbPart] == nil || r.at("start "+attachedPart) >= 0 || r.at("ready health address") < 0 {
			t.Errorf("after 50 seconds: problem %v, events %q", problems[ovsdbPart], r.events)
		}
		mu.Unlock()
		time.Sleep(time.Minute)
		mu.Lock()
		if problems[ovsdbPart] != nil || r.at("ready "+readyPart) < 0 {
			t.Errorf("OVSDB answers, problem %v, events %q", problems[ovsdbPart], r.events)
		}
		mu.Unlock()
		if n := len(pauses); n < 15 || n > 25 || slices.Max(pauses) > maxFirstPause || !slices.IsSorted(pauses) {
			t.Errorf("pauses of %v", pauses)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}

		parts[slices.IndexFunc(parts, func(p part) bool { return p.name == ovsdbPart })].once = func(context.Context) error {
			return errors.New("no answer")
		}
		stop = runTable(t, newTable(parts, func(string, error) {}))
		time.Sleep(time.Second)
		ending := time.Now()
		if err := stop(); err != nil || time.Since(ending) > 5*time.Second {
			t.Errorf("the end took %v: %v", time.Since(ending), err)
		}
	})
}

// TestSync: a part in order is called once a minute and after the changes that concern it, one that fails is called
// soon again, and a change does not wait for a pause.
func TestSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		var fail atomic.Bool
		external := make(chan struct{}, 1)
		table := newTable([]part{{
			name: "p", wokenBy: []change{nodesChanged, kernelChanged},
			sync: func(context.Context) error {
				calls.Add(1)
				if fail.Load() {
					return errors.New("no")
				}
				return nil
			},
			sources: sources{
				kernelChanged: func(context.Context) <-chan struct{} { return external },
			},
		}}, func(string, error) {})
		stop := runTable(t, table)
		called := func(what string, least, most int) {
			t.Helper()
			synctest.Wait()
			if n := int(calls.Swap(0)); n < least || n > most {
				t.Errorf("%s: called %d times, want %d to %d", what, n, least, most)
			}
		}
		called("at the start", 1, 1)
		time.Sleep(10*time.Minute + time.Second)
		called("ten minutes", 10, 10)
		table.wake(servicesChanged, settingsChanged)
		called("changes of others", 0, 0)
		table.wake(servicesChanged, nodesChanged)
		called("a change", 1, 1)
		external <- struct{}{}
		called("a change from elsewhere", 1, 1)
		fail.Store(true)
		table.wake(nodesChanged)
		called("a change", 1, 1)
		time.Sleep(5 * time.Minute)
		called("five minutes with failures", 30, 40)
		table.wake(nodesChanged)
		called("a change in a pause", 1, 1)
		fail.Store(false)
		time.Sleep(maxSyncPause)
		called("tried again", 1, 1)
		time.Sleep(5 * time.Minute)
		called("five minutes in order", 5, 5)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestBrokenPartEndsAll: the error of a part that runs ends the agent, in the usual order.
func TestBrokenPartEndsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, broken := &record{}, errors.New("broken")
		parts := fakeParts(r)
		for i, p := range parts {
			if p.name == "CNI server" {
				parts[i].run = func(ctx context.Context, _ <-chan struct{}, ready func()) error {
					ready()
					sleep(ctx, 30*time.Second)
					return broken
				}
			}
		}
		if err := newTable(parts, func(string, error) {}).run(t.Context()); !errors.Is(err, broken) {
			t.Errorf("ended with %v", err)
		}
		if first, second := r.at("closed "+bridgePart), r.at("ending "+ovsdbPart); first < 0 || second < first {
			t.Errorf("the bridge was closed at %d, OVSDB at %d", first, second)
		}
	})
}

// TestMayFail: parts after one that may fail wait for its first try alone.
func TestMayFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var started atomic.Bool
		stop := runTable(t, newTable([]part{
			{name: "a", mayFail: true, sync: func(context.Context) error { return errors.New("no") }},
			{name: "b", after: []string{"a"}, once: func(context.Context) error { started.Store(true); return nil }},
		}, func(string, error) {}))
		synctest.Wait()
		if !started.Load() {
			t.Error("b waits")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestChangesOf: a snapshot wakes what depends on what it changes.
func TestChangesOf(t *testing.T) {
	now := &model.Snapshot{NodesRevision: 2, ServicesRevision: 1, PodsRevision: 5}
	for _, c := range []struct {
		before model.Snapshot
		want   []change
	}{
		{model.Snapshot{NodesRevision: 2, ServicesRevision: 1, PodsRevision: 4}, []change{viewChanged}},
		{model.Snapshot{NodesRevision: 1, ServicesRevision: 1}, []change{viewChanged, nodesChanged}},
		{model.Snapshot{NodesRevision: 2}, []change{viewChanged, servicesChanged}},
	} {
		if got := changesOf(&c.before, now); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.before, got, c.want)
		}
	}
}
