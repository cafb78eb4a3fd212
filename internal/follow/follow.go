// Package follow is what the commands trace and explain do with the flows of nodes, which weftctl gets from a cluster
// and weft-lab from a lab. It keeps nothing.
package follow

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

// Question is what a user asks of nodes: the connection from one end to another, which walk.Cluster.Resolve explains.
type Question struct {
	Nodes               []walk.Node
	From, To, Namespace string
}

// Trace follows the connection in each family that both ends have, and shows what decides about it. The error is
// cli.Found unless it is established in all of them.
func Trace(cmd *cobra.Command, q Question, format terminal.Format, verbose bool) error {
	traces, err := each(cmd, q, (*walk.Cluster).Trace)
	if err != nil {
		return err
	}
	err = format.Print(cmd.OutOrStdout(), traces, func(w io.Writer) error { return walk.Write(w, traces, verbose) })
	if err == nil && !walk.Established(traces) {
		return cli.Found
	}
	return err
}

// Explain evaluates the policies at both ends of the connection, and shows whether the flows do the same. The error is
// cli.Found unless the policies allow it and the flows agree, and has the code cli.CannotAsk where the policies of an
// end are not known.
func Explain(cmd *cobra.Command, q Question, format terminal.Format) error {
	list, err := each(cmd, q, (*walk.Cluster).Explain)
	if err != nil {
		return err
	}
	err = format.Print(cmd.OutOrStdout(), list, func(w io.Writer) error {
		return walk.WriteExplanations(w, list, func(text string) string { return terminal.Paint(w, terminal.Red, text) })
	})
	switch {
	case err != nil || walk.Agreed(list):
		return err
	case slices.ContainsFunc(list, func(x walk.Explanation) bool { return x.Verdict == walk.Unknown }):
		return cli.ExitError{Code: cli.CannotAsk}
	}
	return cli.Found
}

// each answers for every connection that the user means. What of the nodes cannot be used is written to the error
// output.
func each[T any](cmd *cobra.Command, q Question, answer func(*walk.Cluster, walk.Query) T) ([]T, error) {
	cluster, err := walk.New(q.Nodes, walk.Options{})
	if err != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), err)
	}
	queries, err := cluster.Resolve(q.From, q.To, q.Namespace)
	if err != nil {
		return nil, err
	}
	list := make([]T, len(queries))
	for i, query := range queries {
		list[i] = answer(cluster, query)
	}
	return list, nil
}
