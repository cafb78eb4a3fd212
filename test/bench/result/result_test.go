package result_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/test/bench/result"
)

var update = flag.Bool("update", false, "write what is generated")

// run is a small run of two systems and three rounds.
func run() *result.Run {
	r := &result.Run{
		Format: result.Format, Started: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC), Seconds: 61, LoadBefore: 0.5,
		LoadAfter: 1.25,
		Machine:   result.Machine{Processor: "Example 1", Processors: 2, MemoryMB: 24000, Kernel: "6.1", System: "Debian"},
		Versions: result.Versions{Weft: "0123456789abcdef0123456789abcdef01234567-dirty", OpenVSwitch: "3.1.0",
			Go: "go1.26.0"},
		Options: result.Options{Rounds: 3, Seconds: 0.2, Connections: 500, Policies: 100, Services: 1000, Attachments: 16,
			Standing: 5, Datapath: "netdev", Tunnel: "vxlan", AddressFamily: "ipv4"},
		Counts: []result.Count{
			{Case: "connections/across-nodes", System: result.Weft, Name: "entries", Value: 12},
			{Case: "connections/across-nodes", System: result.OVSCt, Name: "entries", Value: 9},
			{Case: "program/services", System: result.Weft, Name: "flows", Value: 2000},
		},
		Reached: []result.Reach{{System: result.Weft, Path: result.AcrossNodes, Family: "ipv6"}},
	}
	for round, v := range [][2]float64{{900, 1000}, {1800, 2000}, {2850, 3000}} {
		r.Add("connections/across-nodes", "connections", result.Weft, round, v[0])
		r.Add("connections/across-nodes", "connections", result.OVSCt, round, v[1])
	}
	for round, v := range []float64{950, 1700, 2000} {
		r.Add("connections/service", "connections", result.Weft, round, v)
	}
	for round := range 3 {
		r.Add("throughput/across-nodes", "throughput", result.Weft, round, 500)
		r.Add("throughput/across-nodes", "throughput", result.OVS, round, 1000)
		r.Add("attach/single", "add-p50", result.Weft, round, 9)
		r.Add("attach/single", "add-p50", result.Bridge, round, 10)
	}
	return r
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		values  []float64
		q, want float64
	}{
		{[]float64{7}, 0.99, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 3, 2}, 0.5, 2.5},
		{[]float64{4, 1, 3, 2}, 0, 1},
		{[]float64{4, 1, 3, 2}, 1, 4},
		{[]float64{10, 20, 30, 40, 50}, 0.25, 20},
		{[]float64{0, 100}, 0.99, 99},
	} {
		before := slices.Clone(c.values)
		if got := result.Quantile(c.values, c.q); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("quantile %g of %v is %g, want %g", c.q, c.values, got, c.want)
		}
		if !slices.Equal(before, c.values) {
			t.Errorf("the values were reordered: %v", c.values)
		}
	}
	if got := result.Quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("of no values: %g, want NaN", got)
	}
	want := result.Summary{N: 5, Min: 1, Q1: 2, Median: 3, Q3: 4, Max: 5}
	if got := result.Summarize([]float64{5, 3, 1, 4, 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// Ratios are of values of the same round, and a round that one of the two lacks has none.
func TestRatios(t *testing.T) {
	a := result.Series{Samples: []result.Sample{{Round: 0, Value: 2}, {Round: 2, Value: 30}, {Round: 3, Value: 1}}}
	b := result.Series{Samples: []result.Sample{{Round: 2, Value: 10}, {Round: 0, Value: 4}, {Round: 3, Value: 0}}}
	if got := a.Ratios(b); !slices.Equal(got, []float64{0.5, 3}) {
		t.Errorf("%v, want [0.5 3]", got)
	}
	type row struct {
		Name    string
		Median  float64
		Verdict result.Verdict
		Aim     string
	}
	rows := func(r *result.Run) (found []row) {
		for _, ratio := range r.Ratios() {
			found = append(found, row{ratio.Name(), math.Round(ratio.Summary.Median*100) / 100, ratio.Verdict, ratio.Aim})
		}
		return found
	}
	want := []row{
		{"connections/across-nodes connections: weft / ovs-normal-ct", 0.9, result.Met, "≥ 0.90"},
		{"connections/service connections: weft / ovs-normal-ct across-nodes", 0.85, result.Missed, "≥ 0.90"},
		{"throughput/across-nodes throughput: weft / ovs-normal", 0.5, result.NoAim, ""},
		{"attach/single add-p50: weft / bridge+host-local", 0.9, result.Missed, "≤ 0.80"},
	}
	r := run()
	if diff := cmp.Diff(want, rows(r)); diff != "" {
		t.Errorf("ratios (-want +got):\n%s", diff)
	}
	if got := r.Missed(); len(got) != 2 {
		t.Errorf("%d aims are missed, want 2", len(got))
	}
	r.Options.Datapath = "system"
	if got := r.Missed(); len(got) != 3 {
		t.Errorf("on the kernel's datapath %d aims are missed, want also that for throughput", len(got))
	}
}

func TestReadWrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "r.json")
	r := run()
	write(t, file, r)
	got, err := result.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Errorf("written and read (-written +read):\n%s", diff)
	}
	r.Format = 99
	write(t, file, r)
	if _, err := result.Read(file); err == nil || !strings.Contains(err.Error(), "its format is 99") {
		t.Errorf("another format: %v", err)
	}
	r.Format = result.Format
	r.Add("connections/service", "speed", result.Weft, 0, 1)
	write(t, file, r)
	if _, err := result.Read(file); err == nil || !strings.Contains(err.Error(), `unknown metric "speed"`) {
		t.Errorf("an unknown metric: %v", err)
	}
}

