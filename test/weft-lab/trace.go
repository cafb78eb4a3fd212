package main

import (
	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/follow"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/test/lab"
)

func traceCommand(p *terminal.Format, name *string) *cobra.Command {
	var verbose, sends bool
	cmd := &cobra.Command{
		Use:   "trace FROM TO[:PORT[/PROTOCOL]]",
		Short: "Follow a connection through the flows of the lab's nodes, and say what decides about it",
		Long: "Follows a new connection, its reply and later packets through the flows that are in the lab's switches now, as\n" +
			"`kubectl weft trace` does in a cluster. " + follow.LiveLong,
		Args: cobra.ExactArgs(2),
		Example: "  weft-lab trace shop/frontend-0 service/shop/web:80\n  weft-lab trace shop/frontend-0 service/shop/web:80 --live\n" +
			"  weft-lab trace outside node/node1:30080 -v",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.Check(); err != nil {
				return err
			}
			nodes, err := lab.TraceNodes(cmd.Context(), *name)
			if err != nil {
				return err
			}
			q := follow.Question{Nodes: nodes, From: args[0], To: args[1]}
			if !sends {
				return follow.Trace(cmd, q, *p, verbose)
			}
			agents, err := lab.Agents(cmd.Context(), *name)
			if err != nil {
				return err
			}
			return follow.Live(cmd, q, agents, *p, verbose)
		},
	}
	cmd.Flags().BoolVar(&sends, "live", false, "also send a packet, and show where it goes")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show every flow that a packet takes, with its owner")
	return cmd
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
			nodes, err := lab.TraceNodes(cmd.Context(), *name)
			if err != nil {
				return err
			}
			return follow.Explain(cmd, follow.Question{Nodes: nodes, From: args[0], To: args[1]}, *p)
		},
	}
}
