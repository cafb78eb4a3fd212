package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

func explainCommand(c *client) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "explain FROM TO[:PORT[/PROTOCOL]]",
		Short: "Say which policies decide about a connection, and whether the flows do the same",
		Long: "Evaluates the policies at both ends of a new connection from the objects themselves, and compares the verdict with\n" +
			"what the flows in the switches do. For each direction and tier it shows the policies that select the pod, the rule that decides,\n" +
			"by its index from 0, or the default, and what the rule's flows have counted; then the flows that the packet takes. Where policies\n" +
			"and flows disagree, the flows are not what the policies ask for: a line in capitals says so.\n" +
			"FROM and TO are as in weftctl trace, and --file reads what weftctl trace --save has written.\n\n" +
			"The exit code is 0 when the policies allow the connection and the flows agree, 1 when not, and 2 when the policies of an end\n" +
			"are not known.",
		Args: cobra.ExactArgs(2),
		Example: "  kubectl weft policy explain shop/client shop/web:80\n" +
			"  kubectl weft policy explain outside node/worker-1:30080\n" +
			"  weftctl policy explain --file nodes.json shop/client shop/database:5432",
		ValidArgsFunction: c.completeObjects(map[string]string{"pod/": "pods", "service/": "services", "node/": "nodes"}),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.output.Check(); err != nil {
				return err
			}
			cluster, queries, err := c.resolve(cmd, files, args[0], args[1])
			if err != nil {
				return err
			}
			list := make([]walk.Explanation, len(queries))
			unknown := false
			for i, q := range queries {
				list[i] = cluster.Explain(q)
				unknown = unknown || list[i].Verdict == walk.Unknown
			}
			err = c.output.Print(cmd.OutOrStdout(), list, func(w io.Writer) error {
				return walk.WriteExplanations(w, list, func(text string) string { return terminal.Paint(w, terminal.Red, text) })
			})
			switch {
			case err != nil || walk.Agreed(list):
				return err
			case unknown:
				return cli.ExitError{Code: cli.CannotAsk}
			}
			return cli.Found
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "explain by what trace --save has written, without a cluster")
	return cmd
}

// resolve asks the nodes, or reads them from files, and finds the connections that a user means.
func (c *client) resolve(cmd *cobra.Command, files []string, from, to string) (*walk.Cluster, []walk.Query, error) {
	nodes, err := c.traceNodes(cmd, files)
	if err != nil {
		return nil, nil, err
	}
	cluster, err := walk.New(nodes, walk.Options{})
	if err != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), err)
	}
	queries, err := cluster.Resolve(from, to, c.namespace)
	return cluster, queries, err
}
