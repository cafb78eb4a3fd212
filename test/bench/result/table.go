package result

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Number is a value with three significant digits, and with separators of thousands.
func Number(v float64) string {
	if math.IsNaN(v) {
		return "–"
	}
	if v != 0 && math.Abs(v) < 1000 {
		digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
		return strconv.FormatFloat(v, 'f', digits, 64)
	}
	scale := 1.0
	if v != 0 {
		scale = math.Pow(10, math.Floor(math.Log10(math.Abs(v)))-2)
	}
	text := strconv.FormatFloat(math.Round(v/scale)*scale, 'f', 0, 64)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func withUnit(v float64, unit string) string { return strings.TrimSpace(Number(v) + " " + unit) }

// Spread is how far the rounds lie apart.
func (s Summary) Spread() string { return Number(s.Min) + " to " + Number(s.Max) }

// Table shows a run in a terminal.
func (r *Run) Table(w io.Writer) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n\n", r.Circumstances())
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CASE\tMETRIC\tSYSTEM\tMEDIAN\tUNIT\tROUNDS: MIN TO MAX")
	for _, s := range r.Series {
		m, _ := metricNamed(s.Metric)
		sum := s.Summary()
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", s.Case, s.Metric, s.System, Number(sum.Median), m.Unit, sum.Spread())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(&text)
	t = tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "RATIO\tMEDIAN\tAIM\tROUNDS: MIN TO MAX")
	for _, ratio := range r.Ratios() {
		fmt.Fprintf(t, "%s\t%.2f\t%s\t%.2f to %.2f\n", ratio.Name(), ratio.Summary.Median,
			strings.TrimSpace(ratio.Aim+" "+string(ratio.Verdict)), ratio.Summary.Min, ratio.Summary.Max)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(r.Counts) > 0 {
		fmt.Fprintln(&text)
		t = tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
		names := r.countNames()
		fmt.Fprintf(t, "COUNTS\tSYSTEM\t%s\n", strings.ToUpper(strings.Join(names, "\t")))
		for _, row := range r.countRows(names) {
			fmt.Fprintln(t, strings.Join(row, "\t"))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, f := range r.Failures {
		fmt.Fprintf(&text, "FAILED %s, %s, round %d: %s\n", f.Case, f.System, f.Round, f.Error)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// Circumstances name the machine, the versions and the load.
func (r *Run) Circumstances() string {
	return fmt.Sprintf("%s, %d processors, %s MB of memory, Linux %s, %s; Open vSwitch %s, %s, Weft %.12s%s\n"+
		"%s; %s datapath, %s, IP%s; %d rounds; load average %.1f before, %.1f after, %.0f s in all",
		r.Machine.Processor, r.Machine.Processors, Number(float64(r.Machine.MemoryMB)), r.Machine.Kernel, r.Machine.System,
		r.Versions.OpenVSwitch, r.Versions.Go, r.Versions.Weft, dirty(r.Versions.Weft),
		r.Started.UTC().Format("2 January 2006, 15:04 UTC"), datapathName(r.Options.Datapath), r.Options.Tunnel,
		strings.TrimPrefix(r.Options.AddressFamily, "ip"), r.Options.Rounds, r.LoadBefore, r.LoadAfter, r.Seconds)
}

func dirty(commit string) string {
	if strings.HasSuffix(commit, "-dirty") {
		return " with changes"
	}
	return ""
}

func datapathName(name string) string {
	if name == "system" {
		return "kernel"
	}
	return "userspace"
}

// countNames are the names of the counts, in the order in which they came.
func (r *Run) countNames() []string {
	var names []string
	seen := map[string]bool{}
	for _, c := range r.Counts {
		if !seen[c.Name] {
			seen[c.Name] = true
			names = append(names, c.Name)
		}
	}
	return names
}

// countRows are the case, the system and the counts of these names; one that the case does not have is empty.
func (r *Run) countRows(names []string) [][]string {
	type key struct{ kase, system string }
	values, keys := map[key]map[string]string{}, []key{}
	for _, c := range r.Counts {
		k := key{c.Case, c.System}
		if values[k] == nil {
			values[k] = map[string]string{}
			keys = append(keys, k)
		}
		values[k][c.Name] = strconv.Itoa(c.Value)
	}
	var rows [][]string
	for _, k := range keys {
		row := []string{k.kase, k.system}
		for _, name := range names {
			row = append(row, values[k][name])
		}
		rows = append(rows, row)
	}
	return rows
}
