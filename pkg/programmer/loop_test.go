package programmer_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// bench is a loop on a switch that behaves.
type bench struct {
	*programmer.Loop
	t  *testing.T
	sw *ofswitch.Fake

	mu      sync.Mutex
	reports map[string]error
	told    map[string]int // how often an error was reported
	sweeps  []programmer.SweepRequest
}

// start runs a loop that knows a cluster of two nodes.
func start(t *testing.T, sw *ofswitch.Fake, attachments ...model.Attachment) *bench {
	t.Helper()
	b := &bench{t: t, sw: sw, reports: map[string]error{}, told: map[string]int{}}
	b.Loop = programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler),
		Report: func(o model.Owner, err error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.reports[o.String()] = err
			if err != nil {
				b.told[o.String()]++
			}
		}, Problem: func(o model.Owner, err error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.reports["problem of "+o.String()] = err
			if err != nil {
				b.told["problem of "+o.String()]++
			}
		}, Sweep: func(r programmer.SweepRequest) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.sweeps = append(b.sweeps, r)
		}})
	b.Submit(state.SetNode{Node: node("n1", 1)})
	b.Submit(state.SetNode{Node: node("n2", 2)})
	for _, a := range attachments {
		b.Submit(podOf(a))
		b.Submit(state.SetAttachment{Attachment: a})
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { stop(); <-ended })
	return b
}

// Attach is the loop's, of a pod that the API server has told of.
func (b *bench) Attach(ctx context.Context, a model.Attachment) error {
	b.Submit(podOf(a))
	return b.Loop.Attach(ctx, a)
}

func podOf(a model.Attachment) state.SetPod {
	return state.SetPod{Pod: policy.Pod{Namespace: a.Pod.Namespace, Name: a.Pod.Name, UID: a.Pod.UID, Node: "n1"}}
}

func node(name string, n byte) model.Node {
	return model.Node{Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{172, 30, 0, n})},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24)}}
}

func pod(name string, n byte) model.Attachment {
	return model.Attachment{ContainerID: "c-" + name, IfName: "eth0", Pod: model.PodRef{Namespace: "ns", Name: name},
		HostIfName: "veth-" + name, OFPort: 16 + uint32(n), MAC: model.MAC{0x0a, 0x58, 10, 244, 1, n}, IPs: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 244, 1, n})}}
}

// holds waits until the switch holds exactly what the loop desires, and that is what a full compilation gives. All
// that was submitted before counts.
func (b *bench) holds(what string) {
	b.t.Helper()
	eventually(b.t, what+": the changes are taken", func() bool { return b.Queued() == 0 })
	if _, err := b.Desired(b.t.Context()); err != nil { // which the loop answers when it has compiled them
		b.t.Fatal(err)
	}
	eventually(b.t, what, func() bool {
		want, err := flows.Compile(b.View())
		if err != nil {
			b.t.Fatal(err)
		}
		actual, err := b.sw.Dump(b.t.Context())
		if err != nil {
			return false
		}
		delta := flows.Diff(actual, want)
		status := b.Status()
		return delta.Empty() && status.Programmed == status.Desired && status.Error == ""
	})
}

var eventually = testenv.Until

func (b *bench) has(text string) bool {
	actual, err := b.sw.Dump(b.t.Context())
	if err != nil {
		return false
	}
	for _, e := range actual.Flows {
		if strings.Contains(e.String(), text) {
			return true
		}
	}
	return false
}

func TestAttachReturnsWhenFlowsAreIn(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check))
	for i := byte(2); i < 30; i++ {
		if err := b.Attach(t.Context(), pod("a", i)); err != nil {
			t.Fatal(err)
		}
		if !b.has(pod("a", i).IPs[0].String()) {
			t.Fatalf("Attach returned before the flows of %s were in", pod("a", i).IPs[0])
		}
		if err := b.Check(t.Context(), pod("a", i).Key()); err != nil {
			t.Error(err)
		}
		if err := b.Detach(t.Context(), pod("a", i).Key()); err != nil {
			t.Fatal(err)
		}
		if b.has(pod("a", i).IPs[0].String()) {
			t.Fatal("Detach returned before the flows were gone")
		}
	}
	if err := b.Check(t.Context(), pod("a", 2).Key()); err == nil {
		t.Error("a pod that was detached counts as programmed")
	}
	if err := b.Detach(t.Context(), model.AttachmentKey{ContainerID: "never"}); err != nil {
		t.Errorf("detaching what never was: %v", err)
	}
	b.holds("flows after 28 pods came and went")
}

