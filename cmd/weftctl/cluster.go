package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/report"
)

// showCluster is one line for each node, and what is wrong below.
func showCluster(out io.Writer, answers []answer[report.Status], wide bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "NODE\tAGENT\tPODS\tFLOWS\tSERVICES\tPOLICIES")
	if wide {
		fmt.Fprint(w, "\tADDRESSES\tPOD CIDRS\tTUNNEL\tMTU\tCOMMIT")
	}
	fmt.Fprint(w, "\tSTATE\n")
	well := 0
	for _, a := range answers {
		fmt.Fprintf(w, "%s\t%s\t%s\n", a.Node, strings.Join(nodeColumns(a, wide), "\t"), nodeState(out, a))
		if a.err == nil && a.Answer.Answer.Well() {
			well++
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	are := "are"
	if len(answers) == 1 {
		are = "is"
	}
	fmt.Fprintf(out, "\n%s %s well.\n", terminal.CountOf(well, len(answers), "node"), are)
	for _, a := range answers {
		for _, p := range nodeProblems(a) {
			fmt.Fprintf(out, "%s: %s\n", a.Node, terminal.Paint(out, terminal.Red, p))
		}
	}
	return nil
}

// nodeColumns are the columns between the name and the state.
func nodeColumns(a answer[report.Status], wide bool) []string {
	n := 5
	if wide {
		n = 10
	}
	columns := slices.Repeat([]string{"-"}, n)
	if a.err != nil {
		return columns
	}
	s := a.Answer.Answer
	columns[0] = s.Version
	columns[1] = fmt.Sprint(len(s.Pods))
	columns[2] = fmt.Sprint(s.Flows.Flows)
	if !s.Programmed() {
		columns[2] += "*"
	}
	columns[3], columns[4] = fmt.Sprint(s.Objects.Services), fmt.Sprint(s.Objects.Policies)
	if wide {
		const short = 12
		copy(columns[5:], []string{terminal.Join(s.Addrs), terminal.Join(s.PodCIDRs), string(s.Tunnel), fmt.Sprint(s.MTU),
			cmp.Or(s.Commit[:min(short, len(s.Commit))], "-")})
	}
	return columns
}

func nodeState(out io.Writer, a answer[report.Status]) string {
	switch {
	case a.err != nil:
		return terminal.Paint(out, terminal.Red, "no answer")
	case !a.Answer.Answer.Ready:
		return terminal.Paint(out, terminal.Red, "not ready")
	case !a.Answer.Answer.Well():
		return terminal.Paint(out, terminal.Red, "problems")
	}
	return terminal.Paint(out, terminal.Green, "well")
}

// nodeProblems is everything that is wrong with a node, a line each.
func nodeProblems(a answer[report.Status]) []string {
	if a.err != nil {
		return []string{a.err.Error()}
	}
	return a.Answer.Answer.EveryProblem()
}
