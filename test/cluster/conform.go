package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/conformance"
	"github.com/weft-cni/weft/test/cluster/image"
	"github.com/weft-cni/weft/test/cluster/state"
)

const (
	// conformanceTimeout bounds a run. Specs have time limits of their own.
	conformanceTimeout = "3h"
	// conformanceGrace is how long an interrupted run may take to delete its namespaces.
	conformanceGrace = 2 * time.Minute
)

// conformanceOptions are what `conformance` was asked for.
type conformanceOptions struct {
	focus string
	procs int
	out   string // the directory of results
}

func conformanceCommand(w *where) *cobra.Command {
	var o conformanceOptions
	cmd := &cobra.Command{
		Use: "conformance", Short: "Run Kubernetes' own specs of sig-network against the cluster, or network-policy-api's " +
			"tests; it has to be without other load", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := w.load()
			if err != nil {
				return err
			}
			if suite, tests, _ := strings.Cut(o.focus, "/"); suite == conformance.ClusterNetworkPolicy {
				return conformPolicies(cmd.Context(), newProgress(os.Stdout), c, o, tests)
			}
			return conform(cmd.Context(), newProgress(os.Stdout), c, o)
		},
	}
	cmd.Flags().StringVar(&o.focus, "focus", "services",
		"which specs: services, netpol, ci, a regular expression over their names; or clusternetworkpolicy, "+
			"and of its tests those of clusternetworkpolicy/REGEXP")
	cmd.Flags().IntVar(&o.procs, "procs", 4, "how many specs run at once")
	cmd.Flags().StringVar(&o.out, "out", filepath.Join("dist", "conformance"), "directory of the results")
	return cmd
}

// conform runs the specs of a focus and prints what they found. It fails unless all of them pass.
func conform(ctx context.Context, p *progress, c state.Cluster, o conformanceOptions) error {
	focus, err := conformance.Focus(o.focus)
	if err != nil {
		return err
	}
	repo, err := testenv.Repository()
	if err != nil {
		return err
	}
	tests, err := upstreamTests.ensure(ctx, p, repo)
	if err != nil {
		return err
	}
	if err := checkImage(ctx, filepath.Join(tests, "e2e.test")); err != nil {
		return err
	}
	dir, err := resultsDir(o, c)
	if err != nil {
		return err
	}
	report, log := filepath.Join(dir, "junit.xml"), filepath.Join(dir, "e2e.log")
	if err := os.RemoveAll(report); err != nil {
		return fmt.Errorf("remove the previous report: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(c.Components, "ginkgo"),
		fmt.Sprintf("--procs=%d", o.procs), "--timeout="+conformanceTimeout, "--no-color", "-v",
		"--output-dir="+dir, "--junit-report="+filepath.Base(report), "--focus="+focus, "--label-filter="+conformance.Filter(
			c.Plan.Family),
		filepath.Join(tests, "e2e.test"), "--",
		"--kubeconfig="+c.Kubeconfig(), "--provider=skeleton", "--allowed-not-ready-nodes=-1", "--disable-log-dump",
		// Only the first of Ginkgo's processes counts them; specs of the others would skip themselves.
		fmt.Sprintf("--num-nodes=%d", len(c.Nodes)))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = conformanceGrace
	var total string
	done, failed := 0, 0
	runErr := p.step(fmt.Sprintf("Specs %q, %d at once; they print to %s", o.focus, o.procs, log),
		func(detail func(string)) error {
			return runLogged(cmd, log, func(line string) {
				// The last line of each spec begins so, with what became of it unless it passed.
				if rest, ok := strings.CutPrefix(line, "• ["); ok {
					done++
					if rest[0] < '0' || rest[0] > '9' {
						failed++
					}
				} else if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "Will" && fields[1] == "run" {
					total = " of " + fields[2]
				}
				detail(fmt.Sprintf("%d%s done, %d failed", done, total, failed))
			})
		})
	specs, err := conformance.Read(report)
	if err != nil {
		return fmt.Errorf("no result: %w; %w; the end of %s:\n%s", runErr, err, log, tail(log))
	}
	return summarize(ctx, p, o, specs, dir, runErr)
}

// resultsDir makes the directory of a run's results.
func resultsDir(o conformanceOptions, c state.Cluster) (string, error) {
	name := strings.Trim(regexp.MustCompile(`[^A-Za-z0-9]+`).ReplaceAllString(o.focus, "-"), "-")
	dir, err := filepath.Abs(filepath.Join(o.out, name[:min(len(name), 60)]+"-"+string(c.Plan.Family)))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the directory of results: %w", err)
	}
	return dir, nil
}

// summarize prints what a run found. It fails unless all specs passed.
func summarize(ctx context.Context, p *progress, o conformanceOptions, specs []conformance.Spec, dir string,
	runErr error) error {
	fmt.Println()
	conformance.Print(os.Stdout, specs)
	failed := conformance.Failed(specs)
	p.print(fmt.Sprintf("%s failed; results are in %s", terminal.CountOf(failed, len(specs), "spec"), dir))
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s failed before the run was interrupted", terminal.CountOf(failed, len(specs), "spec"))
	case failed > 0:
		return fmt.Errorf("%s failed", terminal.CountOf(failed, len(specs), "spec"))
	case conformance.Passed(specs) == 0:
		return fmt.Errorf("no spec of the focus %q was run", o.focus)
	}
	return runErr
}

// checkImage makes sure that the image on the nodes has the name that the specs give it.
func checkImage(ctx context.Context, tests string) error {
	out, err := exec.CommandContext(ctx, tests, "--list-images").Output()
	if err != nil {
		return fmt.Errorf("list the images of the specs: %w", err)
	}
	if !slices.Contains(strings.Fields(string(out)), image.UpstreamAgnhost) {
		return fmt.Errorf("the specs do not use %s: write the version that they use into image/contents.go",
			image.UpstreamAgnhost)
	}
	return nil
}

// runLogged runs a command with its output in a file, and passes on every line.
func runLogged(cmd *exec.Cmd, log string, line func(string)) error {
	file, err := os.Create(log)
	if err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	defer file.Close()
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	ended := make(chan error, 1)
	go func() {
		err := cmd.Run()
		writer.Close()
		ended <- err
	}()
	defer reader.Close() // when the disk is full, the command must not wait for a reader
	lines := bufio.NewReader(io.TeeReader(reader, file))
	for {
		text, err := lines.ReadString('\n')
		line(text)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("write the log: %w", err)
		}
	}
	if err := <-ended; err != nil {
		return fmt.Errorf("run the specs: %w", err)
	}
	return nil
}
