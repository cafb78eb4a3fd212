// Command cluster runs a real Kubernetes cluster of several nodes on one Linux machine, without Docker, images from a
// registry or a virtual machine: in sandboxes (see test/lab/sandbox), one with etcd and the control plane, and per
// node one with Open vSwitch, containerd, runc and kubelet.
//
// What stands is owned by its processes' cgroups, not by this program: `up` starts it and ends, and `down` needs no
// record to find it. The record in the state directory (see test/cluster/state) is for the other commands and for
// tests.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/lab/datapath"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{Use: "cluster", Short: "A real Kubernetes cluster on this machine", SilenceUsage: true,
		SilenceErrors: true}
	var w where
	root.PersistentFlags().StringVar(&w.dir, "dir", ".cluster", "state directory")
	root.PersistentFlags().StringVar(&w.name, "name", defaultName,
		"name of the cluster; several stand side by side, each with its own state directory")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return w.resolve() }
	root.AddCommand(upCommand(&w), downCommand(&w), loadCommand(&w), execCommand(&w), conformanceCommand(&w),
		&cobra.Command{
			Use: "status", Short: "Show what stands and whether it is well", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := w.load()
				if err != nil {
					return err
				}
				return status(cmd.Context(), os.Stdout, c)
			},
		},
		&cobra.Command{
			Use: "deps", Short: "Install the Debian packages that a cluster needs", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return installPackages(cmd.Context(), newProgress(os.Stdout))
			},
		},
		buildCommand())
	return root
}

func buildCommand() *cobra.Command {
	var policies bool
	cmd := &cobra.Command{
		Use: "build", Short: "Build the programs of Kubernetes, etcd and CoreDNS, which up does too; CI does it beside " +
			"other work", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, err := testenv.Repository()
			if err != nil {
				return err
			}
			all := []component{kubernetes, coreDNS, upstreamTests}
			if policies {
				all = append(all, policyTests)
			}
			return buildAll(cmd.Context(), newProgress(os.Stdout), repo, all)
		},
	}
	cmd.Flags().BoolVar(&policies, "clusternetworkpolicy", false, "also network-policy-api's conformance suite")
	return cmd
}

// defaultName is the name of a cluster that got none.
const defaultName = "weft"

// where says which cluster a command is about.
type where struct {
	dir, name string
	group     sandbox.Group
}

// resolve checks the flags, and refuses to take one cluster's state directory for another's.
func (w *where) resolve() (err error) {
	if w.group, err = sandbox.ParseGroup(w.name); err != nil {
		return err
	}
	if w.dir, err = filepath.Abs(w.dir); err != nil {
		return err
	}
	// Commands that need the record complain about a missing or broken one themselves; up and down do without.
	if c, err := state.Load(w.dir); err == nil && c.Plan.Name != w.name {
		return fmt.Errorf(
			"%s is the state directory of cluster %q, not of %q: give --name %[2]s (NAME=%[2]s) or another --dir", w.dir,
			c.Plan.Name, w.name)
	}
	return nil
}

func (w *where) load() (state.Cluster, error) { return state.Load(w.dir) }

