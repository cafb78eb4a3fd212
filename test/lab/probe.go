package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/test/lab/podns"
)

// ProbeTimeout is how long a probe waits for an expected answer by default.
const ProbeTimeout = 5 * time.Second

const (
	// attemptsAtOnce bounds the attempts under way: each has a thread.
	attemptsAtOnce = 128
	// askedAtOnce bounds, for each processor, those of them that should be answered: more would only wait for each other,
	// and on a slow machine until packets are lost. So they go as fast as the machine; one that is not answered holds the
	// others up for holdUp.
	askedAtOnce = 4
	holdUp      = 250 * time.Millisecond
	// silence is how long an answer is waited for at least that should not come. A lost packet must not pass for a
	// forbidden one: TCP repeats its first after a second.
	silence = 2 * time.Second
	// maxTraces bounds how many differences are traced, since one cause often has many.
	maxTraces = 20
)

// Expectation is the result that packets should have.
type Expectation string

// The expectations. Either is for a Service of which only some endpoints may be reached; Reject is for one without
// endpoints, whose clients are told at once.
const (
	Allow  Expectation = "allow"
	Deny   Expectation = "deny"
	Either Expectation = "either"
	Reject Expectation = "reject"
)

// State is what a probe says in the end.
type State string

// The states.
const (
	AsExpected State = "as-expected"
	Differs    State = "differs"
	// NoProtocol marks ports of a protocol that this machine's kernel does not have.
	NoProtocol State = "no-protocol"
)

// Target is a column of the matrix: a port of a pod or a Service at one address.
type Target struct {
	// Kind is pod or service.
	Kind string     `json:"kind"`
	Name string     `json:"name"` // namespace/name
	Addr netip.Addr `json:"address"`
	podns.Port
	// backends are where packets to a Service may end, and what its name stands for.
	backends []backend
	// local says that only endpoints on the sender's node are meant.
	local   bool
	missing bool
}

// backend is a pod behind a target, with its state as an endpoint.
type backend struct {
	name           string
	node           string
	addr           netip.AddrPort
	ready, leaving bool
}

func (t Target) String() string { return fmt.Sprintf("%s %s %s", t.Kind, t.Name, t.Port) }

// Probe is one cell: the expected and the observed result.
type Probe struct {
	From string `json:"from"` // namespace/name of a pod
	// To is the number of the target in the report's list.
	To       int         `json:"to"`
	Expected Expectation `json:"expected"`
	Why      string      `json:"why"`
	State    State       `json:"state"`
	// Outcome is what the packets did; empty when none were sent.
	Outcome podns.Outcome `json:"outcome,omitempty"`
	// Reached is the pod that answered.
	Reached string `json:"reached,omitempty"`
	// Source is the sender's address as that pod saw it.
	Source string `json:"source,omitempty"`
	Detail string `json:"detail,omitempty"`
	// Trace is the packet's way through the pipeline, for some of the probes that differ.
	Trace string `json:"trace,omitempty"`
}

// Report is a reachability matrix.
type Report struct {
	Lab     string   `json:"lab"`
	Seconds float64  `json:"seconds"`
	From    []string `json:"from"`
	Targets []Target `json:"targets"`
	// Probes are all cells, row by row.
	Probes []Probe `json:"probes"`
	// Slowest is how many seconds the slowest answer took: what is forbidden was waited for at least twice as long, up to
	// the probe's timeout.
	Slowest float64       `json:"slowest"`
	Counts  map[State]int `json:"counts"`
	// Problem says why the manifests as they are now are not what was probed.
	Problem string `json:"problem,omitempty"`
}

// ReadProbe has a lab's daemon probe everything. It waits for an expected answer until the timeout.
func ReadProbe(ctx context.Context, name string, timeout time.Duration) (Report, error) {
	var r Report
	err := ask(ctx, name, http.MethodPost, "/v1/probe?timeout="+timeout.String(), &r)
	return r, err
}

// serveProbe answers ReadProbe.
func (l *Lab) serveProbe(w http.ResponseWriter, r *http.Request) {
	if !l.progress.done() {
		http.Error(w, "the lab is not up yet", http.StatusServiceUnavailable)
		return
	}
	timeout, err := time.ParseDuration(r.FormValue("timeout"))
	if err != nil || timeout <= 0 {
		http.Error(w, fmt.Sprintf("probe with the timeout %q: want a time, more than 0", r.FormValue("timeout")),
			http.StatusBadRequest)
		return
	}
	report, err := l.probe(r.Context(), timeout)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, report)
}

// view is the lab at one moment.
type view struct {
	pods    []*pod
	targets []Target
	cluster policy.Cluster
	problem string
}

