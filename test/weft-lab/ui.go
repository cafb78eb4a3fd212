package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/ui"
	"github.com/weft-cni/weft/test/lab"
)

func uiCommand(name *string) *cobra.Command {
	var port uint16
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Serve a page with the lab's nodes, reachability, pipeline and traces to a browser of this machine",
		Long: "Serves the page of `kubectl weft ui` for the lab, to browsers of this machine, until it is interrupted. The address is a\n" +
			"secret: it opens the page to all who have it.",
		Args:    cobra.NoArgs,
		Example: "  weft-lab ui --name shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			server, err := ui.Listen(cmd.Context(), func(ctx context.Context) ([]ui.Agent, error) {
				agents, err := lab.Agents(ctx, *name)
				var list []ui.Agent
				for node, client := range agents {
					list = append(list, ui.Agent{Node: node, Client: client})
				}
				return list, err
			}, port)
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
