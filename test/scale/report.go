package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a scenario found out.
type report struct {
	Scenario string `json:"scenario"`
	// Mix says what the cluster looks like.
	Mix     string   `json:"mix"`
	Figures []figure `json:"figures"`
	// LoadBefore and LoadAfter are the machine's load averages of one minute: how much else it had to do.
	LoadBefore float64 `json:"loadBefore"`
	LoadAfter  float64 `json:"loadAfter"`
}

// figure is one measured thing. A time that was measured more than once has its median in Value.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Min   float64 `json:"min,omitempty"`
	Max   float64 `json:"max,omitempty"`
	Count int     `json:"count,omitempty"`
	// Aim is what the figure should not exceed; 0 when there is no aim.
	Aim float64 `json:"aim,omitempty"`
}

func (r *report) number(name string, value float64, unit string, aim float64) {
	r.Figures = append(r.Figures, figure{Name: name, Value: value, Unit: unit, Aim: aim})
}

// time adds a duration that was measured once, in milliseconds.
func (r *report) time(name string, d, aim time.Duration) {
	r.number(name, milliseconds(d), "ms", milliseconds(aim))
}

// times adds the median of durations.
func (r *report) times(name string, all []time.Duration, aim time.Duration) {
	if len(all) == 0 {
		return
	}
	sorted := slices.Sorted(slices.Values(all))
	r.Figures = append(r.Figures, figure{
		Name: name, Unit: "ms", Value: milliseconds(sorted[len(sorted)/2]), Min: milliseconds(sorted[0]), Max: milliseconds(
			sorted[len(sorted)-1]),
		Count: len(sorted), Aim: milliseconds(aim),
	})
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (r *report) print(w io.Writer, format string) error {
	if format == "json" {
		return json.NewEncoder(w).Encode(r)
	}
	fmt.Fprintf(w, "%s: %s\nLoad of the machine (one minute): %.1f before, %.1f after; %d processors\n\n", r.Scenario,
		r.Mix, r.LoadBefore, r.LoadAfter, runtime.NumCPU())
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "value\t\taim\tmin\tmax\ttimes\t ")
	for _, f := range r.Figures {
		optional := func(v float64) string {
			if v == 0 {
				return ""
			}
			return text(v)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t %s\n", text(f.Value), f.Unit, optional(f.Aim), optional(f.Min),
			optional(f.Max), optional(float64(f.Count)), f.Name)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}

func text(v float64) string {
	if v == float64(int64(v)) {
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'f', 1, 64)
}

// load is the machine's load average of the last minute, or -1 when it does not say.
func load() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return -1
	}
	first, _, _ := strings.Cut(string(b), " ")
	v, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return -1
	}
	return v
}
