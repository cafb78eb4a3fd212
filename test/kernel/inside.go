package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/kernel/machine/plan"
)

// insideCommand is what `test` runs in the guest.
func insideCommand() *cobra.Command {
	var in inside
	cmd := &cobra.Command{
		Use: "inside SUITE…", Hidden: true, Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			chosen, err := findSuites(args)
			if err != nil {
				return err
			}
			if in.repo, err = testenv.Repository(); err != nil {
				return err
			}
			if in.image, err = filepath.Abs(in.image); err != nil {
				return err
			}
			if err := sayWhere(cmd.Context()); err != nil {
				return err
			}
			var failed []error
			for _, s := range chosen {
				start := time.Now()
				err := s.run(cmd.Context(), in)
				verdict := "passed"
				if err != nil {
					verdict = "FAILED: " + err.Error()
					failed = append(failed, fmt.Errorf("suite %s: %w", s.name, err))
				}
				fmt.Printf("=== suite %s (%s), on the kernel's datapath: %s, %.0f s\n", s.name, s.doc, verdict,
					time.Since(start).Seconds())
			}
			return errors.Join(failed...)
		},
	}
	in.flags(cmd)
	cmd.Flags().StringVar(&in.bin, "bin", "", "directory with what was built on the host")
	return cmd
}

// sayWhere prints what the tests run on, and fails where that is not what they are about.
func sayWhere(ctx context.Context) error {
	var version bytes.Buffer
	if err := show(ctx, &version, "/", nil, "ovs-vswitchd", "--version"); err != nil {
		return err
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	if _, err := os.Stat("/sys/module/openvswitch"); err != nil {
		return fmt.Errorf("this kernel forwards nothing for Open vSwitch: %w", err)
	}
	first, _, _ := strings.Cut(version.String(), "\n")
	fmt.Printf("=== Linux %s; %s; datapath system, by the kernel's module openvswitch\n",
		strings.TrimSpace(string(kernel)), first)
	return nil
}

// test runs a test binary in its package's directory. What bounds it is the whole run's --timeout.
func (in inside) test(ctx context.Context, dir, binary, tests string, env ...string) error {
	return show(ctx, os.Stdout, filepath.Join(in.repo, dir), env, filepath.Join(in.bin, binary), "-test.v",
		"-test.timeout=0", "-test.run="+tests)
}

// clusterTool is the command that starts a cluster.
type clusterTool func(out io.Writer, args ...string) error

// cluster starts a cluster on the kernel's datapath and runs the end-to-end tests that depend on it.
func (in inside) cluster(ctx context.Context) error {
	return in.withCluster(ctx, []string{"--nodes=3", "--agnhost=false", "--dns=false"},
		func(_ clusterTool, state string) error {
			return in.test(ctx, "test/e2e", "e2e.test", cmp.Or(in.tests, endToEnd), "WEFT_CLUSTER_DIR="+state)
		})
}

// conformance runs network-policy-api's conformance tests on one; SCTP is the kernel's own.
func (in inside) conformance(ctx context.Context) error {
	return in.withCluster(ctx, []string{"--nodes=2", "--dns=false"}, func(tool clusterTool, _ string) error {
		return tool(os.Stdout, "conformance", "--focus=clusternetworkpolicy/"+in.tests,
			"--out="+filepath.Join(plan.Results, "conformance"))
	})
}

// withCluster runs f while there is a cluster on the kernel's datapath, with its state directory. If f fails, the
// cluster's logs are among the results.
func (in inside) withCluster(ctx context.Context, up []string,
	f func(tool clusterTool, state string) error) (err error) {
	state := filepath.Join(plan.Scratch, "cluster")
	tool := clusterTool(func(out io.Writer, args ...string) error {
		return show(ctx, out, in.repo, nil, append([]string{filepath.Join(in.bin, "cluster"), "--dir=" + state}, args...)...)
	})
	defer func() {
		if err != nil {
			err = errors.Join(err, os.CopyFS(filepath.Join(plan.Results, "cluster-logs"),
				os.DirFS(filepath.Join(state, "logs"))))
		}
	}()
	up = append([]string{"up", "--datapath=system", "--ip-family=" + in.family, "--image=" + in.image}, up...)
	if err := tool(os.Stdout, up...); err != nil {
		return err
	}
	var datapaths bytes.Buffer
	if err := tool(&datapaths, "exec", "--node=node1", "--", "ovs-appctl", "dpif/show"); err != nil {
		return fmt.Errorf("%w: %s", err, datapaths.String())
	}
	if !strings.HasPrefix(datapaths.String(), "system@") {
		return fmt.Errorf("the nodes' datapath is not the kernel's:\n%s", datapaths.String())
	}
	if err := f(tool, state); err != nil {
		return err
	}
	return tool(os.Stdout, "down")
}
