package connectivity

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fake is a cluster in which every target is reached, but for its faults.
type fake struct {
	mu   sync.Mutex
	pods []pod
	// created are the kinds of objects, policy that the policy is there.
	created []string
	policy  bool
	deleted int
	// fails says why a client does not reach a target; empty when it does.
	fails func(client string, t Target) string
	// change changes a pod that was created.
	change func(*pod)
	calls  func(args []string) error
}

func (f *fake) RunWith(ctx context.Context, input []byte, args ...string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls != nil {
		if err := f.calls(args); err != nil {
			return nil, err
		}
	}
	switch strings.Join(args[:2], " ") {
	case "create --filename=-":
		return nil, f.create(input)
	case "get pods":
		return json.Marshal(map[string]any{"items": f.pods})
	case "get service":
		return []byte(`{"spec":{"clusterIPs":["10.96.0.9","fd10:96::9"],"ports":[{"name":"echo","nodePort":1},{"name":"http","nodePort":30001}]}}`), nil
	case "get events":
		return []byte(`{"items":[{"type":"Warning","message":"no address is left","involvedObject":{"name":"server-2"}}]}`),
			nil
	case "exec --stdin":
		var targets []Target
		if err := json.Unmarshal(input, &targets); err != nil {
			return nil, err
		}
		results := make([]Result, len(targets))
		for i, t := range targets {
			results[i].Error = f.fail(args[4], t)
			if t.Size == LargestPacket {
				results[i].Detail = "packet of 1450 bytes"
			}
		}
		return json.Marshal(results)
	case "delete namespace":
		f.deleted++
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("the test does not expect kubectl %q", args)
}

// fail is why a target is not reached.
func (f *fake) fail(client string, t Target) string {
	if f.fails != nil {
		if why := f.fails(client, t); why != "" {
			return strings.TrimPrefix(why, "reached")
		}
	}
	denied := strings.HasSuffix(t.Address, ":8081") || t.Protocol == UDP
	if f.policy && denied && strings.HasPrefix(t.Address, "10.244.") {
		return "no answer within 1s"
	}
	return ""
}

func (f *fake) create(input []byte) error {
	var objects struct {
		Items []struct {
			Kind string `json:"kind"`
			pod
		} `json:"items"`
	}
	if err := json.Unmarshal(input, &objects); err != nil {
		return err
	}
	for _, o := range objects.Items {
		f.created = append(f.created, o.Kind)
		f.policy = f.policy || o.Kind == "NetworkPolicy"
		if o.Kind != "Pod" {
			continue
		}
		p := o.pod
		text := fmt.Sprintf(`{"status":{"phase":"Running","podIPs":[{"ip":"10.244.%s.%d"}],"conditions":[{"type":"Ready","status":"True"}]}}`,
			strings.TrimPrefix(p.Spec.NodeName, "node"), len(f.pods)+1)
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			return err
		}
		if f.change != nil {
			f.change(&p)
		}
		f.pods = append(f.pods, p)
	}
	return nil
}

// options are those of a run on three nodes.
func options(progress *[]string) Options {
	o := Options{Namespace: "weft-connectivity-x", Image: "weft.io/weft:v1", HostPort: 18999,
		Outside: []string{"192.0.2.7:443"}, Start: time.Minute, Progress: func(format string, args ...any) {
			*progress = append(*progress, fmt.Sprintf(format, args...))
		}}
	for i := range 3 {
		o.Nodes = append(o.Nodes, Node{fmt.Sprint("node", i+1),
			[]netip.Addr{netip.AddrFrom4([4]byte{172, 30, 0, byte(i + 1)})}})
	}
	return o
}

// run runs the tests against a fake, with the time of its own.
func run(t *testing.T, f *fake, change func(*Options)) (r Report, progress []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o := options(&progress)
		if change != nil {
			change(&o)
		}
		var err error
		if r, err = Run(t.Context(), f, o); err != nil {
			t.Errorf("%v", err)
		}
	})
	return r, progress
}

