package main

import (
	"bytes"
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

// test runs a test binary in its package's directory.
func (in inside) test(ctx context.Context, dir, binary, tests string, env ...string) error {
	return show(ctx, os.Stdout, filepath.Join(in.repo, dir), env, filepath.Join(in.bin, binary), "-test.v",
		"-test.timeout=30m", "-test.run="+tests)
}

// cluster starts a cluster on the kernel's datapath and runs the end-to-end tests that depend on it.
func (in inside) cluster(ctx context.Context) (err error) {
	state := filepath.Join(plan.Scratch, "cluster")
	tool := func(out io.Writer, args ...string) error {
		return show(ctx, out, in.repo, nil, append([]string{filepath.Join(in.bin, "cluster"), "--dir=" + state}, args...)...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.CopyFS(filepath.Join(plan.Results, "cluster-logs"),
				os.DirFS(filepath.Join(state, "logs"))))
		}
	}()
	if err := tool(os.Stdout, "up", "--nodes=3", "--datapath=system", "--agnhost=false", "--dns=false",
		"--ip-family="+in.family, "--image="+in.image); err != nil {
		return err
	}
	var datapaths bytes.Buffer
	if err := tool(&datapaths, "exec", "--node=node1", "--", "ovs-appctl", "dpif/show"); err != nil {
		return fmt.Errorf("%w: %s", err, datapaths.String())
	}
	if !strings.HasPrefix(datapaths.String(), "system@") {
		return fmt.Errorf("the nodes' datapath is not the kernel's:\n%s", datapaths.String())
	}
	tests := in.tests
	if tests == "" {
		tests = endToEnd
	}
	if err := in.test(ctx, "test/e2e", "e2e.test", tests, "WEFT_CLUSTER_DIR="+state); err != nil {
		return err
	}
	return tool(os.Stdout, "down")
}
