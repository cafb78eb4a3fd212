package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/test/bench/result"
	"github.com/weft-cni/weft/test/lab"
)

// script is a harness's cases whose measurements note their order.
type script struct{ order []string }

func (s *script) entry(system string, value float64, fails func(round int) bool) entry {
	return entry{system, func(_ context.Context, round int) (values, error) {
		s.order = append(s.order, system)
		if fails != nil && fails(round) {
			return nil, errors.New("cable pulled")
		}
		return values{"connections": value + float64(round)}, nil
	}}
}

func TestHarnessTakesTurns(t *testing.T) {
	var s script
	run := &result.Run{}
	var progress strings.Builder
	h := harness{rounds: 3, limit: time.Minute, progress: &progress}
	cases := []benchCase{{"connections/same-node", []entry{s.entry("a", 10, nil), s.entry("b", 20, func(round int) bool {
		return round == 1
	}), s.entry("c", 30, nil)}}}
	if err := h.run(t.Context(), cases, run); err != nil {
		t.Fatal(err)
	}
	if want := "a b c b c a c a b"; strings.Join(s.order, " ") != want {
		t.Errorf("the order was %v, want %s", s.order, want)
	}
	got, ok := run.Find("connections/same-node", "connections", "b")
	if want := []result.Sample{{Round: 0, Value: 20}, {Round: 2, Value: 22}}; !ok || !slices.Equal(got.Samples, want) {
		t.Errorf("samples of the one that failed once: %v, want %v", got.Samples, want)
	}
	want := []result.Failure{{Case: "connections/same-node", System: "b", Round: 2, Error: "cable pulled"}}
	if diff := cmp.Diff(want, run.Failures); diff != "" {
		t.Errorf("failures (-want +got):\n%s", diff)
	}
	if got := progress.String(); strings.Count(got, "\n") != 3 || !strings.Contains(got, "round 2 of 3") ||
		!strings.Contains(got, "b failed") {
		t.Errorf("progress:\n%s", got)
	}
}

// A measurement that hangs is a failure, and the others go on; the end of the whole run is an error.
func TestHarnessIsBounded(t *testing.T) {
	hangs := func(ctx context.Context, _ int) (values, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	var s script
	run := &result.Run{}
	cases := []benchCase{{"latency/service", []entry{{"stuck", hangs}, s.entry("a", 1, nil)}}}
	h := harness{rounds: 1, limit: time.Millisecond, progress: io.Discard}
	if err := h.run(t.Context(), cases, run); err != nil {
		t.Fatal(err)
	}
	if len(run.Failures) != 1 || run.Failures[0].System != "stuck" || len(s.order) != 1 {
		t.Errorf("failures %v; the others were called %d times", run.Failures, len(s.order))
	}
	over := errors.New("the time is over")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, over)
	defer cancel()
	err := harness{rounds: 1, limit: time.Minute, progress: io.Discard}.run(ctx, cases, run)
	if !errors.Is(err, over) || !strings.Contains(err.Error(), "latency/service, stuck") {
		t.Errorf("%v, want why, and what was under way", err)
	}
}

func TestChoose(t *testing.T) {
	cases := []benchCase{
		{"throughput/service", []entry{{system: "weft"}}},
		{"connections/service", []entry{{system: "weft"}, {system: "ovs-normal"}}},
		{"connections/same-node", []entry{{system: "ovs-normal"}}},
	}
	var got []string
	for _, c := range choose(cases, regexp.MustCompile("^connections"), regexp.MustCompile("^weft$")) {
		for _, e := range c.entries {
			got = append(got, c.name+" "+e.system)
		}
	}
	if want := []string{"connections/service weft"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if len(cases[1].entries) != 2 {
		t.Error("the filter changed the cases themselves")
	}
}

// bench runs the command, without a child, and returns its output and its error.
func bench(args ...string) (string, error) {
	cmd := newRoot()
	var out strings.Builder
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

func TestList(t *testing.T) {
	out, err := bench("run", "--list")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"connections/across-nodes     weft, ovs-normal, ovs-normal-ct, linux-vxlan\n", "latency/policies             weft\n",
		"attach/16-at-once            weft, bridge+host-local\n", "program/services             weft, raw-bundle\n",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("no line %q in\n%s", line, out)
		}
	}
	out, err = bench("run", "--list", "--cases=^program/s", "--systems=raw", "--quick")
	if want := "program/services             raw-bundle\n"; err != nil || out != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
}