func upCommand(w *where) *cobra.Command {
	var o upOptions
	var family string
	var noWeft bool
	cmd := &cobra.Command{
		Use: "up", Short: "Start a cluster, in place of a previous one of that name", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			o.plan.Name, o.dir = w.name, w.dir
			if o.plan.Family, err = state.ParseIPFamily(family); err != nil {
				return err
			}
			if o.datapath, err = datapath.Parse(string(o.datapath)); err != nil {
				return err
			}
			if o.nodes < 1 || o.nodes > state.MaxNodes {
				return fmt.Errorf("--nodes %d: want 1 to %d", o.nodes, state.MaxNodes)
			}
			if noWeft {
				o.install, o.dns = "", o.dns && cmd.Flags().Changed("dns")
			}
			for _, path := range []*string{&o.install, &o.image} {
				if *path == "" {
					continue
				}
				if *path, err = filepath.Abs(*path); err != nil {
					return err
				}
			}
			return up(cmd.Context(), newProgress(os.Stdout), o)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.nodes, "nodes", 3, "how many nodes")
	flags.StringVar(&family, "ip-family", "ipv4", "addresses of nodes, pods and Services: ipv4, ipv6 or dual")
	flags.StringVar(&o.tunnel, "tunnel", "geneve", "Weft's tunnelType: geneve, vxlan or gre")
	flags.StringToStringVar(&o.settings, "set", nil, "settings of Weft, KEY=VALUE, as transport=direct; several times")
	flags.StringVar((*string)(&o.datapath), "datapath", string(datapath.Netdev),
		"Weft's datapath: netdev, or system where the machine's kernel has Open vSwitch")
	flags.StringVar(&o.install, "install", filepath.Join("deploy", "weft.yaml"), "Weft's manifest")
	flags.StringVar((*string)(&o.switches), "openvswitch", string(ofNode),
		"who starts Open vSwitch: the node, or a daemonset (openvswitch.yaml beside Weft's manifest)")
	flags.StringVar(&o.image, "image", "", "tar with Weft's image, to put on every node")
	flags.BoolVar(&o.agnhost, "agnhost", true, "put Kubernetes' image for tests on every node")
	flags.BoolVar(&o.dns, "dns", true, "run CoreDNS; with --no-weft, only if --dns is given")
	flags.BoolVar(&noWeft, "no-weft", false, "leave the cluster without a pod network")
	return cmd
}

func downCommand(w *where) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Remove a cluster, in whatever state it is", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return down(cmd.Context(), newProgress(os.Stdout), w.group, w.dir)
		},
	}
}

func loadCommand(w *where) *cobra.Command {
	return &cobra.Command{
		Use: "load IMAGE.tar", Short: "Put an image on every node", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := w.load()
			if err != nil {
				return err
			}
			tar, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			if _, err := os.Stat(tar); err != nil {
				return fmt.Errorf("load image: %w", err)
			}
			return newProgress(os.Stdout).step("Load "+args[0], func(func(string)) error {
				return each(cmd.Context(), len(c.Nodes), func(ctx context.Context, i int) error {
					return importImage(ctx, c.Nodes[i], tar)
				})
			})
		},
	}
}

func execCommand(w *where) *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "exec --node NAME -- COMMAND…", Short: "Run a command in a node's namespaces, or in those of " +
			state.ControlPlaneName + " or " + state.OutsideName,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := w.load()
			if err != nil {
				return err
			}
			n, err := c.Find(node)
			if err != nil {
				return err
			}
			enter, err := n.Enter()
			if err != nil {
				return fmt.Errorf("%w: start the cluster again", err)
			}
			return replace(append(enter, args...), execEnv(os.Environ(), c))
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "name of the node, or "+state.ControlPlaneName+" or "+state.OutsideName)
	if err := cmd.MarkFlagRequired("node"); err != nil {
		panic(err) // only if the flag above is renamed
	}
	return cmd
}

// replace becomes another program, so that its input, output, signals and exit status are the caller's.
func replace(argv, env []string) error {
	return fmt.Errorf("run %s: %w", strings.Join(argv, " "), syscall.Exec(argv[0], argv, env))
}

// execEnv makes kubectl, ctr and crictl work without flags on a node.
func execEnv(env []string, c state.Cluster) []string {
	path := "PATH=" + paths(c.Dir).join("bin") + ":" + os.Getenv("PATH")
	return append(slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, "PATH=") }),
		path, "KUBECONFIG="+c.Kubeconfig(), "CONTAINERD_NAMESPACE=k8s.io",
		"CONTAINERD_ADDRESS=/run/containerd/containerd.sock",
		"CONTAINER_RUNTIME_ENDPOINT=unix:///run/containerd/containerd.sock")
}
