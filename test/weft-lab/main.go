// Command weft-lab brings Kubernetes manifests up on real switches, without Kubernetes, and sends packets between their
// pods: package lab, for the terminal. The lab's daemon is this program, too.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/internal/version"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/manifest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	os.Exit(cli.Finish("weft-lab", err, cli.Problem, os.Stderr))
}

// serveName is the command that the lab's daemon runs; people do not type it.
const serveName = "serve"

func newRoot() *cobra.Command {
	var name string
	var p terminal.Format
	cmd := &cobra.Command{
		Use:   "weft-lab",
		Short: "Bring Kubernetes manifests up on real switches, without Kubernetes",
		Long: "A lab gives every node of your manifests a network namespace with an Open vSwitch and a real weft-agent of its own,\n" +
			"connects every pod through the real CNI code, and answers on every container port. Then `weft-lab probe` shows what your\n" +
			"NetworkPolicies allow beside what real packets do. It needs root, and leaves nothing behind when it is taken down.",
		Example: "  weft-lab up -f examples/shop\n" +
			"  weft-lab probe\n" +
			"  weft-lab down",
		Version:       version.Get().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.PersistentFlags().StringVar(&name, "name", "lab", "name of the lab; several stand side by side")
	cmd.PersistentFlags().StringVarP((*string)(&p), "output", "o", "table", "table or json")
	cmd.AddCommand(upCommand(&name), checkCommand(), compileCommand(&p), probeCommand(&p, &name), traceCommand(&p, &name),
		explainCommand(&p, &name), uiCommand(&name), execCommand(&name), kubectlCommand(&name),
		statusCommand(&p, &name), downCommand(&name), serveCommand(&name), cli.VersionCommand())
	cli.Strict(cmd)
	return cmd
}

// labFlags are the flags that describe a lab.
func labFlags(cmd *cobra.Command, opt *lab.Options) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&opt.Manifests, "file", "f", nil,
		"file or directory of Kubernetes manifests, or - for the standard input; also several times; changes are followed")
	flags.StringArrayVarP(&opt.Kustomizations, "kustomize", "k", nil,
		"directory to build as kubectl kustomize does, also several times; changes are followed")
	flags.StringArrayVar(&opt.Settings, "set", nil,
		"KEY=VALUE: a setting of the agents, as in docs/configuration.md, also several times")
	flags.IntVar(&opt.Nodes, "nodes", 0, "number of nodes, where the manifests have no Nodes (default 2)")
	flags.IntVar(&opt.Segments, "segments", 1, "subnets that the nodes are divided into, with a router between them")
	flags.StringVar((*string)(&opt.Tunnel), "tunnel", string(model.Geneve), encapsulations())
	flags.StringVar((*string)(&opt.Datapath), "datapath", string(config.DatapathNetdev),
		"netdev (userspace, runs everywhere) or system (Open vSwitch's kernel module)")
	flags.StringVar((*string)(&opt.Family), "ip-family", string(lab.IPv4), "ipv4, ipv6 or dual")
	flags.StringVar(&opt.Agent, "agent", defaultAgent(), "the weft-agent program that the nodes run")
}

// defaultAgent is the agent beside this program, or else on the PATH.
func defaultAgent() string {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "weft-agent")
		if _, err := os.Stat(beside); err == nil {
			return beside
		}
	}
	if path, err := exec.LookPath("weft-agent"); err == nil {
		return path
	}
	return "weft-agent"
}

// encapsulations are the allowed values of --tunnel.
func encapsulations() string {
	var names []string
	for _, e := range model.TunnelTypes {
		names = append(names, string(e))
	}
	return strings.Join(names, " or ")
}

// finish checks and completes what was typed.
func finish(opt *lab.Options, name string) (err error) {
	opt.Name = name
	if len(opt.Manifests)+len(opt.Kustomizations) == 0 {
		return fmt.Errorf("-f must name a file or a directory of Kubernetes manifests, for example -f examples/shop")
	}
	if !slices.Contains(model.TunnelTypes, opt.Tunnel) {
		return fmt.Errorf("--tunnel %q: want %s", opt.Tunnel, encapsulations())
	}
	for _, paths := range [][]string{opt.Manifests, opt.Kustomizations} {
		for i := range paths {
			if paths[i] == manifest.Stdin {
				continue
			}
			if paths[i], err = filepath.Abs(paths[i]); err != nil {
				return err
			}
		}
	}
	opt.Agent, err = filepath.Abs(opt.Agent)
	return err
}