func write(t *testing.T, file string, r *result.Run) {
	t.Helper()
	text, err := r.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// scaled is a run in which a system's values of a metric are another multiple.
func scaled(metric, system string, by float64) *result.Run {
	r := run()
	for i, s := range r.Series {
		if s.Metric == metric && s.System == system {
			for j := range s.Samples {
				r.Series[i].Samples[j].Value *= by
			}
		}
	}
	return r
}

func TestDiff(t *testing.T) {
	kinds := func(c result.Comparison) map[string]result.ChangeKind {
		found := map[string]result.ChangeKind{}
		for _, change := range slices.Concat(c.Changes, c.Counts) {
			if change.Kind != result.Same {
				found[change.Name] = change.Kind
			}
		}
		return found
	}
	const (
		rate, ratio = "throughput/across-nodes throughput, weft", "throughput/across-nodes throughput: weft / ovs-normal"
		add         = "attach/single add-p50, weft"
		addRatio    = "attach/single add-p50: weft / bridge+host-local"
	)
	counted := run()
	counted.Counts[0].Value = 13
	other := scaled("throughput", result.Weft, 0.6)
	other.Machine.Kernel = "6.2"
	for name, c := range map[string]struct {
		after *result.Run
		want  map[string]result.ChangeKind
		worse bool
	}{
		"the same": {run(), map[string]result.ChangeKind{}, false},
		"a lower rate, beyond": {scaled("throughput", result.Weft, 0.6),
			map[string]result.ChangeKind{rate: result.Worse, ratio: result.Worse}, true},
		"a lower rate, within": {scaled("throughput", result.Weft, 0.8),
			map[string]result.ChangeKind{rate: result.Worse, ratio: result.Worse}, false},
		"a higher rate": {scaled("throughput", result.Weft, 2),
			map[string]result.ChangeKind{rate: result.Better, ratio: result.Better}, false},
		"a longer time, beyond": {scaled("add-p50", result.Weft, 1.5),
			map[string]result.ChangeKind{add: result.Worse, addRatio: result.Worse}, true},
		"a shorter time": {scaled("add-p50", result.Weft, 0.5),
			map[string]result.ChangeKind{add: result.Better, addRatio: result.Better}, false},
		// The rounds reach from 900 to 2,850: a tenth less is within them.
		"within the spread": {scaled("connections", result.OVSCt, 0.98), map[string]result.ChangeKind{}, false},
		"a count": {counted,
			map[string]result.ChangeKind{"connections/across-nodes entries, weft": result.Moved}, false},
		"another machine": {other, map[string]result.ChangeKind{ratio: result.Worse}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got := result.Diff(run(), c.after, 30, false)
			if diff := cmp.Diff(c.want, kinds(got)); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			if got.Worse() != c.worse {
				t.Errorf("worse beyond the threshold: %t, want %t", got.Worse(), c.worse)
			}
		})
	}
	if got := result.Diff(run(), scaled("throughput", result.Weft, 0.6), 50, false); got.Worse() {
		t.Error("with a threshold of 50 % a loss of 40 % is beyond it")
	}
	only := run()
	only.Series = only.Series[1:]
	gone, added := result.Diff(run(), only, 30, false).Only, result.Diff(only, run(), 30, false).Only
	if len(gone) != 1 || !strings.HasSuffix(gone[0], "only in the old run") {
		t.Errorf("a series that is gone: %q", gone)
	}
	if len(added) != 1 || !strings.HasSuffix(added[0], "only in the new run") {
		t.Errorf("a new series: %q", added)
	}
}

