package result

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// Change is how one figure differs between two runs.
type Change struct {
	Name     string
	Unit     string
	Old, New Summary
	// Percent is how much higher the new median is.
	Percent float64
	Kind    ChangeKind
	// Beyond is set on a worse one that is beyond the threshold.
	Beyond bool
}

// ChangeKind says what a change means.
type ChangeKind string

// The kinds. A figure is the Same when the rounds' middle halves overlap: the runs do not tell them apart.
const (
	Same   ChangeKind = "same"
	Better ChangeKind = "better"
	Worse  ChangeKind = "worse"
	Moved  ChangeKind = "changed" // a count
)

// Comparison is how two runs differ.
type Comparison struct {
	// RatiosOnly says that the machines differ, so that the values themselves were not compared.
	RatiosOnly bool
	Changes    []Change
	// Counts are those that differ.
	Counts []Change
	// Only are figures that one of the runs lacks.
	Only []string
}

// Worse reports whether anything became worse beyond the threshold.
func (c Comparison) Worse() bool {
	for _, change := range c.Changes {
		if change.Beyond {
			return true
		}
	}
	return false
}

// Diff compares two runs. A figure that became worse by more than the threshold, in percent, and whose rounds tell it
// from the old one, is beyond it. With ratiosOnly, or between different machines, only ratios and counts are compared.
func Diff(before, after *Run, threshold float64, ratiosOnly bool) Comparison {
	c := Comparison{RatiosOnly: ratiosOnly || before.Machine != after.Machine}
	if !c.RatiosOnly {
		for _, s := range before.Series {
			m, _ := metricNamed(s.Metric)
			name := fmt.Sprintf("%s %s, %s", s.Case, s.Metric, s.System)
			if other, ok := after.Find(s.Case, s.Metric, s.System); ok {
				c.Changes = append(c.Changes, compare(name, m, s.Summary(), other.Summary(), threshold))
			} else {
				c.Only = append(c.Only, name+": only in the old run")
			}
		}
		for _, s := range after.Series {
			if _, ok := before.Find(s.Case, s.Metric, s.System); !ok {
				c.Only = append(c.Only, fmt.Sprintf("%s %s, %s: only in the new run", s.Case, s.Metric, s.System))
			}
		}
	}
	for _, old := range before.Ratios() {
		for _, now := range after.Ratios() {
			if now.Name() == old.Name() {
				m := old.Metric
				m.Unit = "×"
				c.Changes = append(c.Changes, compare(old.Name(), m, old.Summary, now.Summary, threshold))
			}
		}
	}
	for _, old := range before.Counts {
		for _, now := range after.Counts {
			if old.Case == now.Case && old.System == now.System && old.Name == now.Name && old.Value != now.Value {
				change := Change{Name: fmt.Sprintf("%s %s, %s", old.Case, old.Name, old.System), Kind: Moved,
					Old: Summarize([]float64{float64(old.Value)}), New: Summarize([]float64{float64(now.Value)})}
				change.Percent = percent(change.Old.Median, change.New.Median)
				c.Counts = append(c.Counts, change)
			}
		}
	}
	return c
}

func percent(before, after float64) float64 {
	if before == 0 {
		return math.Inf(1)
	}
	return 100 * (after - before) / before
}

func compare(name string, m Metric, before, after Summary, threshold float64) Change {
	c := Change{Name: name, Unit: m.Unit, Old: before, New: after, Percent: percent(before.Median, after.Median)}
	switch {
	case before.Q1 <= after.Q3 && after.Q1 <= before.Q3:
		c.Kind = Same
	case (after.Median > before.Median) == m.Higher:
		c.Kind = Better
	default:
		c.Kind = Worse
		// As a loss of rate: twice the time is half the rate.
		lost := 100 * (1 - after.Median/before.Median)
		if !m.Higher {
			lost = 100 * (1 - before.Median/after.Median)
		}
		c.Beyond = lost > threshold
	}
	return c
}

// Print shows a comparison. Without all, figures that the runs do not tell apart are only counted.
func (c Comparison) Print(w io.Writer, all bool) error {
	var text strings.Builder
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	if c.RatiosOnly {
		fmt.Fprintln(&text, "Ratios and counts only: values of different machines do not compare.")
	}
	fmt.Fprintln(t, "FIGURE\tOLD\tNEW\tCHANGE\t")
	same := 0
	for _, change := range append(c.Changes, c.Counts...) {
		if change.Kind == Same {
			same++
			if !all {
				continue
			}
		}
		kind := string(change.Kind)
		if change.Beyond {
			kind += " beyond the threshold"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%+.0f %%\t%s\n", change.Name, withUnit(change.Old.Median, change.Unit),
			withUnit(change.New.Median, change.Unit), change.Percent, kind)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(&text, "%d figures, of which %d are the same within the spread of their rounds; %d counts differ.\n",
		len(c.Changes), same, len(c.Counts))
	for _, line := range c.Only {
		fmt.Fprintln(&text, line)
	}
	_, err := io.WriteString(w, text.String())
	return err
}
