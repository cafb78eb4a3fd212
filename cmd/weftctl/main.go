// weftctl is what an operator types on a node, or in its agent's container, to see what Weft does there.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/pkg/report/api"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "weftctl:", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	c := &client{}
	root := &cobra.Command{
		Use:   "weftctl",
		Short: "See what Weft does on a node",
		Long: "weftctl asks the Weft agent of the node it runs on. From elsewhere, run it in the container of that node's agent:\n\n" +
			"  kubectl -n weft-system get pods -o wide\n" +
			"  kubectl -n weft-system exec POD -- weftctl status",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&c.socket, "socket", api.DefaultSocket, "the agent's Unix socket")
	root.PersistentFlags().StringVarP((*string)(&c.output), "output", "o", "table", "table or json")
	root.AddCommand(statusCommand(c), flowsCommand(c), serviceCommand(c), policyCommand(c), healthCommand(c))
	return root
}