// TestRestartTouchesNothing: flows that are right are not sent again, so connections never notice a restart; flows
// whose object was deleted meanwhile are removed, and others' flows stay.
func TestRestartTouchesNothing(t *testing.T) {
	sw := ofswitch.NewFake(flows.Check)
	before := flowsOf(t, pod("a", 2), pod("gone", 3))
	for _, f := range before.Flows {
		sw.Put(f.Flow)
	}
	foreign := openflow.Flow{Key: openflow.Key{Table: 0, Priority: 77, Match: openflow.ParseMatch("in_port=9")},
		Cookie: 0x1}
	sw.Put(foreign)
	b := start(t, sw, pod("a", 2))
	b.holds("first programming")
	for _, d := range sw.Applied() {
		if len(d.Set) > 0 {
			t.Errorf("the restart sent %s again, which was right", d.Set[0])
		}
		for _, f := range d.Delete {
			if !strings.Contains(f.String(), "10.244.1.3") && !strings.Contains(f.Match.String(), "in_port=19") {
				t.Errorf("the restart deleted %s", f)
			}
		}
	}
	if !b.has("in_port=9") {
		t.Error("a foreign flow was deleted")
	}
	if s := b.Status(); s.ForeignFlows != 1 || len(s.Foreign) != 1 ||
		!strings.Contains(s.Foreign[0], `priority=77, match "in_port=9"`) {
		t.Errorf("status names the foreign flows as %d %q", s.ForeignFlows, s.Foreign)
	}
	if b.Status().Repairs != 0 {
		t.Errorf("%d repairs counted at the start", b.Status().Repairs)
	}
}

func flowsOf(t *testing.T, attachments ...model.Attachment) flows.Desired {
	t.Helper()
	s := &model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve), Nodes: map[string]model.Node{
		"n2": node("n2", 2)}, Attachments: map[model.AttachmentKey]model.Attachment{}}
	for _, a := range attachments {
		s.Attachments[a.Key()] = a
	}
	d, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRepairsDrift(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check), pod("a", 2))
	b.holds("first programming")
	ours := flowsOf(t, pod("a", 2))
	var toPod openflow.Flow
	for key, f := range ours.Flows {
		if strings.Contains(key.Match.String(), "nw_dst=10.244.1.2") {
			toPod = f.Flow
		}
	}
	b.sw.Remove(toPod.Key)
	b.holds("a deleted flow is back")
	changed := toPod
	changed.Actions, changed.Cookie = openflow.Actions{}, 0
	b.sw.Put(changed)
	b.holds("an overwritten flow is back")
	stale := toPod
	stale.Match = openflow.ParseMatch("ip,nw_dst=10.99.0.0/16")
	b.sw.Put(stale)
	b.Verify()
	b.holds("a flow that pretends to be ours is gone")
	if got := b.Status().Repairs; got != 3 {
		t.Errorf("%d repairs counted, want 3", got)
	}
}

func TestSwitchRestarts(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check), pod("a", 2))
	b.holds("first programming")
	b.sw.Stop()
	attached := make(chan error, 1)
	go func() { attached <- b.Attach(t.Context(), pod("b", 3)) }()
	eventually(t, "the status says that the switch is away", func() bool { return b.Status().Error != "" })
	select {
	case err := <-attached:
		t.Fatalf("Attach returned (%v) while the switch was away", err)
	default:
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := b.Attach(ctx, pod("c", 4)); !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), "does not answer") {
		t.Errorf("Attach that gave up says %v, want the deadline and the reason", err)
	}
	b.sw.Start()
	if err := <-attached; err != nil {
		t.Fatal(err)
	}
	b.holds("everything is back after the restart")
}

// patient notes how long it is given for the largest bundle.
type patient struct {
	*ofswitch.Fake
	given time.Duration
}

