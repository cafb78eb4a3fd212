// weftctl is what an operator types to see what Weft does: on a node, in its agent's container, or, as kubectl weft,
// from anywhere for the nodes of a cluster.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	os.Exit(cli.Finish(strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe"), err, cli.CannotAsk, os.Stderr))
}

func newRoot() *cobra.Command { return rootFor(os.Args[0]) }

// rootFor is the command of a program of this name.
func rootFor(program string) *cobra.Command {
	c := &client{plugin: isPlugin(program)}
	root := &cobra.Command{
		Use:   "weftctl",
		Short: "See what Weft does on a node, or on the nodes of a cluster",
		Long: "weftctl asks the Weft agent of the node it runs on. With --node, -A, --context or --kubeconfig it asks agents of a\n" +
			"cluster, through kubectl exec. Under the name kubectl-weft on the PATH it is `kubectl weft`, which always asks a cluster:\n" +
			"all nodes, or those of --node.\n\n" +
			"Exit codes: 0 well, 1 a problem was found, 2 it could not be asked or answered.",
		Example: "  weftctl status\n" +
			"  kubectl weft status\n" +
			"  kubectl weft flows shop/frontend --node worker-1",
		Version:       version.Get().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	if c.plugin {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl weft"}
	}
	c.flags(root)
	root.AddCommand(statusCommand(c), flowsCommand(c), serviceCommand(c), policyCommand(c), traceCommand(c),
		compileCommand(c), diffCommand(c), dropsCommand(c),
		topCommand(c), captureCommand(c), uiCommand(c), sysdumpCommand(c), checkCommand(c), connectivityCommand(c),
		healthCommand(c), connectCommand(c), cli.VersionCommand())
	cli.Strict(root)
	return root
}
