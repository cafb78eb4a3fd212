package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/connectivity"
	"github.com/weft-cni/weft/internal/kubectl"
	"github.com/weft-cni/weft/internal/terminal"
)

func connectivityCommand(c *client) *cobra.Command {
	cmd := &cobra.Command{Use: "connectivity", Short: "Test a cluster's network with real packets"}
	cmd.AddCommand(connectivityTestCommand(c), connectivityServeCommand(), connectivityDialCommand())
	return cmd
}

func connectivityTestCommand(c *client) *cobra.Command {
	o := connectivity.Options{}
	var junit string
	var whole time.Duration
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Start pods on the nodes of a cluster, and test all ways between them",
		Long: "Creates a namespace with two pods on each node, from the agents' image, and sends packets between them: on one node and to others,\n" +
			"with the largest packet, to a Service at its cluster IP and node port, to a host port, by names of DNS, with a NetworkPolicy that\n" +
			"allows some and denies the rest, and, with --outside, to addresses outside of the cluster. Each node tries its own pods and those of\n" +
			"up to ten others. Progress is told line by line on standard error; a table at the end has the result of each test and the checks\n" +
			"that failed. The namespace is deleted again, also after Ctrl-C; with --keep it stays, for kubectl weft trace.\n\n" +
			"The exit code is 0 when all tests passed, 1 when one failed, and 2 when they could not be run.",
		Args: cobra.NoArgs,
		Example: "  kubectl weft connectivity test\n" +
			"  kubectl weft connectivity test --outside 192.0.2.7:443 --junit result.xml\n" +
			"  kubectl weft connectivity test --node worker-1,worker-2 --keep",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.output.Check(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), whole)
			defer cancel()
			if err := c.prepare(ctx, cmd.ErrOrStderr(), &o); err != nil {
				return err
			}
			report, err := connectivity.Run(ctx, c.cluster, o)
			if err != nil {
				return interrupted(cmd.Context(), ctx, whole, err)
			}
			err = c.output.Print(cmd.OutOrStdout(), report, func(w io.Writer) error {
				return report.Write(w, func(text string) string { return terminal.Paint(w, terminal.Red, text) })
			})
			if junit != "" {
				err = errors.Join(err, writeJUnit(junit, report))
			}
			if err == nil && !report.Passed() {
				return cli.Found
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&junit, "junit", "", "also write the results to this file, as JUnit's XML")
	flags.StringSliceVar(&o.Outside, "outside", nil, "also connect to this HOST:PORT outside of the cluster (repeat or separate by commas)")
	flags.BoolVar(&o.Keep, "keep", false, "do not delete the namespace at the end")
	flags.StringVar(&o.Image, "image", "", "image with weftctl (default that of the agents)")
	flags.IntVar(&o.HostPort, "host-port", 18999, "port that is free on the nodes, for the test of host ports; 0 leaves it out")
	flags.DurationVar(&o.Start, "start", 45*time.Second, "how long the pods may take to start")
	flags.DurationVar(&whole, "timeout", 5*time.Minute, "end the tests after this time")
	return cmd
}

// interrupted says why a run ended early.
func interrupted(asked, whole context.Context, timeout time.Duration, err error) error {
	switch {
	case asked.Err() != nil:
		return errors.New("interrupted; the namespace of the test is deleted")
	case whole.Err() != nil:
		return fmt.Errorf("the tests did not end within %s; --timeout gives them more", timeout)
	}
	return err
}

// prepare finds the nodes and the image.
func (c *client) prepare(ctx context.Context, progress io.Writer, o *connectivity.Options) error {
	agents, err := c.cluster.Agents(ctx, c.nodes)
	if err != nil {
		return err
	}
	for _, a := range agents {
		if a.Problem != "" {
			fmt.Fprintf(progress, "node %s is left out: %s\n", a.Node, a.Problem)
			continue
		}
		o.Nodes = append(o.Nodes, connectivity.Node{Name: a.Node, Addrs: a.Addrs})
		if o.Image == "" {
			o.Image = a.Image
		}
	}
	if len(o.Nodes) == 0 {
		return errors.New("no node has an agent that runs; kubectl weft status says why")
	}
	o.Namespace = "weft-connectivity-" + strings.ToLower(rand.Text()[:6])
	o.Progress = func(format string, args ...any) { fmt.Fprintf(progress, format+"\n", args...) }
	return nil
}

func writeJUnit(file string, report connectivity.Report) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(report.JUnit(f, time.Now()), f.Close())
}

// connectivityServeCommand runs in the pods of the test.
func connectivityServeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve PORT…", Short: "Send back what HTTP and UDP bring; connectivity test runs this in its pods",
		Hidden: true, Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return connectivity.Serve(cmd.Context(), "", args...) },
	}
}

// connectivityDialCommand runs in the pods of the test.
func connectivityDialCommand() *cobra.Command {
	return &cobra.Command{
		Use: "dial", Short: "Try targets that the input lists; connectivity test runs this in its pods",
		Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var targets []connectivity.Target
			if err := json.NewDecoder(cmd.InOrStdin()).Decode(&targets); err != nil {
				return fmt.Errorf("read the targets: %w", err)
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(connectivity.Dial(cmd.Context(), targets))
		},
	}
}

var _ connectivity.Kubectl = kubectl.Kubectl{}