func (s *patient) Apply(ctx context.Context, d openflow.Delta) error {
	if deadline, ok := ctx.Deadline(); ok {
		s.given = max(s.given, time.Until(deadline))
	}
	return s.Fake.Apply(ctx, d)
}

// TestManyFlowsHaveTime: the time for a bundle grows with the flows; a bundle that never ends in time would never be
// in.
func TestManyFlowsHaveTime(t *testing.T) {
	sw := &patient{Fake: ofswitch.NewFake(flows.Check)}
	l := programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler)})
	l.Submit(state.SetNode{Node: node("n1", 1)})
	endpoints := make([]model.Endpoint, 5000)
	for i := range endpoints {
		endpoints[i] = model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), Port: 80, Weight: 1}
	}
	l.Submit(state.SetJoinedService{Service: model.Service{Name: "ns/big", Affinity: time.Hour, Ports: []model.ServicePort{
		{Protocol: model.TCP, Port: 80, ClusterIP: netip.MustParseAddr("10.96.0.1"), Cluster: endpoints}}}})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = l.Run(ctx) }()
	eventually(t, "first programming", func() bool { return l.Status().Programmed > 0 })
	stop()
	<-ended
	if count := l.Status().Flows; count < 10_000 || sw.given < 38*time.Second {
		t.Errorf("%d flows were given %s", count, sw.given)
	}
}

// TestStoppedLoopAnswers: a request that comes during or after the end must not hang: CNI's roll-backs depend on it.
func TestStoppedLoopAnswers(t *testing.T) {
	sw := ofswitch.NewFake(flows.Check)
	sw.Stop()
	l := programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = l.Run(ctx) }()
	during := make(chan error, 1)
	go func() { during <- l.Attach(t.Context(), pod("a", 2)) }()
	eventually(t, "the loop has the request", func() bool { return l.Status().Error != "" })
	stop()
	<-ended
	if err := <-during; err == nil {
		t.Error("a request that the end interrupted was answered as done")
	}
	if err := l.Detach(t.Context(), pod("a", 2).Key()); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("a request after the end: %v", err)
	}
	if _, err := l.Desired(t.Context()); err == nil {
		t.Error("Desired after the end gave no error")
	}
}

// TestChangesCoalesce: what comes while the switch takes a bundle is in the next one.
func TestChangesCoalesce(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	sw := slowSwitch{ofswitch.NewFake(flows.Check), func() { once.Do(func() { close(entered); <-release }) }}
	loop := programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler)})
	loop.Submit(state.SetNode{Node: node("n1", 1)})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	<-entered
	for i := range byte(200) {
		loop.Submit(state.SetNode{Node: node("m"+string('a'+rune(i%26))+string('a'+rune(i/26)), 3+i)})
	}
	close(release)
	if err := loop.Programmed(ctx, loop.Submitted()); err != nil || len(loop.View().Nodes) != 200 {
		t.Errorf("%d other nodes, %v", len(loop.View().Nodes), err)
	}
	if n := len(sw.Applied()); n != 2 {
		t.Errorf("the first bundle and 200 changes took %d bundles", n)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestProgrammed: the question for a revision is answered when everything up to it is in the switch, and not earlier.
func TestProgrammed(t *testing.T) {
	sw := ofswitch.NewFake(flows.Check)
	sw.Stop()
	b := start(t, sw)
	waiting, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.Programmed(waiting, b.Submitted()); err == nil {
		t.Error("settled without a switch")
	}
	sw.Start()
	if err := b.Programmed(t.Context(), b.Submitted()); err != nil {
		t.Fatal(err)
	}
	if s := b.Status(); s.Programmed != s.Desired || s.Flows == 0 {
		t.Errorf("settled with %+v", s)
	}
}

// TestVerifiedRevision: the revision of Verify is programmed when the switch was read, however recently it was read
// before.
func TestVerifiedRevision(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check), pod("a", 2))
	b.holds("first programming")
	for range 3 {
		before := b.sw.Dumps()
		if err := b.Programmed(t.Context(), b.Verify()); err != nil {
			t.Fatal(err)
		}
		if b.sw.Dumps() == before {
			t.Error("answered without a reading")
		}
	}
}