// TestPasses: in a cluster without faults every test has checks and passes, a line tells each, and nothing stays.
func TestPasses(t *testing.T) {
	f := &fake{}
	r, progress := run(t, f, nil)
	if !r.Passed() || f.deleted != 1 || len(r.Tests) != 2+len(tests)+len(policyTests) || len(progress) != len(r.Tests)+2 {
		t.Errorf("%+v, deleted %d, progress %q", r, f.deleted, progress)
	}
	for _, test := range r.Tests {
		if test.Checks == 0 || test.Skipped != "" || test.Failures == nil {
			t.Errorf("%+v", test)
		}
	}
	if want := []string{"Namespace", "Service", "Pod", "Pod", "Pod", "Pod", "Pod", "Pod",
		"NetworkPolicy"}; !slices.Equal(f.created, want) {
		t.Errorf("created %q", f.created)
	}
	var b bytes.Buffer
	if err := r.Write(&b, strings.ToUpper); err != nil || !strings.Contains(b.String(), "ok: packet of 1450 bytes") ||
		!strings.Contains(b.String(), "All tests passed on 3 nodes") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

// TestFaults: each fault is named by the test that is about it, and by no other.
func TestFaults(t *testing.T) {
	to := func(part string, protocol Protocol) func(string, Target) string {
		return func(_ string, t Target) string {
			if strings.Contains(t.Address, part) && (protocol == "" || protocol == t.Protocol) {
				return "no answer within 3s"
			}
			return ""
		}
	}
	for test, f := range map[string]*fake{
		"pod-start": {change: func(p *pod) {
			if p.Metadata.Name == "server-2" {
				p.Status.Phase, p.Status.PodIPs, p.Status.Conditions = "Pending", nil, nil
			}
		}},
		"probes": {change: func(p *pod) {
			if p.Metadata.Name == "client-1" {
				p.Status.Conditions = nil
			}
		}},
		"pod-same-node": {fails: func(client string, t Target) string {
			if client == "client-1" && t.Address == "10.244.1.1:8081" {
				return "connection refused"
			}
			return ""
		}},
		"pod-other-node": {fails: func(client string, t Target) string {
			if client == "client-1" && t.Address == "10.244.2.3:8081" {
				return "no answer within 3s"
			}
			return ""
		}},
		"largest-packet": {fails: func(_ string, t Target) string {
			if t.Size == LargestPacket {
				return "no answer within 3s"
			}
			return ""
		}},
		"cluster-ip": {fails: to("10.96.0.9:", UDP)},
		"node-port":  {fails: to("172.30.0.2:30001", "")},
		"host-port":  {fails: to("172.30.0.3:18999", "")},
		"dns":        {fails: to("server.weft-connectivity-x.svc", DNS)},
		"outside":    {fails: to("192.0.2.7:443", TCP)},
	} {
		r, _ := run(t, f, nil)
		var failed []string
		for _, one := range r.Tests {
			if len(one.Failures) > 0 {
				failed = append(failed, one.Test)
			}
		}
		if !slices.Equal(failed, []string{test}) || f.deleted != 1 {
			t.Errorf("%s: failed %q, deleted %d: %+v", test, failed, f.deleted, r.Tests)
		}
	}
	// A policy that denies too much, and one that does not deny, after which all may be reached.
	for test, fails := range map[string]func(f *fake) string{
		"policy-allows": func(f *fake) string { return map[bool]string{true: "no answer within 3s"}[f.policy] },
		"policy-denies": func(f *fake) string { return map[bool]string{true: "reached"}[f.policy] },
	} {
		f := &fake{}
		f.fails = func(_ string, t Target) string { return fails(f) }
		r, _ := run(t, f, nil)
		for _, one := range r.Tests {
			if (len(one.Failures) > 0) != (one.Test == test) {
				t.Errorf("%s: %+v", test, one)
			}
		}
	}
}

// TestStartIsNamed: a pod that does not start is named with its node and the reason.
func TestStartIsNamed(t *testing.T) {
	r, _ := run(t, &fake{change: func(p *pod) {
		if p.Metadata.Name == "server-2" {
			p.Status.Phase, p.Status.PodIPs, p.Status.Conditions = "Pending", nil, nil
		}
	}}, nil)
	if f := r.Tests[0].Failures; len(f) != 1 || f[0].String() != "server-2 (node2): not started after 1m0s: no address "+
		"is left" {
		t.Errorf("%+v", r.Tests[0])
	}
	var b bytes.Buffer
	when := time.Unix(0, 0)
	if err := r.JUnit(&b, when); err != nil {
		t.Fatal(err)
	}
	var suite junitSuite
	if err := xml.Unmarshal(b.Bytes(), &suite); err != nil || suite.Failures != 1 || suite.Tests != len(r.Tests) ||
		!strings.Contains(suite.Cases[0].Failure.Text, "no address is left") {
		t.Errorf("%v\n%s", err, b.String())
	}
	b.Reset()
	if err := r.Write(&b, strings.ToUpper); err != nil || !strings.Contains(b.String(), "pod-start: SERVER-2 (NODE2)") ||
		!strings.Contains(b.String(), "1 OF 12 TESTS FAILED on 3 nodes") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

// TestLeftOut: what cannot be tested says so, and does not fail the run.
func TestLeftOut(t *testing.T) {
	r, _ := run(t, &fake{}, func(o *Options) { o.Nodes, o.Outside, o.HostPort = o.Nodes[:1], nil, 0 })
	out := map[string]string{}
	for _, one := range r.Tests {
		if one.Skipped != "" {
			out[one.Test] = one.Skipped
		}
	}
	want := map[string]string{"pod-other-node": "it takes two nodes", "largest-packet": "it takes two nodes",
		"host-port": "--host-port is 0", "outside": "--outside HOST:PORT names an address to try"}
	if !maps.Equal(out, want) || !r.Passed() {
		t.Errorf("%q, passed %t", out, r.Passed())
	}
}

// TestInterrupted: whatever ends a run, the namespace is deleted; with Keep it stays.
func TestInterrupted(t *testing.T) {
	for _, keep := range []bool{false, true} {
		for _, when := range []string{"get", "exec", "create"} {
			ctx, interrupt := context.WithCancel(t.Context())
			f := &fake{}
			f.calls = func(args []string) error {
				if args[0] == when {
					interrupt()
					return errors.New("interrupted")
				}
				return nil
			}
			var progress []string
			o := options(&progress)
			o.Keep = keep
			_, err := Run(ctx, f, o)
			if err == nil || f.deleted != map[bool]int{false: 1, true: 0}[keep] {
				t.Errorf("%s, keep %t: %v, deleted %d", when, keep, err, f.deleted)
			}
		}
	}
}
