package main

import (
	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/follow"
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
			nodes, _, err := c.traceNodes(cmd, files)
			if err != nil {
				return err
			}
			q := follow.Question{Nodes: nodes, From: args[0], To: args[1], Namespace: c.namespace}
			return follow.Explain(cmd, q, c.output)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "explain by what trace --save has written, without a cluster")
	return cmd
}