// TestAttachWaitsForThePod: a pod that the API server has not told of, or another of its name, has no flows and its ADD
// is not answered. One that the API server has no longer keeps its flows; another pod of its name closes it.
func TestAttachWaitsForThePod(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check))
	a := pod("a", 2)
	a.Pod.UID = "u"
	attached := make(chan error, 1)
	go func() { attached <- b.Loop.Attach(t.Context(), a) }()
	other := podOf(a)
	other.Pod.UID = "an earlier one"
	b.Submit(other)
	eventually(t, "the loop has the attachment", func() bool { return len(b.View().Attachments) == 1 })
	b.holds("closed")
	if b.has("10.244.1.2") || b.has("in_port=18") {
		t.Error("a pod that is not known has flows")
	}
	if err := b.Check(t.Context(), a.Key()); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("a pod that is not known counts as programmed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error, 1)
	go func() { gaveUp <- b.Loop.Attach(ctx, pod("b", 3)) }()
	eventually(t, "the loop has the other attachment", func() bool { return b.View().Unknown[pod("b", 3).Key()] })
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "has not told") {
		t.Errorf("Attach that gave up says %v, want the cause and the reason", err)
	}
	select {
	case err := <-attached:
		t.Fatalf("Attach returned (%v) before the pod was known", err)
	default:
	}
	b.Submit(podOf(a))
	if err := <-attached; err != nil {
		t.Fatal(err)
	}
	if !b.has("nw_dst=10.244.1.2") || !b.has("in_port=18") {
		t.Error("Attach returned before the pod's flows were in")
	}
	b.Submit(state.DeletePod{Namespace: "ns", Name: "a"})
	if err := b.Programmed(t.Context(), b.Submitted()); err != nil || !b.has("nw_dst=10.244.1.2") || !b.has("in_port=18") {
		t.Errorf("a pod that is attached and that the API server has no longer lost its flows (%v)", err)
	}
	b.Submit(other)
	eventually(t, "a pod that has a successor is closed", func() bool {
		return !b.has("10.244.1.2") && !b.has("in_port=18")
	})

	go func() { attached <- b.Loop.Attach(t.Context(), a) }()
	eventually(t, "Detach answers who still waits", func() bool {
		if err := b.Detach(t.Context(), a.Key()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-attached:
			return err != nil
		default:
			return false
		}
	})
}

// TestForeignFlowsAreNamed: a foreign flow that comes while the agent runs is named at once, without a change of what
// Weft has, and does not count as a repair. Flows that the switch learns are not drift.
func TestForeignFlowsAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sw := ofswitch.NewFake(flows.Check)
		b := start(t, sw, pod("a", 2))
		b.holds("first programming")
		time.Sleep(10 * time.Second) // no reading of the switch is due that would find the flow by chance
		// As one of Weft's own, but for the priority, which events do not tell.
		foreign := openflow.Flow{Key: openflow.Key{Table: 0, Priority: 65535}}
		sw.Put(foreign)
		time.Sleep(2 * time.Second)
		if s := b.Status(); s.ForeignFlows != 1 || !strings.Contains(s.Foreign[0], "table Classifier, priority=65535") ||
			s.Repairs != 0 {
			t.Errorf("named as %q, %d repairs", s.Foreign, s.Repairs)
		}
		dumps := sw.Dumps()
		sw.Put(openflow.Flow{Key: openflow.Key{Table: flows.Affinity, Priority: 1, Match: openflow.ParseMatch("ip")},
			Cookie: flows.Cookie(model.ServiceOwner("x/y"))})
		held, err := openflow.NewActions(openflow.Goto(flows.AnswerHold))
		if err != nil {
			t.Fatal(err)
		}
		sw.Put(openflow.Flow{Key: openflow.Key{Table: flows.AnswerGate, Priority: flows.GatePriority}, Actions: held,
			Cookie: flows.Cookie(model.SelfOwner)})
		time.Sleep(700 * time.Millisecond)
		if got := sw.Dumps(); got != dumps {
			t.Errorf("%d readings after a learned flow and one that the agent renews", got-dumps)
		}
	})
}
