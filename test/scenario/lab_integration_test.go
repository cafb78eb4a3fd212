//go:build integration

package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// TestLab runs every file with real packets on real switches. Files of one family and with the same nodes share a lab,
// one after the other.
func TestLab(t *testing.T) {
	type place struct {
		family lab.Family
		nodes  string
	}
	type file struct {
		name string
		*Scenario
	}
	groups := map[place][]file{}
	all := load(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, family := range all[name].families {
			at := place{family, all[name].nodeSet()}
			groups[at] = append(groups[at], file{name, all[name]})
		}
	}
	for at, files := range groups {
		t.Run(string(at.family), func(t *testing.T) {
			w := &labWorld{t: t, family: at.family, nodes: files[0].nodes}
			for _, one := range files {
				t.Run(one.name, func(t *testing.T) {
					begin := time.Now()
					results, err := one.run(w, at.family)
					if text := describe(results); text != "" {
						t.Errorf("\n%s", text)
					}
					if err != nil {
						t.Fatal(err)
					}
					t.Logf("%d verdicts in %.1f s", len(results), time.Since(begin).Seconds())
				})
			}
		})
	}
}

// nodeSet tells scenarios with the same nodes from others.
func (s *Scenario) nodeSet() string {
	objects := documents{}
	text, _ := s.section("objects.yaml") // Read requires it
	if err := objects.add(text); err != nil {
		return err.Error() // which the run of the scenario reports
	}
	set := fmt.Sprint(s.nodes)
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		if strings.HasPrefix(key, "node ") {
			set += objects[key]
		}
	}
	return set
}

// labWorld is a lab whose manifests change.
type labWorld struct {
	t      *testing.T
	family lab.Family
	nodes  int
	lab    *labtest.Lab
	file   string
	names  names
	ns     map[string]podns.Namespace // of clients
}

func (w *labWorld) known() names { return w.names }

func (w *labWorld) apply(manifests documents) error {
	if w.lab == nil {
		dir := labtest.Write(w.t, map[string]string{"objects.yaml": manifests.text()})
		w.file = filepath.Join(dir, "objects.yaml")
		args := []string{"-f", dir, "--ip-family=" + string(w.family)}
		if w.nodes > 0 {
			args = append(args, fmt.Sprint("--nodes=", w.nodes))
		}
		w.lab = labtest.Up(w.t, "scenario", args...)
		w.names.services = map[string][]netip.Addr{}
		if err := w.listenOutside(); err != nil {
			return err
		}
	}
	next := w.file + ".next" // no manifest by its name
	if err := errors.Join(os.WriteFile(next, []byte(manifests.text()), 0o644), os.Rename(next, w.file)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), testenv.Patience(30*time.Second))
	defer cancel()
	for {
		status, err := w.settled(manifests)
		if err == nil {
			return w.take(status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("apply the manifests in the lab: %w", errors.Join(err, ctx.Err()))
		case <-time.After(pause):
		}
	}
}

// listenOutside answers on port 80 of the host outside.
func (w *labWorld) listenOutside() error {
	ns, err := podns.Open(fmt.Sprintf("/proc/%d/ns/net", w.lab.Status().Outside.Sandbox.Holder.PID))
	if err != nil {
		return err
	}
	responder := podns.NewResponder(ns, outsideName)
	w.t.Cleanup(func() { responder.Close(); _ = ns.Close() })
	_, err = responder.Listen([]podns.Port{{Proto: podns.TCP, Number: 80}})
	return err
}

// settled returns the lab's status when pods, Services and policies are those of the manifests, and all are programmed.
func (w *labWorld) settled(manifests documents) (lab.Status, error) {
	status := w.lab.Status()
	if status.Problem != "" {
		return status, errors.New(status.Problem)
	}
	have := map[string]bool{}
	for _, p := range status.Pods {
		have["pod "+p.Namespace+"/"+p.Name] = true
	}
	for _, s := range status.Services {
		have["service "+s.Namespace+"/"+s.Name] = true
	}
	for _, n := range status.Nodes {
		var policies []report.Policy
		var agent report.Status
		if err := errors.Join(w.ask(n, "/v1/policies", &policies), w.ask(n, "/v1/status", &agent)); err != nil {
			return status, err
		}
		for _, p := range policies {
			kind := "networkpolicy"
			if p.Tier != model.NetworkPolicyTier.String() {
				kind = "clusternetworkpolicy"
			}
			have[kind+" "+p.Policy] = true
		}
		if f := agent.Flows; f.Programmed != f.Desired {
			return status, fmt.Errorf("node %s has programmed revision %d of %d", n.Name, f.Programmed, f.Desired)
		}
		if err := w.compiles(n); err != nil {
			return status, err
		}
	}
	want := map[string]bool{}
	for key := range manifests {
		switch kind, _, _ := strings.Cut(key, " "); kind {
		case "pod", "service", "networkpolicy", "clusternetworkpolicy":
			want[key] = true
		}
	}
	if !maps.Equal(have, want) {
		return status, fmt.Errorf("the lab has %v, want %v", slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(want)))
	}
	return status, nil
}

