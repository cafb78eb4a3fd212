package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/report"
)

func policyCommand(c *client) *cobra.Command {
	return &cobra.Command{
		Use:     "policy [NAME]",
		Aliases: []string{"policies"},
		Short:   "Show the NetworkPolicies about pods of this node, with what their rules allowed and denied",
		Long: "Shows the NetworkPolicies that select pods of this node: each rule by its place in the policy's list, from 0, and what was\n" +
			"denied, because no rule of any policy of the pod allowed it. Packets of both ways of a connection count, from the agent's\n" +
			"start. Where several policies allow one packet it counts for one of them; what they deny counts for all.\n" +
			"NAME is a policy's NAMESPACE/NAME or NAME; all its pods are listed then.",
		Args: cobra.MaximumNArgs(1),
		Example: "  weftctl policy\n" +
			"  weftctl policy shop/database\n" +
			"  weftctl policy -o json | jq '.[] | select(.problem)'",
		RunE: func(cmd *cobra.Command, args []string) error {
			agent, err := c.agent()
			if err != nil {
				return err
			}
			policies, err := agent.Policies(cmd.Context(), object(args))
			if err != nil {
				return err
			}
			if len(policies) == 0 && len(args) == 1 {
				return fmt.Errorf("no policy %s selects a pod of this node; weftctl policy lists those that do, kubectl get "+
					"networkpolicies -A all of them", args[0])
			}
			return c.output.Print(cmd.OutOrStdout(), policies, func(w io.Writer) error {
				return showPolicies(w, policies, len(args) == 1)
			})
		},
	}
}

// object is the object that is asked for; empty without one.
func object(args []string) string { return strings.Join(args, "") }

func showPolicies(out io.Writer, policies []report.Policy, all bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(policies) == 0 {
		fmt.Fprint(w, "No policy selects a pod of this node.\n")
		return w.Flush()
	}
	fmt.Fprint(w, "POLICY\tDIRECTION\tRULE\tPACKETS\tBYTES\tPODS\tSTATE\n")
	for _, p := range policies {
		fine := "programmed"
		if p.Log {
			fine += ", logged"
		}
		for _, r := range p.Rules {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", p.Policy, r.Direction, r.Rule, r.Packets, r.Bytes, some(r.Pods, all),
				state(out, p.Problem, fine))
		}
	}
	return w.Flush()
}

// fewEntries is how many entries of a list a table shows; the rest is counted.
const fewEntries = 3

// some is a list in a table's column: its first entries, or all of it.
func some(list []string, all bool) string {
	if all || len(list) <= fewEntries+1 {
		return terminal.OrNone(strings.Join(list, ","))
	}
	return fmt.Sprintf("%s,+%d", strings.Join(list[:fewEntries], ","), len(list)-fewEntries)
}
