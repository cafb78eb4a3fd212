package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/podns"
)

func probeCommand(pr *terminal.Format, name *string) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "probe",
		Short: "Send real packets from every pod to every port, and show the observed beside the expected results",
		Long: "Every pod tries to reach every port of every pod and Service. The matrix shows for each pair what the NetworkPolicies\n" +
			"expected and observed result, silence and refusal apart; where they differ, the packet's way through the pipeline follows,\n" +
			"and the exit status is 1.",
		Args:    cobra.NoArgs,
		Example: "  weft-lab probe\n  weft-lab probe -o json | jq '.probes[] | select(.state == \"differs\")'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := pr.Check(); err != nil {
				return err
			}
			if timeout <= 0 {
				return fmt.Errorf("--timeout %s: want more than 0", timeout)
			}
			r, err := lab.ReadProbe(cmd.Context(), *name, timeout)
			if err != nil {
				return err
			}
			if err := pr.Print(cmd.OutOrStdout(), r, func(w io.Writer) error { return showMatrix(w, r) }); err != nil {
				return err
			}
			return verdict(r)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", lab.ProbeTimeout, "how long to wait for an expected answer")
	return cmd
}

// verdict is the probe's exit status.
func verdict(r lab.Report) error {
	var errs []error
	if n := r.Counts[lab.Differs]; n > 0 {
		errs = append(errs, fmt.Errorf("in %d of %d pairs, the observed result differs from the expected one", n,
			len(r.Probes)))
	}
	if r.Problem != "" {
		errs = append(errs, fmt.Errorf("the manifests as they are now were not applied: %s", r.Problem))
	}
	return errors.Join(errs...)
}

// mark is half of a cell.
func symbol(p lab.Expectation) string {
	return map[lab.Expectation]string{lab.Allow: "✓", lab.Deny: "✗", lab.Either: "?", lab.Reject: "⊘"}[p]
}

func did(p lab.Probe) string {
	switch {
	case p.State == lab.NoProtocol:
		return "k"
	case p.Outcome == podns.Answered:
		return "✓"
	case p.Outcome == podns.Refused:
		return "⊘"
	}
	return "✗"
}

// showMatrix writes a row for each pod and a column for each port. It aligns by itself, since colours are bytes that
// take no room.
func showMatrix(out io.Writer, r lab.Report) error {
	var b strings.Builder
	targetWidth := 0
	for _, t := range r.Targets {
		targetWidth = max(targetWidth, utf8.RuneCountInString(t.String()))
	}
	for i, t := range r.Targets {
		fmt.Fprintf(&b, "%4d  %-*s  %s\n", i+1, targetWidth, t, t.Addr)
	}
	rowWidth := len("FROM \\ TO")
	for _, from := range r.From {
		rowWidth = max(rowWidth, len(from))
	}
	cellWidth := max(2, len(fmt.Sprint(len(r.Targets))))
	fmt.Fprintf(&b, "\n%-*s", rowWidth, "FROM \\ TO")
	for i := range r.Targets {
		fmt.Fprintf(&b, "  %*d", cellWidth, i+1)
	}
	b.WriteByte('\n')
	for i, from := range r.From {
		fmt.Fprintf(&b, "%-*s", rowWidth, from)
		for _, p := range r.Probes[i*len(r.Targets) : (i+1)*len(r.Targets)] {
			b.WriteString(strings.Repeat(" ", cellWidth) + terminal.Paint(out, color(p), symbol(p.Expected)+did(p)))
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "\nFirst the expected result, then the observed one: ✓ reached, ✗ not reached%s.\n", legend(r))
	showDifferences(&b, out, r)
	showCounts(&b, out, r)
	_, err := io.WriteString(out, b.String())
	return err
}

func color(p lab.Probe) terminal.Color {
	switch {
	case p.State == lab.Differs:
		return terminal.Red
	case p.State != lab.AsExpected || p.Expected == lab.Deny || p.Expected == lab.Reject:
		return terminal.Faint
	}
	return terminal.Green
}

// legend explains the marks that are there.
func legend(r lab.Report) string {
	var text string
	refused, either := false, false
	for _, p := range r.Probes {
		refused = refused || p.Expected == lab.Reject || p.Outcome == podns.Refused
		either = either || p.Expected == lab.Either
	}
	if refused {
		text += ", ⊘ refused at once"
	}
	if either {
		text += ", ? depends on the endpoint"
	}
	if r.Counts[lab.NoProtocol] > 0 {
		text += ", k this kernel has no such protocol"
	}
	return text
}

func showDifferences(b *strings.Builder, out io.Writer, r lab.Report) {
	for _, p := range r.Probes {
		if p.State != lab.Differs {
			continue
		}
		got := string(p.Outcome)
		if p.Reached != "" {
			got += " by " + p.Reached
		}
		if p.Detail != "" {
			got += ": " + p.Detail
		}
		fmt.Fprintf(b, "\n%s\n", terminal.Paint(out, terminal.Red, fmt.Sprintf("%s to %s: expected %s, %s", p.From,
			r.Targets[p.To], p.Expected, got)))
		fmt.Fprintf(b, "  %s\n", p.Why)
		for line := range strings.Lines(p.Trace) {
			b.WriteString("    " + strings.TrimRight(line, "\n") + "\n")
		}
	}
}

func showCounts(b *strings.Builder, out io.Writer, r lab.Report) {
	fmt.Fprintf(b, "\n%s in %.1f s: %s", terminal.Count(len(r.Probes), "pair"), r.Seconds, terminal.Paint(out, terminal.Green,
		fmt.Sprintf("%d as expected", r.Counts[lab.AsExpected])))
	if n := r.Counts[lab.Differs]; n > 0 {
		b.WriteString(", " + terminal.Paint(out, terminal.Red, fmt.Sprintf("%d differ", n)))
	}
	if n := r.Counts[lab.NoProtocol]; n > 0 {
		fmt.Fprintf(b, ", %d of a protocol that this kernel does not have", n)
	}
	b.WriteByte('\n')
}
