package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/build"
	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/preflight"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/model"
)

func checkCommand(c *client) *cobra.Command {
	o := preflight.Options{}
	var root string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Before the install: find what would keep Weft from working",
		Long: "On a node it looks for kernel modules, Open vSwitch and its version, free ports, other plugins' files, rules that drop what the node\n" +
			"forwards, kube-proxy's rules, and IPv6 router advertisements that the kernel ignores. As kubectl weft check\n" +
			"it looks at the cluster: its version, kube-proxy, other plugins, the API server's address and the nodes' pod CIDRs; and it does the\n" +
			"former on each node, in a pod in the node's own network that reads its files and changes nothing: no CNI plugin is needed, and what\n" +
			"it sees is what the agent will see. The pods' namespace is deleted at the end, also after Ctrl-C.\n\n" +
			"The exit code is 0 when all is well, 1 when there is a problem, and 2 when it could not be asked.",
		Args: cobra.NoArgs,
		Example: "  kubectl weft check\n" +
			"  kubectl weft check --image registry.example/weft:v0.2.0 --datapath netdev\n" +
			"  weftctl check",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.output.Check(); err != nil {
				return err
			}
			if o.Datapath != "system" && o.Datapath != "netdev" {
				return fmt.Errorf("--datapath %s is not known; allowed: system, netdev", o.Datapath)
			}
			if o.Encryption != "none" && o.Encryption != "wireguard" {
				return fmt.Errorf("--encryption %s is not known; allowed: none, wireguard", o.Encryption)
			}
			if !slices.Contains(model.TunnelTypes, model.Encapsulation(o.TunnelType)) {
				return fmt.Errorf("--tunnel-type %s is not known; allowed: %s", o.TunnelType, tunnelTypes)
			}
			list, err := c.check(cmd, root, o)
			if err != nil {
				return err
			}
			err = c.output.Print(cmd.OutOrStdout(), list, func(w io.Writer) error { return showFindings(w, list) })
			if err == nil && slices.ContainsFunc(list, func(f preflight.Finding) bool { return f.Do != "" }) {
				return cli.Found
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Datapath, "datapath", "system", "the datapath that will be set: system or netdev")
	flags.StringVar(&o.Encryption, "encryption", "none", "the encryption that will be set: none or wireguard")
	flags.StringVar(&o.TunnelType, "tunnel-type", string(model.Geneve), "the tunnelType that will be set: "+tunnelTypes)
	flags.StringVar(&o.Image, "image", build.Image, "image of the pods on the nodes")
	flags.DurationVar(&o.Within, "start", time.Minute, "how long the pods may take, the pull of the image included")
	flags.StringVar(&root, "root", "/", "where the node's file system is, without a cluster")
	return cmd
}

// tunnelTypes lists the allowed values.
var tunnelTypes = strings.Trim(fmt.Sprint(model.TunnelTypes), "[]")

// check looks at this machine, or at a cluster and its nodes.
func (c *client) check(cmd *cobra.Command, root string, o preflight.Options) ([]preflight.Finding, error) {
	if !c.remote() {
		return preflight.Node(cmd.Context(), preflight.Host{
			Root: root, Datapath: o.Datapath, Encryption: o.Encryption, TunnelType: o.TunnelType,
			Ports: preflight.Listen, NFT: preflight.NFT,
		}), nil
	}
	list, names, err := preflight.Cluster(cmd.Context(), c.cluster)
	if err != nil {
		return nil, err
	}
	if o.Nodes = names; len(c.nodes) > 0 {
		o.Nodes = c.nodes
	}
	o.Namespace = "weft-check-" + strings.ToLower(rand.Text()[:6])
	nodes, err := preflight.Nodes(cmd.Context(), c.cluster, o)
	return append(list, nodes...), err
}

func showFindings(out io.Writer, list []preflight.Finding) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "NODE\tCHECK\tSAW\tRESULT\n")
	problems := 0
	for _, f := range list {
		result := terminal.Paint(out, terminal.Green, "ok")
		if f.Do != "" {
			problems++
			result = terminal.Paint(out, terminal.Red, "problem: "+f.Do)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", terminal.OrNone(f.Node), f.Check, f.Saw, result)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\n%s.\n", terminal.Count(problems, "problem"))
	return err
}
