// weft-agent runs on every node and makes its Open vSwitch a part of the cluster's network.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/openvswitch"
	"github.com/weft-cni/weft/internal/version"
	"github.com/weft-cni/weft/pkg/agent"
	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/cni/wire"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report/api"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := &cobra.Command{
		Use:           "weft-agent",
		Short:         "Weft's agent: one node's part of an Open vSwitch network for Kubernetes",
		Version:       version.Get().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(runCommand(), installCommand(), openVSwitchCommand(), checkCommand(), cli.VersionCommand())
	cli.Strict(root)
	err := root.ExecuteContext(ctx)
	stop()
	os.Exit(cli.Finish("weft-agent", err, cli.Problem, os.Stderr))
}

var errNoNode = errors.New(
	"--node-name or the environment variable NODE_NAME must name this node as the API server knows it")

func runCommand() *cobra.Command {
	opt := agent.Options{Version: version.Get(), Level: new(slog.LevelVar)}
	cmd := &cobra.Command{
		Use:     "run",
		Short:   "Run the agent; the DaemonSet does this",
		Args:    cobra.NoArgs,
		Example: "  weft-agent run --config /etc/weft/config.yaml --node-name node1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opt.Node == "" {
				return errNoNode
			}
			cfg, err := config.Load(opt.ConfigFile)
			if err != nil {
				return errors.Join(err, agent.WriteTermination(opt.TerminationLog, []string{err.Error()}))
			}
			opt.Log = newLogger(os.Stderr, cfg.LogFormat, opt.Level)
			return agent.Run(cmd.Context(), opt)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opt.ConfigFile, "config", "/etc/weft/config.yaml",
		"configuration file, the key config.yaml of the ConfigMap weft-config")
	flags.StringVar(&opt.Node, "node-name", os.Getenv("NODE_NAME"), "name of this node's Node object (default $NODE_NAME)")
	flags.StringVar(&opt.Kubeconfig, "kubeconfig", "",
		"how to reach the API server; without it, the pod's service account says so")
	flags.StringVar(&opt.CNISocket, "cni-socket", wire.DefaultSocket, "Unix socket that weft-cni calls")
	flags.StringVar(&opt.OperatorSocket, "operator-socket", api.DefaultSocket, "Unix socket that weftctl calls")
	flags.StringVar(&opt.CNIConfDir, "cni-conf-dir", "/etc/cni/net.d",
		"the container runtime's directory of CNI configurations")
	flags.StringVar(&opt.ProcSys, "proc-sys", "/proc/sys", "where the node's /proc/sys can be written")
	flags.StringVar(&opt.TerminationLog, "termination-log", "/dev/termination-log",
		"file in which the kubelet reads why the container has ended, if it exists")
	flags.StringVar(&opt.HostRun, "host-run", "/run",
		"where the node's /run is mounted: an ovsRunDir below /run is looked for there")
	return cmd
}

// newLogger makes the logger of everything in this process: the agent, the packages that use slog's default, and
// client-go, which logs through klog. All lines have one format and heed one level.
func newLogger(w io.Writer, format config.LogFormat, level *slog.LevelVar) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	log := slog.New(slog.NewTextHandler(w, options))
	if format == config.LogJSON {
		log = slog.New(slog.NewJSONHandler(w, options))
	}
	slog.SetDefault(log)
	klog.SetSlogLogger(log)
	return log
}

func installCommand() *cobra.Command {
	var from, to string
	cmd := &cobra.Command{
		Use:     "install-cni",
		Short:   "Copy the CNI plugins to the node; the DaemonSet's init container does this",
		Args:    cobra.NoArgs,
		Example: "  weft-agent install-cni --from /opt/weft/cni --to /host/opt/cni/bin",
		RunE: func(*cobra.Command, []string) error {
			written, err := cni.InstallBinaries(from, to)
			if err == nil {
				fmt.Println("installed", written, "in", to)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "/opt/weft/cni", "directory of the plugins in the image")
	cmd.Flags().StringVar(&to, "to", "/opt/cni/bin", "the node's directory of CNI plugins")
	return cmd
}

func openVSwitchCommand() *cobra.Command {
	o := openvswitch.Options{Bridge: model.BridgeName}
	cmd := &cobra.Command{
		Use:     "openvswitch",
		Short:   "Run Open vSwitch on a node that has none; the DaemonSet of openvswitch.yaml does this",
		Args:    cobra.NoArgs,
		Example: "  weft-agent openvswitch --node-name node1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Node == "" {
				return errNoNode
			}
			o.Log = newLogger(os.Stderr, config.LogText, new(slog.LevelVar))
			return openvswitch.Run(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Node, "node-name", os.Getenv("NODE_NAME"), "name of this node's Node object (default $NODE_NAME)")
	flags.StringVar(&o.RunDir, "run-dir", config.Default().OVSRunDir, "directory of sockets and pid files")
	flags.StringVar(&o.Database, "database", "/var/lib/openvswitch/conf.db", "file of the database")
	flags.StringVar(&o.Schema, "schema", "/usr/share/openvswitch/vswitch.ovsschema", "schema of the database")
	flags.DurationVar(&o.RestoreWithin, "restore-within", time.Minute,
		"time for the agent to program the flows after a restart, while the kernel forwards as before")
	return cmd
}

func checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "check-config FILE",
		Short:   "Say whether a configuration file is right, and what is wrong with it",
		Args:    cobra.ExactArgs(1),
		Example: "  weft-agent check-config config.yaml",
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := config.Load(args[0]); err != nil {
				return err
			}
			fmt.Println(args[0], "is right")
			return nil
		},
	}
}