func TestMistakes(t *testing.T) {
	for args, want := range map[string]string{
		"run --rounds=0":          "--rounds 0: want more than 0",
		"run --rounds=-1 --quick": "--rounds -1: want more than 0",
		"run --seconds=-1":        "--seconds -1: want more than 0",
		"run --connections=30000": "at most 20000",
		"run --tunnel=gre":        "--tunnel gre: want one of [vxlan geneve]",
		"run --datapath=dpdk":     "--datapath dpdk: want one of",
		"run --ip-family=dual":    "--ip-family dual: want one of",
		"run --name=Bench":        "--name Bench: want 1 to 6",
		"run --cases=(":           "--cases: error parsing regexp",
		"run more":                "unknown command",
		"diff a":                  "accepts 2 arg(s)",
		"diff --threshold=-1 a b": "--threshold -1",
		"show none.json":          "no such file",
		"paint":                   `unknown command "paint"`,
	} {
		if _, err := bench(strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("bench %s: %v, want %q", args, err, want)
		}
	}
}

// diff ends with the exit code of a problem when something is worse.
func TestDiffCommand(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, value float64) string {
		r := &result.Run{Format: result.Format}
		for round := range 3 {
			r.Add("latency/service", "latency-p50", result.Weft, round, value)
		}
		text, err := r.JSON()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	before, after := file("before.json", 100), file("after.json", 200)
	out, err := bench("diff", before, after)
	if err == nil || err.Error() != "exit code 1" || !strings.Contains(out, "worse beyond the threshold") {
		t.Errorf("%v after\n%s", err, out)
	}
	if out, err := bench("diff", after, before); err != nil || !strings.Contains(out, "better") {
		t.Errorf("the other way: %v after\n%s", err, out)
	}
}

// page writes the page, a plot for each metric and the run, and removes plots that are not made any more.
func TestPageCommand(t *testing.T) {
	docs := t.TempDir()
	stale := filepath.Join(docs, result.PlotDirectory, "stale.svg")
	if err := os.MkdirAll(filepath.Dir(stale), 0o755); err != nil {
		t.Fatal(err)
	}
	r := &result.Run{Format: result.Format}
	r.Add("latency/service", "latency-p50", result.Weft, 0, 100)
	text, err := r.JSON()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{stale, filepath.Join(docs, "run.json")} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := bench("page", filepath.Join(docs, "run.json"), "--docs", docs); err != nil {
		t.Fatal(err)
	}
	var names []string
	if err := filepath.WalkDir(docs, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, docs+"/"))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"benchmarks/latency-p50.svg", "benchmarks/result.json", "benchmarks.md", "run.json"}
	if !slices.Equal(names, want) {
		t.Errorf("the files are %v, want %v", names, want)
	}
}

// The lab accepts what the benchmarks give it, with every policy.
func TestManifests(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f.yaml")
	for _, o := range []options{{Options: full}, {Options: quick}} {
		if err := os.WriteFile(file, []byte(manifests(o.Policies)), 0o600); err != nil {
			t.Fatal(err)
		}
		set, err := lab.Check(lab.Options{Name: "x", Manifests: []string{file}, Family: lab.Dual, Nodes: 2})
		if err != nil {
			t.Fatal(err)
		}
		if len(set.Policies) != o.Policies || len(set.Pods) != 5 || len(set.Services) != 1 {
			t.Errorf("%d policies, %d pods, %d Services; want %d, 5, 1", len(set.Policies), len(set.Pods), len(set.Services),
				o.Policies)
		}
	}
}
