package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-cni/weft/pkg/flows"
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

// The promises. Either is a Service's some of whose endpoints may be reached.
const (
	Allow  Promise = "allow"
	Deny   Promise = "deny"
	Either Promise = "either"
)

// State is what a probe says in the end.
type State string

// The states.
const (
	AsPromised State = "as-promised"
	Differs    State = "differs"
	// NotProgrammed marks Services as long as Weft does not serve them.
	NotProgrammed State = "not-programmed"
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
	missing  bool
}

type backend struct {
	name string
	addr netip.AddrPort
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
	Detail  string `json:"detail,omitempty"`
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
					backends: []backend{{p.key, netip.AddrPortFrom(ip, port.Number)}}})
			}
		}
	}
	for _, s := range l.services() {
		targets, err := serviceTargets(s, v.pods)
		if err != nil {
			return v, err
		}
		v.targets = append(v.targets, targets...)
	}
	var err error
	v.cluster, err = l.cluster(v.pods)
	return v, err
}

// serviceTargets are the ports of a Service at each of its addresses. A headless one has no address to send to.
func serviceTargets(s *corev1.Service, pods []*pod) ([]Target, error) {
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil, nil
	}
	endpoints := endpointSlices(s, pods)
	var targets []Target
	for _, text := range s.Spec.ClusterIPs {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("address of Service %s/%s: %w", s.Namespace, s.Name, err)
		}
		for _, port := range s.Spec.Ports {
			t := Target{Kind: "service", Name: s.Namespace + "/" + s.Name, Addr: ip, Port: podns.Port{Proto: protocolOf(port.Protocol), Number: uint16(port.Port)}}
			for _, slice := range endpoints {
				for _, endpoint := range slice.Endpoints {
					addr := netip.MustParseAddr(endpoint.Addresses[0]) // written by endpointSlices
					for _, p := range slice.Ports {
						if addr.Is4() == ip.Is4() && *p.Name == port.Name {
							name := endpoint.TargetRef.Namespace + "/" + endpoint.TargetRef.Name
							t.backends = append(t.backends, backend{name, netip.AddrPortFrom(addr, uint16(*p.Port))})
						}
					}
				}
			}
			targets = append(targets, t)
		}
	}
	return targets, nil
}

// servicesProgrammed tells whether Weft's pipeline serves Services.
func servicesProgrammed() bool {
	return slices.ContainsFunc(flows.Pipeline, func(t flows.Table) bool { return t.Name == "ServiceLB" })
}

// probe sends packets from one pod to one target.
func (v view) probe(from *pod, t Target) (Probe, error) {
	p := Probe{From: from.key}
	p.Promise, p.Why = v.promise(from, t)
	switch {
	case t.missing:
		p.State, p.Detail = NoProtocol, "this machine's kernel has no "+string(t.Proto)
		return p, nil
	case t.Kind == "service" && !servicesProgrammed():
		p.State, p.Detail = NotProgrammed, "Weft does not serve Services yet"
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
	p.State = Differs
	if v.kept(from, t, p) {
		p.State = AsPromised
	}
	return p, nil
}

// promise says what the policies promise about a target.
func (v view) promise(from *pod, t Target) (Promise, string) {
	if len(t.backends) == 0 {
		return Deny, "no pod is behind it"
	}
	allowed, why := 0, []string{}
	for _, b := range t.backends {
		verdict := v.verdict(from, b, t)
		if verdict.Allowed {
			allowed++
		}
		if !slices.Contains(why, verdict.Why) {
			why = append(why, verdict.Why)
		}
	}
	text := strings.Join(why, " | ")
	switch allowed {
	case len(t.backends):
		return Allow, text
	case 0:
		return Deny, text
	}
	return Either, fmt.Sprintf("%d of %d endpoints are allowed: %s", allowed, len(t.backends), text)
}

func (v view) verdict(from *pod, b backend, t Target) policy.Verdict {
	src, _ := from.ip(b.addr.Addr().Is4())
	return policy.Eval(v.cluster, policy.Packet{Src: src, Dst: b.addr.Addr(), Protocol: policy.Protocol(t.Proto), Port: b.addr.Port()})
}

// kept tells whether packets did what was promised: who answered must be one who may, and somebody must answer who has to.
func (v view) kept(from *pod, t Target, p Probe) bool {
	if p.Outcome != podns.Answered {
		return p.Promise != Allow
	}
	return slices.ContainsFunc(t.backends, func(b backend) bool { return b.name == p.Reached && v.verdict(from, b, t).Allowed })
}
