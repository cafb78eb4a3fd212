package main

import (
	"fmt"
	"io"
	"net/url"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/pkg/agent"
)

func flowsCommand(c *client) *cobra.Command {
	var used bool
	cmd := &cobra.Command{
		Use:   "flows [POD|NODE]",
		Short: "Show the flows in the switch, or those that exist because of an object",
		Long: "Shows the flows of this node's switch in the order a packet meets them, with the objects that they exist for.\n" +
			"An object is a pod (NAME, NAMESPACE/NAME or pod/NAMESPACE/NAME), a node (NAME or node/NAME), or one of\n" +
			"self, pipeline and foreign, as the column OWNER shows them.",
		Args: cobra.MaximumNArgs(1),
		Example: "  weftctl flows\n" +
			"  weftctl flows shop/frontend\n" +
			"  weftctl flows --used | grep drop\n" +
			"  weftctl flows node/worker-2 -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/v1/flows"
			if len(args) == 1 {
				path += "?object=" + url.QueryEscape(args[0])
			}
			var flows []agent.FlowReport
			if err := c.get(cmd.Context(), path, &flows); err != nil {
				return err
			}
			if len(flows) == 0 && len(args) == 1 {
				return fmt.Errorf("no flow of this node exists because of %s; weftctl status lists its pods and nodes, kubectl get pods -A -o wide says which pod is where", args[0])
			}
			if used {
				flows = slices.DeleteFunc(flows, func(f agent.FlowReport) bool { return f.Packets == 0 })
			}
			return c.print(cmd.OutOrStdout(), flows, func(w io.Writer) error { return showFlows(w, flows) })
		},
	}
	cmd.Flags().BoolVar(&used, "used", false, "only flows that packets have taken")
	return cmd
}

func showFlows(out io.Writer, flows []agent.FlowReport) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "TABLE\tPRIO\tPACKETS\tOWNER\tMATCH\tACTIONS\n")
	for _, f := range flows {
		actions := f.Actions
		if f.Reason != "" {
			actions = paint(out, faint, actions+" ("+string(f.Reason)+")")
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\n", f.Table, f.Priority, f.Packets, f.Owner, orAny(f.Match), actions)
	}
	return w.Flush()
}

func orAny(match string) string {
	if match == "" {
		return "(any)"
	}
	return match
}
