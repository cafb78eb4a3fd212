package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
)

func policyCommand(c *client) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "policy [NAME]",
		Aliases: []string{"policies"},
		Short:   "Show the policies about pods of this node, with what their rules allowed and denied",
		Long: "Shows the NetworkPolicies and ClusterNetworkPolicies that select pods of this node, in the order of the tiers: each rule by\n" +
			"its place in the policy's list, from 0, and what NetworkPolicies denied, because no rule of any of\n" +
			"the pod allowed it. Packets of both ways of a connection count, from the agent's start. Where several policies allow one packet\n" +
			"it counts for one of them; what they deny counts for all.\n" +
			"Staged policies have no effect; their rules count what they would decide if they were enforced.\n" +
			"A rule that cuts pods off from DNS, the API server or their node's probes has a warning.\n" +
			"NAME is a policy's NAMESPACE/NAME or NAME; all its pods are listed then.",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeObjects(map[string]string{"": "networkpolicies"}),
		Example: "  weftctl policy\n" +
			"  weftctl policy shop/database\n" +
			"  weftctl policy -o json | jq '.[] | select(.problem)'",
		RunE: func(cmd *cobra.Command, args []string) error {
			var none error
			if len(args) == 1 {
				none = fmt.Errorf("no policy %s selects a pod %s; weftctl policy lists those that do, kubectl get "+
					"networkpolicies -A all of them", args[0], c.where())
			}
			question := func(ctx context.Context, agent api.Client) ([]report.Policy, error) {
				list, err := agent.Policies(ctx, c.named(args))
				return slices.DeleteFunc(list, func(p report.Policy) bool { return !c.inNamespace(p.Policy) }), err
			}
			show := func(w io.Writer, list []report.Policy) error {
				return showPolicies(w, list, len(args) == 1 || c.output == terminal.Wide)
			}
			return showLists(cmd, c, question, show, policyName, none)
		},
	}
	cmd.AddCommand(explainCommand(c))
	return cmd
}

// policyName is how kubectl names a policy.
func policyName(p report.Policy) string {
	if p.Tier == model.NetworkPolicyTier.String() {
		return "networkpolicy/" + p.Policy
	}
	return "clusternetworkpolicy/" + p.Policy
}

func showPolicies(out io.Writer, policies []report.Policy, all bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(policies) == 0 {
		fmt.Fprint(w, "No policy selects a pod of this node.\n")
		return w.Flush()
	}
	fmt.Fprint(w, "POLICY\tTIER\tDIRECTION\tRULE\tVERDICT\tPACKETS\tBYTES\tPODS\tSTATE\n")
	for _, p := range policies {
		fine := "programmed"
		if p.Staged {
			fine = "staged"
		}
		if p.Log {
			fine += ", logged"
		}
		if len(p.DomainNames) > 0 {
			names, addresses := 0, 0
			for _, d := range p.DomainNames {
				names, addresses = names+d.Names, addresses+d.Addresses
			}
			fine += fmt.Sprintf(", domain names learned: %d with %d addresses", names, addresses)
		}
		for _, r := range p.Rules {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", p.Policy, p.Tier, r.Direction, r.Rule, r.Verdict, r.Packets,
				r.Bytes, some(r.Pods, all), state(out, cmp.Or(p.Problem, r.Warning), fine))
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