// compiles compares what weftctl compile says of a node with its switch. They may differ for a moment, as epochs of
// affinity pass.
func (w *labWorld) compiles(n lab.NodeStatus) error {
	agent := api.Client{Socket: n.Files + "/run/weft/agent.sock"}
	p, err := agent.Plan(w.t.Context(), api.PlanRequest{Objects: []json.RawMessage{}, All: true})
	if err != nil {
		return err
	}
	installed, err := agent.Flows(w.t.Context(), "")
	if err != nil {
		return err
	}
	if missing := report.Without(p.Flows, installed); len(p.Flows) == 0 || len(missing)+len(p.Changes) > 0 {
		return fmt.Errorf("weftctl compile on node %s: %d flows, of which the switch lacks %+v; changes %+v", n.Name,
			len(p.Flows), missing, p.Changes)
	}
	return nil
}

// ask asks a node's agent, as weftctl does.
func (w *labWorld) ask(n lab.NodeStatus, path string, v any) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), testenv.Patience(patience))
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", n.Files+"/run/weft/agent.sock")
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, http.NoBody)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return json.NewDecoder(response.Body).Decode(v)
}

// take notes addresses, and opens the networks that packets come from.
func (w *labWorld) take(status lab.Status) error {
	for _, ns := range w.ns {
		_ = ns.Close() // opened again below
	}
	w.names.pods, w.names.nodes, w.names.gateways = map[string]podAddrs{}, map[string][]netip.Addr{},
		map[string][]netip.Addr{}
	w.names.outside, w.ns = status.Outside.Addrs, map[string]podns.Namespace{}
	paths := map[string]string{outsideName: fmt.Sprintf("/proc/%d/ns/net", status.Outside.Sandbox.Holder.PID)}
	for _, n := range status.Nodes {
		w.names.nodes[n.Name] = n.Addrs
		for _, cidr := range n.PodCIDRs {
			w.names.gateways[n.Name] = append(w.names.gateways[n.Name], model.GatewayAddr(cidr))
		}
		paths[n.Name] = fmt.Sprintf("/proc/%d/ns/net", n.Sandbox.Holder.PID)
	}
	for _, p := range status.Pods {
		w.names.pods[p.Namespace+"/"+p.Name] = podAddrs{ips: p.IPs, node: p.Node}
		paths[p.Namespace+"/"+p.Name] = p.NetNS
	}
	for _, s := range status.Services {
		var ips []netip.Addr
		for _, text := range s.IPs {
			if ip, err := netip.ParseAddr(text); err == nil { // a headless one has None
				ips = append(ips, ip)
			}
		}
		w.names.services[s.Namespace+"/"+s.Name] = ips
	}
	for name, path := range paths {
		ns, err := podns.Open(path)
		if err != nil {
			return err
		}
		w.ns[name] = ns
	}
	return nil
}

const (
	// probesAtOnce bounds the probes under way.
	probesAtOnce = 8
	// Connections of a probe: so many at least, and until all that is expected was seen, so many at most.
	leastDials, mostDials = 4, 64
	// patience is how long an answer is waited for, and silence how long one that should not come: TCP repeats a lost SYN
	// after a second.
	patience, silence = 5 * time.Second, 2 * time.Second
	pause             = 50 * time.Millisecond // between looks
)

func (w *labWorld) try(probes []probe) ([]result, error) {
	results, errs := make([]result, len(probes)), make([]error, len(probes))
	slots := make(chan struct{}, probesAtOnce)
	var group sync.WaitGroup
	for i, p := range probes {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots; results[i].step = p.step }()
			// The agents learn of a change one by one.
			for deadline := time.Now().Add(testenv.Patience(10 * time.Second)); ; {
				results[i], errs[i] = w.dial(p)
				if errs[i] != nil || results[i].ok() || time.Now().After(deadline) {
					return
				}
				time.Sleep(pause)
			}
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return results, err
	}
	// Open vSwitch brings its counters up to date about once a second.
	for deadline := time.Now().Add(testenv.Patience(10 * time.Second)); ; time.Sleep(pause) {
		previews, err := w.explain(probes)
		if err == nil || time.Now().After(deadline) {
			for i := range previews {
				results[i].got += wouldBe(previews[i])
			}
			return results, err
		}
	}
}