func TestDiffText(t *testing.T) {
	var text strings.Builder
	if err := result.Diff(run(), scaled("throughput", result.Weft, 0.6), 30, false).Print(&text, false); err != nil {
		t.Fatal(err)
	}
	golden(t, "diff.txt", text.String())
}

func TestTable(t *testing.T) {
	r := run()
	r.Failures = []result.Failure{{Case: "latency/service", System: result.Weft, Round: 2, Error: "no route"}}
	var text strings.Builder
	if err := r.Table(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.txt", text.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it):\n%s", file, diff)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.1234: "0.123", 5: "5.00", 12.345: "12.3", 999.4: "999",
		1234: "1,230", 18949: "18,900", 1234567: "1,230,000", -2345: "-2,350", math.NaN(): "–"} {
		if got := result.Number(v); got != want {
			t.Errorf("%g is shown as %s, want %s", v, got, want)
		}
	}
}

// A plot is well-formed, has every system once per case, and its bars are as long as the medians are high.
func TestPlot(t *testing.T) {
	r := run()
	plot := r.Plot("connections")
	decoder := xml.NewDecoder(strings.NewReader(plot))
	widths := []string{}
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, plot)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "rect" {
			for _, a := range start.Attr {
				if a.Name.Local == "width" {
					widths = append(widths, a.Value)
				}
			}
		}
	}
	// The background; medians of 1,800, 2,000 and 1,700, where 3,000 takes 510.
	if want := []string{"860", "306", "340", "289"}; !slices.Equal(widths, want) {
		t.Errorf("rectangles of widths %v, want %v", widths, want)
	}
	for text, want := range map[string]int{">weft<": 2, ">ovs-normal-ct<": 1, ">connections/service<": 1,
		"longer is better": 1} {
		if got := strings.Count(plot, text); got != want {
			t.Errorf("%d times %q, want %d", got, text, want)
		}
	}
	if got := r.Plot("latency-p50"); got != "" {
		t.Errorf("of what was not measured: %s", got)
	}
}

// docs/benchmarks.md and its plots are what the file of the run beside them says.
func TestPageIsGenerated(t *testing.T) {
	docs := filepath.Join("..", "..", "..", "docs")
	r, err := result.Read(filepath.Join(docs, result.PlotDirectory, "result.json"))
	if err != nil {
		t.Fatal(err)
	}
	page, plots, err := r.Page()
	if err != nil {
		t.Fatal(err)
	}
	plots["benchmarks.md"] = page
	for name, want := range plots {
		file := filepath.Join(docs, name)
		if *update {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(got), want); diff != "" {
			t.Errorf("%s is not what its run says (-file +run; -update writes it):\n%s", name, diff)
		}
	}
	text, err := r.JSON()
	if err != nil || !json.Valid(text) {
		t.Errorf("the run as JSON: %v", err)
	}
}