func upCommand(name *string) *cobra.Command {
	var opt lab.Options
	cmd := &cobra.Command{
		Use:   "up -f FILE|DIR|-… | -k DIR…",
		Short: "Bring a lab up",
		Long: "Reads Namespaces, Nodes, Pods, Deployments, StatefulSets, DaemonSets, Services, EndpointSlices and NetworkPolicies,\n" +
			"and brings up what they describe. While the lab stands, it follows the files: an edit changes pods, policies and flows.",
		Args: onlyFlags,
		Example: "  weft-lab up -f examples/shop -f examples/shop-policies\n" +
			"  weft-lab up -f my-manifests/ --nodes 3 --tunnel vxlan --name mine\n" +
			"  weft-lab up -k overlays/dev --set establishedConnections=keep\n" +
			"  kubectl get deploy,svc,netpol -A -o yaml | weft-lab up -f -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := finish(&opt, *name); err != nil {
				return err
			}
			if err := readInput(cmd, &opt); err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			begin, out := time.Now(), cmd.OutOrStdout()
			say := func(text string) { fmt.Fprintf(out, "%5.1f s  %s\n", time.Since(begin).Seconds(), text) }
			if err := lab.Up(cmd.Context(), opt, []string{self, serveName}, say); err != nil {
				return err
			}
			s, err := lab.ReadStatus(context.WithoutCancel(cmd.Context()), *name) // it is up: an interrupt comes too late
			if err != nil {
				return err
			}
			for _, warning := range s.Warnings {
				say("warning: " + warning)
			}
			say(fmt.Sprintf("lab %q is up: %s", *name, counts(len(s.Nodes), len(s.Pods), len(s.Services))))
			return nil
		},
	}
	labFlags(cmd, &opt)
	return cmd
}

// counts are the numbers of what a lab has.
func counts(nodes, pods, services int) string {
	return strings.Join([]string{
		terminal.Count(nodes, "node"), terminal.Count(pods, "pod"), terminal.Count(services, "service"),
	}, ", ")
}

// onlyFlags refuses arguments, which are most likely manifests.
func onlyFlags(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown command or argument %q; did you mean -f %s?", args[0], args[0])
	}
	return nil
}

// readInput reads the standard input, when manifests are to come from there.
func readInput(cmd *cobra.Command, opt *lab.Options) (err error) {
	if slices.Contains(opt.Manifests, manifest.Stdin) {
		if opt.Input, err = io.ReadAll(cmd.InOrStdin()); err != nil {
			return fmt.Errorf("read the standard input: %w", err)
		}
	}
	return nil
}

func checkCommand() *cobra.Command {
	var opt lab.Options
	cmd := &cobra.Command{
		Use:   "check -f FILE|DIR|-… | -k DIR…",
		Short: "Check manifests and settings as up does, without root and without bringing anything up",
		Args:  onlyFlags,
		Example: "  weft-lab check -f examples/shop\n" +
			"  helm template my-release my-chart | weft-lab check -f -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := finish(&opt, ""); err != nil {
				return err
			}
			if err := readInput(cmd, &opt); err != nil {
				return err
			}
			set, err := lab.Check(opt)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			for _, warning := range set.Warnings {
				fmt.Fprintln(out, "warning:", warning)
			}
			if len(set.Ignored) > 0 {
				fmt.Fprintf(out, "ignored: %s, which mean nothing to a network\n", strings.Join(set.Ignored, ", "))
			}
			_, err = fmt.Fprintf(out, "%s, %s\n", counts(len(set.Nodes), len(set.Pods), len(set.Services)),
				terminal.Count(len(set.Policies)+len(set.ClusterPolicies), "policy"))
			return err
		},
	}
	labFlags(cmd, &opt)
	return cmd
}

func serveCommand(name *string) *cobra.Command {
	var opt lab.Options
	cmd := &cobra.Command{
		Use:    serveName,
		Short:  "Run the daemon of a lab; `weft-lab up` does this",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := finish(&opt, *name); err != nil {
				return err
			}
			return lab.Serve(cmd.Context(), opt, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
	labFlags(cmd, &opt)
	return cmd
}

func downCommand(name *string) *cobra.Command {
	var ignore bool
	cmd := &cobra.Command{
		Use:     "down",
		Short:   "Take a lab down, in whatever state it is",
		Args:    cobra.NoArgs,
		Example: "  weft-lab down\n  weft-lab down --name mine",
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, err := lab.Down(context.WithoutCancel(cmd.Context()), *name)
			if errors.Is(err, lab.ErrNotFound) && ignore {
				return nil
			}
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "lab %q is down: ended %s, removed %s\n", *name,
					terminal.Count(removed.Processes, "process"), removed.Files)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&ignore, "ignore-not-found", false, "succeed when there is no such lab")
	return cmd
}

func execCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "exec POD|node/NODE|outside -- COMMAND [ARGUMENT…]",
		Short: "Run a command in a pod's network, on a node, or on a host outside",
		Long: "Runs a program of this machine in the network namespace of a pod (NAME or NAMESPACE/NAME), or in all namespaces of a\n" +
			"node, where ovs-ofctl, ovs-vsctl and weftctl find the node's own Open vSwitch and agent. The host outside is not a node: its\n" +
			"routes lead LoadBalancer and external addresses to the first one.",
		Args: cobra.MinimumNArgs(2),
		Example: "  weft-lab exec shop/frontend-0 -- ip addr\n" +
			"  weft-lab exec node/node1 -- weftctl flows\n" +
			"  weft-lab exec outside -- curl http://192.0.2.1",
		RunE: func(cmd *cobra.Command, args []string) error {
			return exitOf(lab.Exec(cmd.Context(), *name, args[0], args[1:]))
		},
	}
}

