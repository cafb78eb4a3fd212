package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/ui"
	"github.com/weft-cni/weft/pkg/report/api"
)

func uiCommand(c *client) *cobra.Command {
	var port uint16
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Serve a page with nodes, reachability, the pipeline and traces to a browser of this machine",
		Long: "Serves a page to browsers of this machine, until it is interrupted: the nodes and the paths between them, which pods\n" +
			"reach which pods and Services and the policies that decide, the tables of the pipeline with live counters, and traces step by\n" +
			"step. It shows what the other commands show, and changes nothing.\n\n" +
			"It listens on the loopback interface. The address has a random part and is a secret: it opens the page to all who have it while\n" +
			"the command runs.",
		Args: cobra.NoArgs,
		Example: "  kubectl weft ui\n" +
			"  weftctl ui --port 8470      # then, elsewhere: ssh -L 8470:127.0.0.1:8470 NODE",
		RunE: func(cmd *cobra.Command, _ []string) error {
			server, err := ui.Listen(cmd.Context(), c.pageAgents(), port)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), server.URL)
			fmt.Fprintln(cmd.ErrOrStderr(), "Open this address in a browser of this machine. Ctrl-C ends it.")
			return server.Serve(cmd.Context())
		},
	}
	cmd.Flags().Uint16Var(&port, "port", 0, "port of 127.0.0.1; any free one by default")
	return cmd
}

// pageAgents are the agents that the page asks.
func (c *client) pageAgents() ui.Agents {
	if !c.remote() {
		return ui.Local(c.local())
	}
	return func(ctx context.Context) ([]ui.Agent, error) {
		agents, err := c.cluster.Agents(ctx, c.nodes)
		list := make([]ui.Agent, len(agents))
		for i, a := range agents {
			list[i] = ui.Agent{Node: a.Node, Client: api.Client{Dial: c.cluster.Dial(a.Pod)}, Problem: a.Problem}
		}
		return list, err
	}
}
