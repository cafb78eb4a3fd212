package conformance

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Spec is one spec that was run, or a step of the suite itself that failed.
type Spec struct {
	Name    string
	Took    time.Duration
	Failure string // empty if it did not fail
	Skipped string // why it skipped itself
}

// Read returns what the JUnit report of a run contains, without the specs that were not chosen: failed ones first,
// then those that skipped themselves, each by name.
func Read(file string) ([]Spec, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	type outcome struct {
		Message string `xml:"message,attr"`
	}
	var report struct {
		Cases []struct {
			Name    string   `xml:"name,attr"`
			Status  string   `xml:"status,attr"`
			Seconds float64  `xml:"time,attr"`
			Failure *outcome `xml:"failure"`
			Error   *outcome `xml:"error"`
			Skipped *outcome `xml:"skipped"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(data, &report); err != nil {
		return nil, fmt.Errorf("read the report %s: %w", file, err)
	}
	var specs []Spec
	for _, c := range report.Cases {
		name, isSpec := strings.CutPrefix(c.Name, "[It] ")
		s := Spec{Name: labels.ReplaceAllString(name, ""), Took: time.Duration(c.Seconds * float64(time.Second))}
		switch {
		case c.Status == "passed" && isSpec:
		case c.Status == "skipped" && c.Skipped != nil && strings.HasPrefix(c.Skipped.Message, skippedItself):
			s.Skipped = strings.TrimPrefix(c.Skipped.Message, skippedItself)
		case c.Status == "passed" || c.Status == "skipped" || c.Status == "pending":
			continue
		default:
			s.Failure = c.Status
			for _, o := range []*outcome{c.Failure, c.Error} {
				if o != nil {
					s.Failure += ": " + o.Message
				}
			}
		}
		specs = append(specs, s)
	}
	slices.SortFunc(specs, compare)
	return specs, nil
}

func compare(a, b Spec) int {
	return cmp.Or(cmp.Compare(a.rank(), b.rank()), strings.Compare(a.Name, b.Name))
}

// labels are what Ginkgo appends to a spec's name.
var labels = regexp.MustCompile(` \[sig-network[^\]]*\]$`)

// skippedItself is how the report marks a spec that was chosen and found that it cannot be run.
const skippedItself = "skipped - "

// rank is where the spec is listed.
func (s Spec) rank() int {
	switch {
	case s.Failure != "":
		return 0
	case s.Skipped != "":
		return 1
	}
	return 2
}

// Failed counts the specs that failed.
func Failed(specs []Spec) int {
	n := 0
	for _, s := range specs {
		if s.Failure != "" {
			n++
		}
	}
	return n
}

// Passed counts the specs that passed.
func Passed(specs []Spec) int {
	n := 0
	for _, s := range specs {
		if s.rank() == 2 {
			n++
		}
	}
	return n
}

// maxFailureLines is how much of a failure is printed; the rest is in the log.
const maxFailureLines = 12

// Print lists the specs as Read orders them.
func Print(out io.Writer, specs []Spec) {
	for _, s := range specs {
		if s.Skipped != "" {
			fmt.Fprintf(out, "skipped        %s: %s\n", s.Name, s.Skipped)
			continue
		}
		if s.Failure == "" {
			fmt.Fprintf(out, "passed %5.0fs  %s\n", s.Took.Seconds(), s.Name)
			continue
		}
		fmt.Fprintf(out, "FAILED %5.0fs  %s\n", s.Took.Seconds(), s.Name)
		lines := strings.Split(strings.TrimSpace(s.Failure), "\n")
		if len(lines) > maxFailureLines {
			lines = append(lines[:maxFailureLines], "…")
		}
		fmt.Fprintf(out, "                %s\n", strings.Join(lines, "\n                "))
	}
}