// exitOf makes the exit code of a command that was run this program's.
func exitOf(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return cli.ExitError{Code: max(exit.ExitCode(), 1)} // -1 when a signal ended it; it has said why
	}
	return err
}

func kubectlCommand(name *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubectl COMMAND [ARGUMENT…]",
		Short: "Run kubectl against the lab's API server",
		Long: "Runs this machine's kubectl with the lab's API server, which agents ask, too. It serves what the manifests have become:\n" +
			"get, describe and watch work. What changes objects does not: edit the manifests, which the lab follows. All that comes\n" +
			"after kubectl is kubectl's, so --name comes before it.",
		Args: cobra.MinimumNArgs(1),
		Example: "  weft-lab kubectl get pods -A\n" +
			"  weft-lab kubectl describe networkpolicy -n shop\n" +
			"  weft-lab --name shop kubectl get endpointslices -n shop -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			return exitOf(lab.Kubectl(cmd.Context(), *name, args))
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func statusCommand(p *terminal.Format, name *string) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show a lab's nodes, pods and services",
		Args:    cobra.NoArgs,
		Example: "  weft-lab status\n  weft-lab status -o json | jq '.pods[].ips'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.Check(); err != nil {
				return err
			}
			s, err := lab.ReadStatus(cmd.Context(), *name)
			if err != nil {
				return err
			}
			return p.Print(cmd.OutOrStdout(), s, func(w io.Writer) error { return showLab(w, s) })
		},
	}
}

func showLab(out io.Writer, s lab.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	up := terminal.Paint(out, terminal.Green, "up since "+s.Since.Format(time.DateTime))
	if !s.Up {
		up = terminal.Paint(out, terminal.Red, "coming up")
	}
	fmt.Fprintf(w, "Lab\t%s, %s\nManifests\t%s\nNetwork\t%s, %s tunnels, %s datapath\n", s.Name, up,
		strings.Join(append(slices.Clone(s.Manifests), s.Kustomizations...), ", "), s.Family, s.Tunnel, s.Datapath)
	if len(s.Settings) > 0 {
		fmt.Fprintf(w, "Settings\t%s\n", strings.Join(s.Settings, ", "))
	}
	if len(s.Ignored) > 0 {
		fmt.Fprintf(w, "Ignored\t%s, which mean nothing to a network\n", strings.Join(s.Ignored, ", "))
	}
	for _, warning := range s.Warnings {
		fmt.Fprintf(w, "Warning\t%s\n", warning)
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "Problem\t%s\n", terminal.Paint(out, terminal.Red, "the manifests as they are now were not applied: "+
			s.Problem))
	}
	if len(s.Outside.Addrs) > 0 {
		fmt.Fprintf(w, "Outside\ta host at %s, which is not a node\n", terminal.Join(s.Outside.Addrs))
	}
	fmt.Fprint(w, "\nNODE\tADDRESSES\tPOD CIDRS\tFLOWS\tSTATE\n")
	for _, n := range s.Nodes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", n.Name, terminal.Join(n.Addrs), terminal.Join(n.PodCIDRs), n.Flows,
			state(out, n.Problem))
	}
	fmt.Fprint(w, "\nPOD\tNODE\tIPS\tPORTS\n")
	for _, p := range s.Pods {
		fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s\n", p.Namespace, p.Name, p.Node, terminal.Join(p.IPs), terminal.Join(p.Ports))
	}
	if len(s.Services) > 0 {
		fmt.Fprint(w, "\nSERVICE\tTYPE\tIPS\tEXTERNAL\tPORTS\tENDPOINTS\n")
	}
	for _, one := range s.Services {
		fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s\t%s\t%d\n", one.Namespace, one.Name, one.Type, strings.Join(one.IPs, ","),
			terminal.Join(one.External), strings.Join(one.Ports, ","), one.Endpoints)
	}
	for _, e := range s.Events {
		fmt.Fprintf(w, "\nEvent\t%s", e)
	}
	return w.Flush()
}

func state(out io.Writer, problem string) string {
	if problem != "" {
		return terminal.Paint(out, terminal.Red, problem)
	}
	return terminal.Paint(out, terminal.Green, "ready")
}
