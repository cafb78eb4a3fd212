package connectivity

import (
	"encoding/xml"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/weft-cni/weft/internal/terminal"
)

// Report is what the tests found.
type Report struct {
	Namespace string `json:"namespace"`
	Image     string `json:"image"`
	// Nodes are those with pods of the test.
	Nodes []string     `json:"nodes"`
	Tests []TestResult `json:"tests"`
	// Seconds is the time of everything, the start of pods included.
	Seconds float64 `json:"seconds"`
}

// TestResult is what a test found.
type TestResult struct {
	Test  string `json:"test"`
	About string `json:"about"`
	// Checks counts what was tried; Failures are those that failed. A test without checks was left out: Skipped says why.
	Checks   int       `json:"checks"`
	Failures []Failure `json:"failures"`
	Skipped  string    `json:"skipped,omitempty"`
	Seconds  float64   `json:"seconds"`
	// Detail is what was tried, where the test does not say it.
	Detail string `json:"detail,omitempty"`
}

// Failure is a check that failed.
type Failure struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Error string `json:"error"`
}

func (f Failure) String() string {
	if f.To == "" {
		return fmt.Sprintf("%s: %s", f.From, f.Error)
	}
	return fmt.Sprintf("%s to %s: %s", f.From, f.To, f.Error)
}

// Passed says that no test failed.
func (r Report) Passed() bool { return r.failed() == 0 }

func (r Report) failed() int {
	n := 0
	for _, t := range r.Tests {
		if len(t.Failures) > 0 {
			n++
		}
	}
	return n
}

func (t TestResult) outcome() string {
	switch {
	case len(t.Failures) > 0:
		return "FAILED"
	case t.Skipped != "":
		return "left out"
	}
	return "ok"
}

func seconds(of float64) string { return fmt.Sprintf("%.1f s", of) }

// mostFailures is how many failures of a test a table shows.
const mostFailures = 6

// Write writes a table for people. Loud shows what must not be overlooked.
func (r Report) Write(out io.Writer, loud func(string) string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "TEST\tCHECKS\tFAILED\tTIME\tRESULT\n")
	for _, t := range r.Tests {
		result := t.outcome()
		if len(t.Failures) > 0 {
			result = loud(result)
		}
		switch {
		case t.Skipped != "":
			result += ": " + t.Skipped
		case t.Detail != "":
			result += ": " + t.Detail
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", t.Test, t.Checks, len(t.Failures), seconds(t.Seconds), result)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	for _, t := range r.Tests {
		for i, f := range t.Failures {
			if i == mostFailures {
				fmt.Fprintf(out, "%s: and %d more\n", t.Test, len(t.Failures)-i)
				break
			}
			fmt.Fprintf(out, "%s: %s\n", t.Test, loud(f.String()))
		}
	}
	verdict := "All tests passed"
	if n := r.failed(); n > 0 {
		verdict = loud(terminal.CountOf(n, len(r.Tests), "test") + " failed")
	}
	_, err := fmt.Fprintf(out, "%s on %s, in %s.\n", verdict, terminal.Count(len(r.Nodes), "node"), seconds(r.Seconds))
	return err
}

type junitSuite struct {
	XMLName  xml.Name    `xml:"testsuite"`
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Time     string      `xml:"time,attr"`
	When     string      `xml:"timestamp,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitMessage `xml:"failure,omitempty"`
	Skipped *junitMessage `xml:"skipped,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// JUnit writes the report as a test suite for continuous integration.
func (r Report) JUnit(w io.Writer, when time.Time) error {
	s := junitSuite{Name: "weft connectivity", Tests: len(r.Tests), Failures: r.failed(), Time: fmt.Sprintf("%.3f", r.Seconds),
		When: when.UTC().Format(time.RFC3339)}
	for _, t := range r.Tests {
		c := junitCase{Class: "weft.connectivity", Name: t.Test, Time: fmt.Sprintf("%.3f", t.Seconds)}
		switch {
		case len(t.Failures) > 0:
			c.Failure = &junitMessage{Message: terminal.CountOf(len(t.Failures), t.Checks, "check") + " failed"}
			for _, f := range t.Failures {
				c.Failure.Text += f.String() + "\n"
			}
		case t.Skipped != "":
			s.Skipped++
			c.Skipped = &junitMessage{Message: t.Skipped}
		}
		s.Cases = append(s.Cases, c)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(s); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}
