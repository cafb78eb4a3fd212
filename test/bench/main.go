// Command bench measures Weft and its peers side by side: two networks of each kind and CNI plugins on one machine, in
// namespaces, taking turns within each round. It writes what it found as JSON, and shows it as a table, as a
// comparison of two runs, and as a page with plots (package result).
//
// `bench run` builds the programs, and measures in a child process that has network and mount namespaces of its own.
// All that stands is in these, in the lab's cgroups, or started by the child, and ends with it. It needs root and Open
// vSwitch.
package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/version"
	"github.com/weft-cni/weft/test/bench/result"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	os.Exit(cli.Finish("bench", err, cli.CannotAsk, os.Stderr))
}

func newRoot() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure Weft beside its peers, on one machine in one run",
		Long: "Weft, plain Open vSwitch with and without conntrack, Linux bridges with VXLAN, the reference CNI plugins\n" +
			"and raw bundles of flows take turns. docs/benchmarks.md says what the cases and systems are.\n\n" +
			"Exit codes: 0 well; 1 a figure became worse (diff), an aim is missed (run --check) or a measurement failed;\n" +
			"2 the program could not do what it was asked for.",
		Example: "  bench run -o dist/bench.json\n" +
			"  bench run --quick --check\n" +
			"  bench run --cases '^(connections|latency)/' --systems '^(weft|ovs-normal-ct)$' --rounds 7\n" +
			"  bench run --against v0.1.0 --cases '^connections' --systems '^weft'\n" +
			"  bench diff before.json after.json\n" +
			"  bench page dist/bench.json",
		Version:       version.Get().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(runCommand(), showCommand(), diffCommand(), pageCommand(), buildCommand(), cli.VersionCommand())
	cli.Strict(cmd)
	return cmd
}

func showCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "show FILE",
		Short:   "Show the table of a run",
		Example: "  bench show dist/bench.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := result.Read(args[0])
			if err != nil {
				return err
			}
			return r.Table(cmd.OutOrStdout())
		},
	}
}

func diffCommand() *cobra.Command {
	var threshold float64
	var ratios, all bool
	cmd := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Compare two runs",
		Long: "Values are compared between runs of one machine, ratios and counts always. A figure is the same when the\n" +
			"middle halves of its rounds overlap. The exit code is 1 when a figure is worse by more than the threshold.",
		Example: "  bench diff before.json after.json\n" +
			"  bench diff --ratios --threshold 10 docs/benchmarks/result.json dist/bench.json",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if threshold < 0 {
				return fmt.Errorf("--threshold %g: want 0 or more", threshold)
			}
			before, err := result.Read(args[0])
			if err != nil {
				return err
			}
			after, err := result.Read(args[1])
			if err != nil {
				return err
			}
			c := result.Diff(before, after, threshold, ratios)
			if err := c.Print(cmd.OutOrStdout(), all); err != nil {
				return err
			}
			if c.Worse() {
				return cli.Found
			}
			return nil
		},
	}
	cmd.Flags().Float64Var(&threshold, "threshold", 30, "percent by which a figure may become worse")
	cmd.Flags().BoolVar(&ratios, "ratios", false, "compare only ratios and counts, as between different machines")
	cmd.Flags().BoolVar(&all, "all", false, "show also the figures that are the same")
	return cmd
}

// pageName is the page below the documents' directory.
const pageName = "benchmarks.md"

func pageCommand() *cobra.Command {
	var docs string
	cmd := &cobra.Command{
		Use:     "page FILE",
		Short:   "Write docs/benchmarks.md and its plots from the file of a run, with a copy of the file",
		Example: "  bench page dist/bench.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := result.Read(args[0])
			if err != nil {
				return err
			}
			return writePage(r, docs, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&docs, "docs", "docs", "directory of the documents")
	return cmd
}

// writePage replaces the page, its plots, and the file of the run beside them.
func writePage(r *result.Run, docs string, say io.Writer) error {
	page, plots, err := r.Page()
	if err != nil {
		return err
	}
	text, err := r.JSON()
	if err != nil {
		return err
	}
	files := map[string]string{pageName: page, filepath.Join(result.PlotDirectory, "result.json"): string(text)}
	maps.Copy(files, plots)
	if err := os.RemoveAll(filepath.Join(docs, result.PlotDirectory)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(docs, result.PlotDirectory), 0o755); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := os.WriteFile(filepath.Join(docs, name), []byte(files[name]), 0o644); err != nil {
			return err
		}
		fmt.Fprintln(say, filepath.Join(docs, name))
	}
	return nil
}

func buildCommand() *cobra.Command {
	var against string
	cmd := &cobra.Command{
		Use:     "build DIRECTORY",
		Short:   "Build what `bench run --programs DIRECTORY` runs, for a machine without a toolchain",
		Example: "  bench build dist/bench --against v0.1.0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			return buildPrograms(cmd.Context(), dir, against)
		},
	}
	cmd.Flags().StringVar(&against, "against", "", "commit whose agent is built, too")
	return cmd
}
