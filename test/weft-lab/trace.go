package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/test/lab"
)

func traceCommand(p *terminal.Format, name *string) *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "trace FROM TO[:PORT[/PROTOCOL]]",
		Short: "Follow a connection through the flows of the lab's nodes, and say what decides about it",
		Long: "Follows a new connection, its reply and later packets through the flows that are in the lab's switches now, as\n" +
			"`kubectl weft trace` does in a cluster. No packet is sent: `weft-lab probe` sends some.",
		Args:    cobra.ExactArgs(2),
		Example: "  weft-lab trace shop/frontend-0 service/shop/web:80\n  weft-lab trace outside node/node1:30080 -v",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.Check(); err != nil {
				return err
			}
			cluster, queries, err := resolve(cmd, *name, args)
			if err != nil {
				return err
			}
			traces := make([]walk.Trace, len(queries))
			for i, q := range queries {
				traces[i] = cluster.Trace(q)
			}
			err = p.Print(cmd.OutOrStdout(), traces, func(w io.Writer) error { return walk.Write(w, traces, verbose) })
			if err == nil && !walk.Established(traces) {
				return cli.Found
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show every flow that a packet takes, with its owner")
	return cmd
}

// resolve asks the lab's agents, and finds the connections that a user means.
func resolve(cmd *cobra.Command, name string, args []string) (*walk.Cluster, []walk.Query, error) {
	nodes, err := lab.TraceNodes(cmd.Context(), name)
	if err != nil {
		return nil, nil, err
	}
	cluster, err := walk.New(nodes, walk.Options{})
	if err != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), err)
	}
	queries, err := cluster.Resolve(args[0], args[1], "")
	return cluster, queries, err
}

func explainCommand(p *terminal.Format, name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "explain FROM TO[:PORT[/PROTOCOL]]",
		Short: "Say which policies decide about a connection, and whether the flows do the same",
		Long: "Evaluates the policies at both ends of a connection, and compares the verdict with the flows of the lab's switches, as\n" +
			"`kubectl weft policy explain` does in a cluster.",
		Args:    cobra.ExactArgs(2),
		Example: "  weft-lab explain shop/frontend-0 service/shop/web:80",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.Check(); err != nil {
				return err
			}
			cluster, queries, err := resolve(cmd, *name, args)
			if err != nil {
				return err
			}
			list := make([]walk.Explanation, len(queries))
			for i, q := range queries {
				list[i] = cluster.Explain(q)
			}
			err = p.Print(cmd.OutOrStdout(), list, func(w io.Writer) error {
				return walk.WriteExplanations(w, list, func(text string) string { return terminal.Paint(w, terminal.Red, text) })
			})
			if err == nil && !walk.Agreed(list) {
				return cli.Found
			}
			return err
		},
	}
}
