//go:build integration

package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

func deployment(name string, replicas, port int) string {
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec: {containers: [{name: c, ports: [{name: main, containerPort: %[3]d}]}]}
`, name, replicas, port)
}

// machine is a network namespace that stands for the machine's own, without other links in it, and everything that a
// lab could leave on the machine.
type machine struct {
	ns podns.Namespace
	// marker is in the environment of every process that the lab starts, wherever it has gone.
	marker string
}

func newMachine(t *testing.T) machine {
	t.Helper()
	ns, err := podns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return machine{ns: ns, marker: fmt.Sprintf("WEFT_LAB_TEST=%d-%d", os.Getpid(), rand.Int64())}
}

// weftLab is the command, run on the machine.
func (m machine) weftLab(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	inner := labtest.Command(t, args...)
	cmd := exec.Command("nsenter", append([]string{"--net=" + m.ns.Path(), "--"}, inner.Args...)...)
	cmd.Env = append(os.Environ(), m.marker)
	return cmd
}

// list is what stands on the machine of a lab: links, processes, mounts, cgroups, files, network namespaces.
func (m machine) list(t *testing.T, name string) map[string]string {
	t.Helper()
	found := map[string]string{}
	links, err := exec.Command("nsenter", "--net="+m.ns.Path(), "--", "ip", "-o", "addr").Output()
	if err != nil {
		t.Fatal(err)
	}
	found["links"] = string(links)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "weft-lab") || strings.Contains(line, "nsfs") || strings.Contains(line, "l-"+name) {
			found["mounts"] += line
		}
	}
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range environments {
		// A process that ended meanwhile is as good as not listed.
		if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte(m.marker)) {
			comm, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "comm"))
			found["processes"] += file + " " + string(comm)
		}
	}
	left, err := sandbox.Group("l-" + name).Leftovers()
	if err != nil {
		t.Fatal(err)
	}
	found["group"] = strings.Join(left, "\n")
	if _, err := os.Stat(filepath.Join(lab.Root, name)); !errors.Is(err, os.ErrNotExist) {
		found["files"] = filepath.Join(lab.Root, name)
	}
	return found
}

// wantNothing fails the test when a lab has left something.
func (m machine) wantNothing(t *testing.T, name string, before map[string]string) {
	t.Helper()
	if diff := cmp.Diff(before, m.list(t, name)); diff != "" {
		t.Fatalf("the machine is not as it was (-before +after):\n%s", diff)
	}
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := labtest.Run(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Twenty pods on two nodes are up within ten seconds, and gone without a trace.
func TestUpAndDown(t *testing.T) {
	const name = "updown"
	m := newMachine(t)
	labtest.Down(t, name)
	before := m.list(t, name)
	dir := labtest.Write(t, map[string]string{"f.yaml": deployment("web", 12, 80) + deployment("db", 8, 5432)})
	begin := time.Now()
	t.Cleanup(func() { labtest.Down(t, name) })
	run(t, m.weftLab(t, "up", "--name="+name, "-f", dir, "--datapath="+string(labtest.Datapath())))
	up := time.Since(begin)
	if up > 10*time.Second {
		t.Errorf("up took %s, want at most 10 s", up)
	}
	if during := m.list(t, name); during["processes"] == "" || during["group"] == "" || during["files"] == "" {
		t.Errorf("the list does not see a lab that stands: %v", during)
	}
	if _, err := labtest.Run(m.weftLab(t, "up", "--name="+name, "-f", dir)); err == nil ||
		!strings.Contains(err.Error(), "is up already") {
		t.Errorf("a second up of the same name: %v", err)
	}
	begin = time.Now()
	r, err := lab.ReadProbe(t.Context(), name, lab.ProbeTimeout)
	if err != nil {
		t.Fatal(err)
	}
	probe := time.Since(begin)
	if len(r.Probes) != 400 || r.Counts[lab.AsExpected] != 400 {
		t.Errorf("%d probes, %v; want 400, all as expected", len(r.Probes), r.Counts)
	}
	begin = time.Now()
	if out := run(t, m.weftLab(t, "down", "--name="+name)); !regexp.MustCompile(
		`^lab "updown" is down: ended \d\d processes, removed /run/weft-lab/updown\n$`).MatchString(out) {
		t.Errorf("down says %q", out)
	}
	t.Logf("2 nodes, 20 pods: up %s, probe of %d pairs %s, down %s", up.Round(time.Millisecond), len(r.Probes),
		probe.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	m.wantNothing(t, name, before)
	out, err := labtest.Run(m.weftLab(t, "down", "--name="+name))
	if err == nil || !strings.Contains(err.Error(), `there is no lab "`+name+`"`) {
		t.Errorf("down without a lab: %q, %v", out, err)
	}
	run(t, m.weftLab(t, "down", "--name="+name, "--ignore-not-found"))
}

// However and whenever `weft-lab up` is ended, nothing stays: by itself after SIGINT, after `weft-lab down` when it was
// killed.
func TestInterrupted(t *testing.T) {
	const name, times = "interrup", 20
	m := newMachine(t)
	labtest.Down(t, name)
	before := m.list(t, name)
	dir := labtest.Write(t, map[string]string{"f.yaml": deployment("web", 6, 80)})
	t.Cleanup(func() { labtest.Down(t, name) })
	args := []string{"up", "--name=" + name, "-f", dir, "--datapath=" + string(labtest.Datapath())}
	begin := time.Now()
	run(t, m.weftLab(t, args...))
	full := time.Since(begin)
	run(t, m.weftLab(t, "down", "--name="+name))
	for i := range times {
		signal := []syscall.Signal{syscall.SIGKILL, syscall.SIGINT}[i%2]
		after := time.Duration(rand.Int64N(int64(full) * 3 / 4))
		cmd := m.weftLab(t, args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after) // the random moment is what is tested
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		t.Logf("%s after %s: %v", signal, after.Round(time.Millisecond), err)
		if signal == syscall.SIGINT && err != nil {
			m.wantNothing(t, name, before)
		}
		if i%5 == 4 {
			// The next up removes what is left, too.
			run(t, m.weftLab(t, "down", "--name="+name, "--ignore-not-found"))
			run(t, m.weftLab(t, args...))
		}
		run(t, m.weftLab(t, "down", "--name="+name, "--ignore-not-found"))
		m.wantNothing(t, name, before)
	}
}

// A lab whose daemon was killed is recognised, and another up replaces it.
func TestUpAfterCrash(t *testing.T) {
	const name = "crash"
	m := newMachine(t)
	dir := labtest.Write(t, map[string]string{"f.yaml": deployment("web", 2, 80)})
	args := []string{"up", "--name=" + name, "-f", dir, "--datapath=" + string(labtest.Datapath())}
	labtest.Down(t, name)
	before := m.list(t, name)
	t.Cleanup(func() { labtest.Down(t, name) })
	run(t, m.weftLab(t, args...))
	pids, err := sandbox.Group("l-" + name).Cgroup().Child("lab").PIDs()
	if err != nil || len(pids) != 1 {
		t.Fatalf("processes of the lab's daemon: %v, %v", pids, err)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := labtest.Run(m.weftLab(t, "status", "--name="+name)); err == nil ||
		!strings.Contains(err.Error(), "has no daemon") {
		t.Errorf("status of a lab without its daemon: %v", err)
	}
	run(t, m.weftLab(t, args...))
	if r, err := lab.ReadProbe(t.Context(), name, lab.ProbeTimeout); err != nil || r.Counts[lab.AsExpected] != 4 {
		t.Errorf("probe after a crash and another up: %v, %v", r.Counts, err)
	}
	run(t, m.weftLab(t, "down", "--name="+name))
	m.wantNothing(t, name, before)
}

// Bad input starts nothing, and all of it is told at once.
func TestBadInput(t *testing.T) {
	const name = "badinput"
	m := newMachine(t)
	labtest.Down(t, name)
	before := m.list(t, name)
	good := labtest.Write(t, map[string]string{"f.yaml": deployment("web", 1, 80)})
	bad := labtest.Write(t, map[string]string{
		"a.yaml": "kind: [\n", "b.yaml": "apiVersion: v1\nkind: Gizmo\nmetadata: {name: g}\n",
		"c.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: c}\nspec: {container: [{name: c}]}\n",
		"d.yaml": deployment("web", 1, 80) + deployment("web", 1,
			80), "e.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: e}\nspec:\n  affinities: {}\n" +
			"  containers: [{name: c, ports: [{containerPort: 1}]}]\n",
	})
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"-f", bad}, []string{"5 problems", "a.yaml:1: not YAML",
			"b.yaml:2: Gizmo g kind: Kubernetes has no kind Gizmo", "c.yaml:4: Pod c spec.container: unknown field",
			"d.yaml:14: Deployment web metadata.name: there are two of Deployment default/web",
			"e.yaml:5: Pod e spec.affinities: unknown field"}},
		{[]string{}, []string{"-f must name a file"}},
		{[]string{"-f", filepath.Join(good, "none.yaml")}, []string{"no such file"}},
		{[]string{"-f", good, "--tunnel=stt"}, []string{`--tunnel "stt": want geneve or vxlan or gre`}},
		{[]string{"-f", good, "--datapath=magic"}, []string{`datapath "magic": want netdev or system`}},
		{[]string{"-f", good, "--ip-family=ipv5"}, []string{`IP family "ipv5": want ipv4, ipv6 or dual`}},
		{[]string{"-f", good, "--set=mtu"}, []string{`--set "mtu": want KEY=VALUE`}},
		{[]string{"-f", good, "--set=mtoo=1400"}, []string{`--set: unknown key "mtoo"`}},
		{[]string{"-f", good, "--set=datapath=netdev"}, []string{"--set datapath=netdev: use --datapath"}},
		{[]string{"-k", good}, []string{"build the kustomization"}},
		{[]string{"-f", good, "--nodes=-1"}, []string{"--nodes -1: want 1 to 50"}},
		{[]string{"-f", good, "--agent=/etc/passwd"}, []string{"the agent /etc/passwd is not an executable program"}},
		// An agent that does not start: found out late, and still nothing stays.
		{[]string{"-f", good, "--agent=/bin/false"}, []string{"start false of node", "it ended"}},
	} {
		_, err := labtest.Run(m.weftLab(t, append([]string{"up", "--name=" + name}, tc.args...)...))
		if err == nil {
			t.Errorf("up %v succeeded", tc.args)
			labtest.Down(t, name)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("up %v:\n%v\nwant %q", tc.args, err, want)
			}
		}
		m.wantNothing(t, name, before)
	}
	if _, err := labtest.Run(m.weftLab(t, "up", "--name=Not-A-Name", "-f", good)); err == nil ||
		!strings.Contains(err.Error(), `name "Not-A-Name"`) {
		t.Errorf("a bad name: %v", err)
	}
}

// Two labs of different names do not notice each other.
func TestSideBySide(t *testing.T) {
	dir := labtest.Write(t, map[string]string{"f.yaml": deployment("web", 3, 80)})
	one, two := labtest.Up(t, "one", "-f", dir), labtest.Up(t, "two", "-f", dir, "--nodes=3", "--tunnel=vxlan")
	for _, l := range []*labtest.Lab{one, two} {
		if r := l.Probe(); r.Counts[lab.AsExpected] != 9 {
			t.Errorf("lab %s: %v, want 9 as expected", l.Name, r.Counts)
		}
	}
	labtest.Down(t, "one")
	if r := two.Probe(); r.Counts[lab.AsExpected] != 9 {
		t.Errorf("lab two after lab one has gone: %v, want 9 as expected", r.Counts)
	}
	if _, err := labtest.Run(labtest.Command(t, "status", "--name=one")); err == nil ||
		!strings.Contains(err.Error(), `there is no lab "one"`) || !strings.Contains(err.Error(), `"two"`) {
		t.Errorf("status of a lab that is gone: %v", err)
	}
}

// An edit of the manifests changes pods, ports, Services and expected results of a lab that stands; a mistake changes
// nothing.
func TestFollowsManifests(t *testing.T) {
	dir := labtest.Write(t, map[string]string{"web.yaml": deployment("web", 2, 80)})
	l := labtest.Up(t, "follow", "-f", dir)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	wait := func(what string, holds func(lab.Status) bool) lab.Status {
		t.Helper()
		var s lab.Status
		testenv.Eventually(t, 20*time.Second, func() error {
			if s = l.Status(); !holds(s) {
				return fmt.Errorf("%s: %+v", what, s)
			}
			return nil
		})
		return s
	}
	kept := l.Pod("web-0")
	write("web.yaml", deployment("web", 4, 80))
	wait("four pods", func(s lab.Status) bool { return len(s.Pods) == 4 })
	if diff := cmp.Diff(kept, l.Pod("web-0"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("a pod that did not change did (-before +after):\n%s", diff)
	}
	if r := l.Probe(); r.Counts[lab.AsExpected] != 16 {
		t.Errorf("after two pods more: %v", r.Counts)
	}
	write("svc.yaml",
		"apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"+
			"spec: {selector: {app: web}, ports: [{port: 8080, targetPort: main}]}\n")
	wait("a Service with 4 endpoints", func(s lab.Status) bool {
		return len(s.Services) == 1 && s.Services[0].Endpoints == 4
	})
	write("web.yaml", deployment("web", 2, 81))
	wait("port 81", func(s lab.Status) bool { return len(s.Pods) == 2 && s.Pods[0].Ports[0].Number == 81 })
	r := l.Probe()
	for _, p := range r.Probes {
		if target := r.Targets[p.To]; target.Kind == "pod" && (target.Number != 81 || p.State != lab.AsExpected) {
			t.Errorf("after the port changed: %+v at %+v", p, target)
		}
	}
	write("bad.yaml", "kind: [")
	if s := wait("a problem", func(s lab.Status) bool {
		return s.Problem != ""
	}); len(s.Pods) != 2 || !strings.Contains(s.Problem, "bad.yaml:1") {
		t.Errorf("with a mistake in the manifests: %+v", s)
	}
	if _, err := labtest.Run(labtest.Command(t, "probe", "--name=follow")); err == nil ||
		!strings.Contains(err.Error(), "bad.yaml:1") {
		t.Errorf("probe does not say that the manifests were not applied: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "bad.yaml")); err != nil {
		t.Fatal(err)
	}
	wait("no problem", func(s lab.Status) bool { return s.Problem == "" })
	write("policy.yaml",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: wall}\nspec: {podSelector: {}}\n")
	testenv.Eventually(t, 20*time.Second, func() error {
		for _, p := range l.Probe().Probes {
			if p.Expected == lab.Deny {
				return nil
			}
		}
		return errors.New("the new policy changes no expected result")
	})
	if err := os.WriteFile(filepath.Join(dir, "node.yaml"),
		[]byte("apiVersion: v1\nkind: Node\nmetadata: {name: other}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	wait("that nodes cannot change", func(s lab.Status) bool { return strings.Contains(s.Problem, "the nodes changed") })
}

// The examples do what README says: the shop's packets do what is expected, and its policies allow what they say.
func TestExamples(t *testing.T) {
	const shop, policies = "../../examples/shop", "../../examples/shop-policies"
	labtest.Up(t, "shop", "-f", shop)
	out, err := labtest.Run(labtest.Command(t, "probe", "--name=shop"))
	if err != nil || !strings.Contains(out, "55 as expected") {
		t.Errorf("probe of the shop: %v\n%s", err, out)
	}
	labtest.Down(t, "shop")
	l := labtest.Up(t, "shop", "-f", shop, "-f", policies)
	r := l.Probe()
	if r.Counts[lab.AsExpected] != len(r.Probes) || len(r.Probes) != 55 {
		t.Errorf("with policies: %v of %d, want 55 as expected", r.Counts, len(r.Probes))
	}
	for _, p := range r.Probes {
		target := r.Targets[p.To]
		if target.Kind != "pod" || p.From == target.Name {
			continue
		}
		from, to := strings.Split(p.From, "-")[0], strings.Split(target.Name, "-")[0]
		want := lab.Deny
		switch {
		case to == "shop/frontend", from == "shop/frontend" && to == "shop/backend" &&
			target.Proto == podns.TCP, from == "shop/backend" && to == "shop/database":
			want = lab.Allow
		}
		if p.Expected != want {
			t.Errorf("%s to %s: expected %s (%s), want %s", p.From, target, p.Expected, p.Why, want)
		}
	}
}

// A difference comes with the packet's way through the pipeline, on both nodes. To have one whatever Weft enforces, a
// foreign flow, which the agents leave alone, drops what is allowed.
func TestTraces(t *testing.T) {
	for _, family := range []lab.Family{lab.IPv4, lab.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			text := "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: p}\nspec:\n  selector: {matchLabels: {a: b}}\n" +
				"  template:\n    metadata: {labels: {a: b}}\n" +
				"    spec: {containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 80, protocol: UDP}]}]}\n"
			l := labtest.Up(t, "trace", "-f", labtest.Write(t, map[string]string{"f.yaml": text}), "--ip-family="+string(family))
			if r := l.Probe(); r.Counts[lab.AsExpected] != 8 {
				t.Fatalf("before: %v", r.Counts)
			}
			for _, protocol := range []string{"tcp", "udp"} {
				if family == lab.IPv6 {
					protocol += "6"
				}
				l.Run("node/node2", "ovs-ofctl", "add-flow", "weft", "table=60,priority=999,reg0=2/0xf,"+protocol+",actions=drop")
			}
			r := l.Probe()
			for _, p := range r.Probes {
				if p.From != r.Targets[p.To].Name {
					if p.State != lab.Differs || !strings.Contains(p.Trace, "on node1:") ||
						!strings.Contains(p.Trace, "and a reply") || !strings.Contains(p.Trace, "on node2:") ||
						!strings.Contains(p.Trace, "60 Forwarding: ") || !strings.Contains(p.Trace, "goto_table:SpoofGuard") ||
						!strings.Contains(p.Trace, "priority 999") {
						t.Errorf("%s to %s, trace:\n%s", p.State, r.Targets[p.To], p.Trace)
					}
				}
			}
			// The flow drops replies to node2's pod, too.
			if r.Counts[lab.Differs] != 4 {
				t.Errorf("%v, want 4 that differ", r.Counts)
			}
		})
	}
}
