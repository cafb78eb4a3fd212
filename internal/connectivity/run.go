package connectivity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/internal/terminal"
)

// Kubectl runs kubectl with an input, and returns what it writes.
type Kubectl interface {
	RunWith(ctx context.Context, input []byte, args ...string) ([]byte, error)
}

// Node is a node that takes part.
type Node struct {
	Name string
	// Addrs are its InternalIPs.
	Addrs []netip.Addr
}

// Options say what to test.
type Options struct {
	// Namespace is created, and deleted at the end unless Keep is set.
	Namespace string
	Keep      bool
	// Image has weftctl, and is on the nodes.
	Image string
	Nodes []Node
	// HostPort is free on the nodes; 0 leaves that test out.
	HostPort int
	// Outside are host:port outside of the cluster.
	Outside []string
	// Start is how long pods may take to start.
	Start time.Duration
	// Progress is told a line for each step.
	Progress func(format string, args ...any)
}

const (
	// pause is between two looks at something that takes time.
	pause = 500 * time.Millisecond
	// cleanTime bounds the end, which happens after an interruption, too.
	cleanTime = 90 * time.Second
	// execsAtOnce is how many clients are asked at the same time.
	execsAtOnce = 16
)

// Run runs all tests. An error is that they could not be run; what was created is gone then, too, and also when the
// context ends.
func Run(ctx context.Context, k Kubectl, o Options) (r Report, err error) {
	begin := time.Now()
	run := &runner{Kubectl: k, world: world{options: o, clients: map[string]pod{}, servers: map[string]pod{}}}
	r = Report{Namespace: o.Namespace, Image: o.Image, Nodes: []string{}}
	for _, n := range o.Nodes {
		r.Nodes = append(r.Nodes, n.Name)
	}
	defer func() {
		if cleaned := run.clean(ctx); err == nil {
			err = cleaned
		}
		r.Tests, r.Seconds = run.results, time.Since(begin).Seconds()
	}()
	if err := run.start(ctx); err != nil {
		return r, err
	}
	for _, t := range tests {
		if err := run.test(ctx, t); err != nil {
			return r, err
		}
	}
	if err := run.create(ctx, policyObject(o.Namespace)); err != nil {
		return r, err
	}
	for _, t := range policyTests {
		if err := run.test(ctx, t); err != nil {
			return r, err
		}
	}
	return r, nil
}

// runner is a run under way.
type runner struct {
	Kubectl
	world
	results []TestResult
}

func (r *runner) create(ctx context.Context, objects ...object) error {
	_, err := r.RunWith(ctx, list(objects...), "create", "--filename=-")
	return err
}