// probe sends real packets from every pod to every port: first where an answer is expected, which tells how fast that
// goes here and now, then where none is.
func (l *Lab) probe(ctx context.Context, timeout time.Duration) (Report, error) {
	begin := time.Now()
	v, err := l.view()
	if err != nil {
		return Report{}, err
	}
	r := Report{Lab: l.opt.Name, Targets: v.targets, Probes: make([]Probe, 0, len(v.pods)*len(v.targets)),
		Counts: map[State]int{}, Problem: v.problem}
	for _, p := range v.pods {
		r.From = append(r.From, p.key)
		for j, t := range v.targets {
			expected, why := v.expected(p, t)
			r.Probes = append(r.Probes, Probe{From: p.key, To: j, Expected: expected, Why: why})
		}
	}
	should := func(p Expectation) bool { return p == Allow || p == Reject }
	slowest, err := v.send(ctx, r.Probes, should, timeout, askedAtOnce*runtime.GOMAXPROCS(0))
	if err != nil {
		return Report{}, err
	}
	r.Slowest = slowest.Seconds()
	needNot := func(p Expectation) bool { return !should(p) }
	if _, err := v.send(ctx, r.Probes, needNot, min(timeout, max(silence, 2*slowest)), attemptsAtOnce); err != nil {
		return Report{}, err
	}
	traces := 0
	for i := range r.Probes {
		p := &r.Probes[i]
		r.Counts[p.State]++
		if p.State == Differs && traces < maxTraces {
			traces++
			p.Trace = l.trace(ctx, v.pods[i/len(v.targets)], v.targets[p.To], p.Outcome == podns.Answered, v.pods)
		}
	}
	r.Seconds = time.Since(begin).Seconds()
	return r, nil
}

// view takes a copy of what is probed, so that the manifests may change meanwhile.
func (l *Lab) view() (view, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := view{problem: l.problem}
	for _, p := range l.sortedPodsLocked() {
		c := *p
		v.pods = append(v.pods, &c)
	}
	for _, p := range v.pods {
		for _, ip := range p.ips {
			for _, port := range portsOf(p.object) {
				v.targets = append(v.targets, Target{Kind: "pod", Name: p.key, Addr: ip, Port: port,
					missing:  slices.Contains(p.missing, port),
					backends: []backend{{name: p.key, node: p.node.name, addr: netip.AddrPortFrom(ip, port.Number), ready: true}}})
			}
		}
	}
	for _, s := range l.services() {
		v.targets = append(v.targets, l.serviceTargets(s, v.pods)...)
	}
	var err error
	v.cluster, err = l.cluster(v.pods)
	return v, err
}

// send makes the probes of some expectations, no more than so many at once of those that are not held up, and says how
// long the slowest answer took.
func (v view) send(ctx context.Context, probes []Probe, some func(Expectation) bool, timeout time.Duration,
	atOnce int) (time.Duration, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(attemptsAtOnce)
	slots := make(chan struct{}, atOnce)
	took := make([]time.Duration, len(probes))
	for i := range probes {
		p := &probes[i]
		if !some(p.Expected) {
			continue
		}
		slots <- struct{}{}
		leave := sync.OnceFunc(func() { <-slots })
		heldUp := time.AfterFunc(holdUp, leave)
		group.Go(func() error {
			defer heldUp.Stop()
			defer leave()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			begin := time.Now()
			err := v.probe(v.pods[i/len(v.targets)], v.targets[p.To], p, timeout)
			if p.Outcome == podns.Answered {
				took[i] = time.Since(begin)
			}
			return err
		})
	}
	err := group.Wait()
	return slices.Max(append(took, 0)), err
}

// probe sends packets from one pod to one target, and says what they did.
func (v view) probe(from *pod, t Target, p *Probe, timeout time.Duration) error {
	if t.missing {
		p.State, p.Detail = NoProtocol, "this machine's kernel has no "+string(t.Proto)
		return nil
	}
	answer, err := from.ns.Dial(t.Proto, netip.AddrPortFrom(t.Addr, t.Number), timeout)
	if errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("pod %s went away meanwhile; probe again", from.key)
	}
	if err != nil {
		return fmt.Errorf("probe from %s to %s: %w", from.key, t, err)
	}
	p.Outcome, p.Reached, p.Detail = answer.Outcome, answer.Name, answer.Detail
	if answer.Source.IsValid() {
		p.Source = answer.Source.Addr().String()
	}
	p.State = Differs
	if v.kept(from, t, *p) {
		p.State = AsExpected
	}
	return nil
}
