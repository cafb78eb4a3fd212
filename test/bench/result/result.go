// Package result is what a run of the benchmarks measured, and how people read it: statistics, ratios and aims, a
// comparison of two runs, a table, and a page with plots.
//
// It does no I/O but Read; everything else is computed from a Run. Values may be used from any goroutine as long as
// none changes them.
package result

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Format is the version of the file's format. A reader rejects every other one.
const Format = 1

// Run is one run of the benchmarks.
type Run struct {
	Format   int       `json:"format"`
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"`
	Machine  Machine   `json:"machine"`
	Versions Versions  `json:"versions"`
	Options  Options   `json:"options"`
	// LoadBefore and LoadAfter are the load averages of one minute: what else the machine had to do.
	LoadBefore float64 `json:"loadBefore"`
	LoadAfter  float64 `json:"loadAfter"`
	// Series, Counts and Reached are in the order in which they were measured.
	Series  []Series `json:"series"`
	Counts  []Count  `json:"counts"`
	Reached []Reach  `json:"reached"`
	// Failures are measurements that failed. A run with any of them is incomplete.
	Failures []Failure `json:"failures,omitempty"`
}

// Machine is where the run was.
type Machine struct {
	Processor  string `json:"processor"`
	Processors int    `json:"processors"`
	MemoryMB   int    `json:"memoryMB"`
	Kernel     string `json:"kernel"`
	System     string `json:"system"`
}

// Versions are those of what was measured and of what it was built with.
type Versions struct {
	Weft        string `json:"weft"` // a commit, with -dirty when the working tree had changes
	OpenVSwitch string `json:"openvswitch"`
	Go          string `json:"go"`
}

// Options are those that change what the figures mean.
type Options struct {
	Rounds        int     `json:"rounds"`
	Seconds       float64 `json:"seconds"` // of one measurement of traffic
	Connections   int     `json:"connections"`
	Policies      int     `json:"policies"`
	Services      int     `json:"services"`
	Attachments   int     `json:"attachments"`
	Standing      int     `json:"standingPods"`
	Datapath      string  `json:"datapath"`
	Tunnel        string  `json:"tunnel"`
	AddressFamily string  `json:"addressFamily"`
}

// Series are the values of one metric for one system in one case.
type Series struct {
	Case    string   `json:"case"`
	Metric  string   `json:"metric"`
	System  string   `json:"system"`
	Samples []Sample `json:"samples"`
}

// Sample is what one round measured.
type Sample struct {
	Round int     `json:"round"`
	Value float64 `json:"value"`
}

// Count is a figure that does not depend on how fast the machine is.
type Count struct {
	Case   string `json:"case"`
	System string `json:"system"`
	Name   string `json:"name"`
	Value  int    `json:"value"`
}

// Reach says that a system carried traffic both ways between the ends of a path.
type Reach struct {
	System string `json:"system"`
	Path   string `json:"path"`
	Family string `json:"family"`
}

// Failure is a measurement that failed.
type Failure struct {
	Case   string `json:"case"`
	System string `json:"system"`
	Round  int    `json:"round"`
	Error  string `json:"error"`
}

// Brief is the first line of the error, as far as a page has room for it.
func (f Failure) Brief() string {
	line, _, _ := strings.Cut(f.Error, "\n")
	if len(line) > 200 {
		line = strings.ToValidUTF8(line[:200], "") + "…"
	}
	return line
}

// Add appends a sample to its series.
func (r *Run) Add(kase, metric, system string, round int, value float64) {
	i := slices.IndexFunc(r.Series, func(s Series) bool {
		return s.Case == kase && s.Metric == metric && s.System == system
	})
	if i < 0 {
		i = len(r.Series)
		r.Series = append(r.Series, Series{Case: kase, Metric: metric, System: system})
	}
	r.Series[i].Samples = append(r.Series[i].Samples, Sample{Round: round, Value: value})
}

// Find returns a series, or false.
func (r *Run) Find(kase, metric, system string) (Series, bool) {
	for _, s := range r.Series {
		if s.Case == kase && s.Metric == metric && s.System == system {
			return s, true
		}
	}
	return Series{}, false
}

// Read reads the file of a run.
func Read(file string) (*Run, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &Run{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if r.Format != Format {
		return nil, fmt.Errorf("read %s: its format is %d; this program reads %d", file, r.Format, Format)
	}
	for _, s := range r.Series {
		if _, ok := metricNamed(s.Metric); !ok {
			return nil, fmt.Errorf("read %s: unknown metric %q", file, s.Metric)
		}
	}
	return r, nil
}

// JSON is the content of a run's file.
func (r *Run) JSON() ([]byte, error) {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, err
	}
	return append(text, '\n'), nil
}