// get reads an object or a list of the namespace.
func (r *runner) get(ctx context.Context, into any, args ...string) error {
	out, err := r.RunWith(ctx, nil, append(append([]string{"get"}, args...), "--namespace="+r.options.Namespace, "--output=json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("read what kubectl get %s says: %w", args[0], err)
	}
	return nil
}

// start creates the pods and waits for them. Those that do not start are failures of a test, and left out of the
// others.
func (r *runner) start(ctx context.Context) error {
	o, begin := r.options, time.Now()
	o.Progress("creating namespace %s with pods on %s", o.Namespace, terminal.Count(len(o.Nodes), "node"))
	if err := r.create(ctx, namespaceObject(o.Namespace)); err != nil {
		return err
	}
	objects := []object{serviceObject(o.Namespace)}
	for i, n := range o.Nodes {
		objects = append(objects,
			podObject(o.Namespace, fmt.Sprint("server-", i+1), n.Name, serverLabel, o.Image, o.HostPort),
			podObject(o.Namespace, fmt.Sprint("client-", i+1), n.Name, clientLabel, o.Image, 0))
	}
	if err := r.create(ctx, objects...); err != nil {
		return err
	}
	pods, err := r.await(ctx)
	if err != nil {
		return err
	}
	starts := TestResult{Test: "pod-start", About: "pods start on every node", Checks: len(pods), Failures: []Failure{},
		Seconds: time.Since(begin).Seconds()}
	probes := TestResult{Test: "probes", About: "the kubelet reaches the pods of its node", Checks: len(pods), Failures: []Failure{}}
	for _, p := range pods {
		switch {
		case !p.running():
			starts.Failures = append(starts.Failures, Failure{From: p.String(), Error: r.whyNot(ctx, p)})
			continue
		case !p.ready():
			probes.Failures = append(probes.Failures, Failure{From: "kubelet of " + p.Spec.NodeName, To: p.String(),
				Error: fmt.Sprintf("its probe fails %s after the start", o.Start)})
		}
		of := r.clients
		if p.Metadata.Labels["app"] == serverLabel {
			of = r.servers
		}
		of[p.Spec.NodeName] = p
	}
	r.note(starts)
	r.note(probes)
	return r.get(ctx, &r.service, "service", serviceName)
}

// await waits until all pods are ready, or the time to start is over.
func (r *runner) await(ctx context.Context) ([]pod, error) {
	deadline := time.Now().Add(r.options.Start)
	for {
		var pods struct {
			Items []pod `json:"items"`
		}
		if err := r.get(ctx, &pods, "pods"); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(pods.Items, func(p pod) bool { return !p.ready() }) || time.Now().After(deadline) {
			slices.SortFunc(pods.Items, func(a, b pod) int { return strings.Compare(a.String(), b.String()) })
			return pods.Items, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// whyNot says why a pod does not start: the last warning about it, or its state.
func (r *runner) whyNot(ctx context.Context, p pod) string {
	var events struct {
		Items []event `json:"items"`
	}
	why := "it is " + strings.ToLower(p.Status.Phase)
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil {
			why = strings.TrimSuffix(w.Reason+": "+w.Message, ": ")
		}
	}
	if err := r.get(ctx, &events, "events"); err != nil {
		return why
	}
	for _, e := range events.Items {
		if e.About.Name == p.Metadata.Name && e.Type == "Warning" {
			why = e.Message
		}
	}
	return fmt.Sprintf("%s after %s: %s", "not started", r.options.Start, why)
}

// note adds a result and tells it.
func (r *runner) note(t TestResult) {
	r.results = append(r.results, t)
	line := fmt.Sprintf("%-15s %s", t.Test, t.outcome())
	switch {
	case t.Skipped != "":
		line += ": " + t.Skipped
	case len(t.Failures) > 0:
		line += fmt.Sprintf(": %s, %s", terminal.CountOf(len(t.Failures), t.Checks, "check"), t.Failures[0])
	default:
		line += fmt.Sprintf(" (%s, %s)", terminal.Count(t.Checks, "check"), seconds(t.Seconds))
	}
	r.options.Progress("%s", line)
}

// test runs one test, and notes its result. The error is that the run ends.
func (r *runner) test(ctx context.Context, t test) error {
	begin := time.Now()
	result := TestResult{Test: t.name, About: t.about, Failures: []Failure{}}
	checks, skipped := t.plan(&r.world)
	if skipped != "" {
		result.Skipped = skipped
		r.note(result)
		return ctx.Err()
	}
	result.Checks = len(checks)
	for {
		result.Failures, result.Detail = r.try(ctx, checks)
		result.Seconds = time.Since(begin).Seconds()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if len(result.Failures) == 0 || time.Since(begin) >= t.within {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	if len(checks) == 0 {
		result.Checks = 1
		result.Failures = []Failure{{From: t.name, Error: "no pods are there to test with"}}
	}
	r.note(result)
	return nil
}

// try tries checks, those of each client in its pod, and returns those that fail.
func (r *runner) try(ctx context.Context, checks []check) (failures []Failure, detail string) {
	byClient := map[string][]int{}
	for i, c := range checks {
		byClient[c.client.Metadata.Name] = append(byClient[c.client.Metadata.Name], i)
	}
	results := make([]Result, len(checks))
	var group errgroup.Group
	group.SetLimit(execsAtOnce)
	for client, which := range byClient {
		group.Go(func() error {
			targets := make([]Target, len(which))
			for j, i := range which {
				targets[j] = checks[i].target
			}
			got, err := r.dial(ctx, client, targets)
			for j, i := range which {
				if err != nil {
					results[i].Error = fmt.Sprintf("cannot run the client: %v", err)
				} else {
					results[i] = got[j]
				}
			}
			return nil
		})
	}
	_ = group.Wait() // errors are results
	failures = []Failure{}
	for i, c := range checks {
		detail = max(detail, results[i].Detail)
		failed, why := results[i].Error != "", results[i].Error
		cannot := strings.HasPrefix(why, "cannot run the client")
		if c.denies && !cannot {
			failed, why = !failed, "the policy denies it, and it is answered"
		}
		if failed {
			failures = append(failures, Failure{From: c.client.String(), To: c.to, Error: strings.TrimSuffix(why+", "+results[i].Detail, ", ")})
		}
	}
	return failures, detail
}

// dial tries targets in a client's pod.
func (r *runner) dial(ctx context.Context, client string, targets []Target) ([]Result, error) {
	input, err := json.Marshal(targets)
	if err != nil {
		return nil, err
	}
	out, err := r.RunWith(ctx, input, "exec", "--stdin", "--namespace="+r.options.Namespace, "--container="+container, client, "--",
		"weftctl", "connectivity", "dial")
	if err != nil {
		return nil, err
	}
	var results []Result
	if err := json.Unmarshal(out, &results); err != nil {
		return nil, fmt.Errorf("read the client's answer: %w", err)
	}
	if len(results) != len(targets) {
		return nil, errors.New("the client's answer is of another version of weftctl")
	}
	return results, nil
}

// clean deletes the namespace, also when the context has ended.
func (r *runner) clean(ctx context.Context) error {
	if r.options.Keep {
		r.options.Progress("namespace %s stays; kubectl delete namespace %[1]s deletes it", r.options.Namespace)
		return nil
	}
	r.options.Progress("deleting namespace %s", r.options.Namespace)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer cancel()
	_, err := r.RunWith(ctx, nil, "delete", "namespace", r.options.Namespace, "--ignore-not-found", "--wait=true",
		fmt.Sprintf("--timeout=%s", cleanTime))
	if err != nil {
		return fmt.Errorf("delete namespace %s: %w", r.options.Namespace, err)
	}
	return nil
}
