package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
)

func flowsCommand(c *client) *cobra.Command {
	var used bool
	cmd := &cobra.Command{
		Use:   "flows [POD|SERVICE|POLICY|NODE]",
		Short: "Show the flows in the switch, or those that exist because of an object",
		Long: "Shows the flows of a node's switch in the order a packet meets them, with the objects that they exist for.\n" +
			"An object is a pod, a Service or a policy (NAME, NAMESPACE/NAME, or with its kind as in pod/NAMESPACE/NAME,\n" +
			"service/NAMESPACE/NAME and policy/NAMESPACE/NAME), a node (NAME or node/NAME), or one of self, pipeline and foreign, as\n" +
			"the column OWNER shows them. With an object, the groups that its flows lead to are shown, too: a Service's endpoints.\n" +
			"Policies have flows in common, which belong to the first of them in the column OWNER; each of them finds them.",
		Args: cobra.MaximumNArgs(1),
		Example: "  weftctl flows\n" +
			"  weftctl flows shop/frontend\n" +
			"  weftctl flows service/shop/web\n" +
			"  weftctl flows policy/shop/database --used\n" +
			"  weftctl flows --used | grep drop\n" +
			"  weftctl flows node/worker-2 -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			var none error
			if len(args) == 1 {
				none = fmt.Errorf("no flow %s exists because of %s; weftctl status lists the pods and nodes, kubectl "+
					"get pods -A -o wide says which pod is where", c.where(), args[0])
			}
			question := func(ctx context.Context, agent api.Client) ([]report.Flow, error) {
				flows, err := agent.Flows(ctx, c.owner(args))
				return slices.DeleteFunc(flows, func(f report.Flow) bool {
					return used && f.Packets == 0 || c.namespace != "" && len(args) == 0 && !c.ownerInNamespace(f.Owner)
				}), err
			}
			show := func(w io.Writer, list []report.Flow) error { return showFlows(w, list, len(args) == 1) }
			return showLists(cmd, c, question, show, func(f report.Flow) string { return f.Owner }, none)
		},
	}
	cmd.ValidArgsFunction = c.completeObjects(map[string]string{"pod/": "pods", "service/": "services",
		"policy/": "networkpolicies", "node/": "nodes"})
	cmd.Flags().BoolVar(&used, "used", false, "only flows that packets have taken")
	return cmd
}

func showFlows(out io.Writer, flows []report.Flow, withGroups bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "TABLE\tPRIO\tPACKETS\tOWNER\tMATCH\tACTIONS\n")
	for _, f := range flows {
		actions := f.Actions
		if f.Reason != "" {
			actions = terminal.Paint(out, terminal.Faint, actions+" ("+string(f.Reason)+")")
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\n", f.Table, f.Priority, f.Packets, f.Owner, orAny(f.Match), actions)
	}
	if withGroups {
		showGroups(w, flows)
	}
	return w.Flush()
}

// showGroups shows each group that flows lead to once, a bucket a line.
func showGroups(w io.Writer, flows []report.Flow) {
	shown := map[openflow.GroupID]bool{}
	for _, f := range flows {
		for _, g := range f.Groups {
			if shown[g.ID] {
				continue
			}
			if len(shown) == 0 {
				fmt.Fprint(w, "\nGROUP\tBY\tBUCKET\tWEIGHT\tTO\n")
			}
			shown[g.ID] = true
			for _, b := range g.Buckets {
				to := b.To
				if b.Remembered {
					to += " (remembered for the client)"
				}
				fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%s\n", g.ID, g.By, b.ID, b.Weight, to)
			}
		}
	}
}

func orAny(match string) string {
	if match == "" {
		return "(any)"
	}
	return match
}
