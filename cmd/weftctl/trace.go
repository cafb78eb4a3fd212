package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/follow"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

func traceCommand(c *client) *cobra.Command {
	var verbose, sends bool
	var files []string
	var save string
	cmd := &cobra.Command{
		Use:   "trace FROM TO[:PORT[/PROTOCOL]]",
		Short: "Follow a connection through the flows of all nodes, and say what decides about it",
		Long: "Follows the first packet of a new connection, its reply and later packets through the flows that are in the switches now,\n" +
			"for every choice of a Service's endpoints. Without --live no packet is sent. The last lines are the verdict, and the rules of policies,\n" +
			"Services and paths that decided. FROM is a pod (NAMESPACE/NAME), a node, \"outside\" or an address; TO may be a Service, too.\n" +
			"Each may have its kind in front: pod/, node/, service/. Without PORT it is the Service's only port, or a ping.\n\n" +
			"Both ends' nodes must be asked: use kubectl weft, or -A. --save keeps what the nodes answered, and --file traces in that,\n" +
			"without a cluster. " + follow.LiveLong + "\n\n" +
			"The exit code is 0 when the connection is established, with --live in the trace and by the packet, and 1 when it is not.",
		Args: cobra.RangeArgs(0, 2),
		Example: "  kubectl weft trace shop/client shop/web:80\n" +
			"  kubectl weft trace shop/client service/dns/dns:53/UDP -v\n" +
			"  kubectl weft trace outside node/worker-1:30080\n" +
			"  kubectl weft trace shop/client service/shop/web:80 --live\n" +
			"  kubectl weft trace --save nodes.json\n" +
			"  weftctl trace --file nodes.json shop/client 10.96.0.10:53/UDP",
		ValidArgsFunction: c.completeObjects(map[string]string{"pod/": "pods", "service/": "services", "node/": "nodes"}),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.output.Check(terminal.Wide); err != nil {
				return err
			}
			if len(args) == 1 || len(args) == 0 && save == "" {
				return errors.New("trace needs FROM and TO, as in trace shop/client shop/web:80")
			}
			if sends && (len(files) > 0 || len(args) == 0) {
				return errors.New("--live sends a packet in a cluster: it needs FROM and TO, and has no use for --file")
			}
			nodes, agents, err := c.traceNodes(cmd, files)
			if err != nil {
				return err
			}
			if save != "" {
				if err := saveNodes(save, nodes); err != nil || len(args) == 0 {
					return err
				}
			}
			q := follow.Question{Nodes: nodes, From: args[0], To: args[1], Namespace: c.namespace}
			if sends {
				return follow.Live(cmd, q, agents, c.output, verbose || c.output == terminal.Wide)
			}
			return follow.Trace(cmd, q, c.output, verbose || c.output == terminal.Wide)
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show every flow that a packet takes, with its owner")
	cmd.Flags().BoolVar(&sends, "live", false, "also send a packet, and show where it goes")
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "trace in what --save has written, without a cluster")
	cmd.Flags().StringVar(&save, "save", "", "write what the nodes answer to this file")
	return cmd
}

// traceNodes asks the nodes, whose agents it gives by name, or reads them from files.
func (c *client) traceNodes(cmd *cobra.Command, files []string) ([]walk.Node, map[string]api.Client, error) {
	if len(files) > 0 {
		nodes, err := readNodes(files)
		return nodes, nil, err
	}
	type traced struct {
		walk.Node
		agent api.Client
	}
	all, err := ask(cmd.Context(), c, func(ctx context.Context, a api.Client) (traced, error) {
		n, err := a.Trace(ctx)
		return traced{n, a}, err
	})
	if err != nil {
		return nil, nil, err
	}
	answers, err := given(all, cmd.ErrOrStderr())
	if err != nil {
		return nil, nil, err
	}
	nodes, agents := make([]walk.Node, len(answers)), map[string]api.Client{}
	for i, a := range answers {
		nodes[i] = a.Answer.Answer.Node
		agents[nodes[i].Name] = a.Answer.Answer.agent
	}
	return nodes, agents, nil
}

func saveNodes(file string, nodes []walk.Node) error {
	text, err := json.Marshal(nodes)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

func readNodes(files []string) ([]walk.Node, error) {
	var nodes []walk.Node
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var list []walk.Node
		if err := json.Unmarshal(text, &list); err != nil {
			return nil, fmt.Errorf("%s is not what trace --save writes: %w", file, err)
		}
		nodes = append(nodes, list...)
	}
	return nodes, nil
}