// explain compares what the policies say of the probes with the flows of the real switches, as weftctl policy explain
// does. It gives the verdicts if the staged policies were enforced: the switches must have counted such packets.
func (w *labWorld) explain(probes []probe) ([]walk.PolicyVerdict, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), testenv.Patience(patience))
	defer cancel()
	nodes, err := lab.TraceNodes(ctx, w.lab.Name)
	if err != nil {
		return nil, err
	}
	cluster, err := walk.New(nodes, walk.Options{})
	if err != nil {
		return nil, err
	}
	var errs []error
	previews := make([]walk.PolicyVerdict, len(probes))
	for i, p := range probes {
		from := walk.Place{Node: p.step.from}
		if pod, is := w.names.pods[p.step.from]; is {
			from = walk.Place{Pod: p.step.from, Node: pod.node}
			if pod.onHost {
				from.Pod = ""
			}
		} else if _, is := w.names.nodes[p.step.from]; !is {
			from = walk.Place{}
		}
		src := cluster.Source(from, p.to.Addr(), w.names.of(p.step.from))
		q := walk.Query{From: from, Src: src, To: p.to, Protocol: p.step.to.protocol.Number()}
		x := cluster.Explain(q)
		previews[i] = x.Preview
		errs = append(errs, explained(x, cluster.Trace(q)), counted(x))
	}
	return previews, errors.Join(errs...)
}

// counted tells of the flows of previews, which the packets of a probe should have met, that have counted none.
func counted(x walk.Explanation) error {
	var errs []error
	for _, path := range x.Paths {
		for _, end := range path.Ends {
			if end.Preview == nil {
				continue
			}
			for _, f := range end.Preview.Took {
				if f.Packets == 0 {
					errs = append(errs, fmt.Errorf("%s to %s: no packet at %s of %s in %s", x.Query.From, x.Query.To, f.Match, f.Owner,
						f.Table))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// dial makes the connections of a probe, until one is not as expected or all that is expected was seen.
func (w *labWorld) dial(p probe) (result, error) {
	p.step.verdict.preview = "" // see explain
	want, seen, last := p.step.verdict, newVerdicts(p.step.verdict), ""
	wait, least := patience, leastDials
	if want.has(dropped, "") {
		wait = silence
	}
	if want.kind == dropped {
		least = 1
	}
	for n := 1; ; n++ {
		answer, err := w.ns[p.step.from].Dial(podns.Proto(p.step.to.protocol), p.to, testenv.Patience(wait))
		kind := map[podns.Outcome]outcome{podns.Answered: reaches, podns.Refused: refused,
			podns.Silent: dropped}[answer.Outcome]
		switch {
		case errors.Is(err, unix.EPROTONOSUPPORT):
			w.t.Logf("%s: this kernel has no %s", p.step.line, p.step.to.protocol)
			return result{step: p.step, got: want.String()}, nil
		case err != nil:
			return result{}, fmt.Errorf("step %q: %w", p.step.line, err)
		case kind != reaches:
			seen.other(kind, want.reasonOf(kind))
		default:
			seen.reached(w.names, answer.Name, answer.Source.Addr())
			if want.sticky && last != "" && last != answer.Name {
				seen.unstable = append(seen.unstable, fmt.Sprintf("%s, then %s", last, answer.Name))
			}
			last = answer.Name
		}
		r := result{step: p.step, got: seen.String(), detail: answer.Detail}
		expected := want.has(kind, answer.Name) && len(seen.unstable) == 0
		if want.sticky && expected {
			r.got = want.String() // a client has but one of them
		}
		if !expected || n >= mostDials || n >= least && r.ok() {
			return r, nil
		}
	}
}

// has reports whether a verdict has an outcome; of reaches, at a pod.
func (v verdict) has(kind outcome, pod string) bool {
	if v.kind == kind && (kind != reaches || slices.Contains(v.pods, pod)) {
		return true
	}
	return v.also != nil && v.also.has(kind, pod)
}

// reasonOf is the reason that is expected: packets do not tell it.
func (v verdict) reasonOf(kind outcome) string {
	if v.kind != kind && v.also != nil {
		return v.also.reasonOf(kind)
	}
	return v.reason
}
