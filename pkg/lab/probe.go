package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/pkg/lab/podns"
	"github.com/weft-cni/weft/pkg/policy"
)

const (
	// dialsAtOnce bounds the attempts under way: each has a thread.
	dialsAtOnce = 128
	// patience is how long an answer is waited for that the policies promise, and silence how long one that they forbid. A
	// lost packet must not pass for a forbidden one: TCP repeats its first after a second.
	patience = 5 * time.Second
	silence  = 2 * time.Second
	// maxTraces bounds how many differences are traced, since one cause often has many.
	maxTraces = 20
)

// Promise is what shall happen to packets.
type Promise string

// The promises. Either is a Service's some of whose endpoints may be reached; Reject, one's without endpoints, which says so at once.
const (
	Allow  Promise = "allow"
	Deny   Promise = "deny"
	Either Promise = "either"
	Reject Promise = "reject"
)

// State is what a probe says in the end.
type State string

// The states.
const (
	AsPromised State = "as-promised"
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

// Probe is one cell: what was promised beside what real packets did.
type Probe struct {
	From string `json:"from"` // namespace/name of a pod
	// To is the number of the target in the report's list.
	To      int     `json:"to"`
	Promise Promise `json:"promise"`
	Why     string  `json:"why"`
	State   State   `json:"state"`
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
	Probes []Probe       `json:"probes"`
	Counts map[State]int `json:"counts"`
	// Problem says why the manifests as they are now are not what was probed.
	Problem string `json:"problem,omitempty"`
}

// ReadProbe has a lab's daemon probe everything.
func ReadProbe(ctx context.Context, name string) (Report, error) {
	var r Report
	err := ask(ctx, name, http.MethodPost, "/v1/probe", &r)
	return r, err
}

// view is the lab at one moment.
type view struct {
	pods    []*pod
	targets []Target
	cluster policy.Cluster
	problem string
}

// probe sends real packets from every pod to every port.
func (l *Lab) probe(ctx context.Context) (Report, error) {
	begin := time.Now()
	v, err := l.view()
	if err != nil {
		return Report{}, err
	}
	r := Report{Lab: l.opt.Name, Targets: v.targets, Probes: make([]Probe, len(v.pods)*len(v.targets)), Counts: map[State]int{}, Problem: v.problem}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(dialsAtOnce)
	for i, p := range v.pods {
		r.From = append(r.From, p.key)
		for j, t := range v.targets {
			group.Go(func() error {
				if groupCtx.Err() != nil {
					return groupCtx.Err()
				}
				probe, err := v.probe(p, t)
				probe.To = j
				r.Probes[i*len(v.targets)+j] = probe
				return err
			})
		}
	}
	if err := group.Wait(); err != nil {
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
				v.targets = append(v.targets, Target{Kind: "pod", Name: p.key, Addr: ip, Port: port, missing: slices.Contains(p.missing, port),
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

// probe sends packets from one pod to one target.
func (v view) probe(from *pod, t Target) (Probe, error) {
	p := Probe{From: from.key}
	p.Promise, p.Why = v.promise(from, t)
	if t.missing {
		p.State, p.Detail = NoProtocol, "this machine's kernel has no "+string(t.Proto)
		return p, nil
	}
	timeout := patience
	if p.Promise == Deny {
		timeout = silence
	}
	answer, err := from.ns.Dial(t.Proto, netip.AddrPortFrom(t.Addr, t.Number), timeout)
	if errors.Is(err, os.ErrClosed) {
		return p, fmt.Errorf("pod %s went away meanwhile; probe again", from.key)
	}
	if err != nil {
		return p, fmt.Errorf("probe from %s to %s: %w", from.key, t, err)
	}
	p.Outcome, p.Reached, p.Detail = answer.Outcome, answer.Name, answer.Detail
	if answer.Source.IsValid() {
		p.Source = answer.Source.Addr().String()
	}
	p.State = Differs
	if v.kept(from, t, p) {
		p.State = AsPromised
	}
	return p, nil
}
