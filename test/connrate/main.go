// Command connrate measures what connections cost: how many a second a pod can make, to a pod of another node and
// through a Service, and how much processor time ovs-vswitchd spends on 1,000 of them. It measures several builds of
// the agent in turns, each on labs of their own, and prints the medians as a table and, with --json, into a file.
//
// It needs root and Open vSwitch, leaves nothing behind, and holds no state beyond one run.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

func main() {
	var o options
	flag.StringVar(&o.datapath, "datapath", "netdev", "netdev, or system where the kernel has Open vSwitch")
	flag.IntVar(&o.count, "n", 5000, "connections of one measurement")
	flag.IntVar(&o.rounds, "rounds", 3, "measurements of each build, of which the median counts")
	flag.IntVar(&o.workers, "workers", 16, "connections that are under way at once")
	flag.StringVar(&o.against, "against", "", "commit whose agent is built and measured, too")
	flag.StringVar(&o.programs, "programs", "",
		"directory with weft-lab and weft-agent, and weft-agent.against of another build, instead of building them")
	flag.StringVar(&o.buildOnly, "build", "", "build the programs into this directory, for --programs, and end")
	flag.StringVar(&o.json, "json", "", "file for the figures")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "connrate:", err)
		os.Exit(1)
	}
}

type options struct {
	datapath           string
	count              int
	rounds, workers    int
	against            string
	programs           string
	buildOnly, json    string
	weftLab, agentPath string
}

// build is one build of the agent with what was measured of it.
type build struct {
	Name    string              `json:"build"`
	Results map[string][]result `json:"results"` // by way
	agent   string
}

// result is one measurement.
type result struct {
	PerSecond float64 `json:"connectionsPerSecond"`
	// CPU is ovs-vswitchd's processor time for 1,000 connections, in seconds, of all nodes.
	CPU float64 `json:"vswitchdCPUPer1000"`
}

// againstName is what the other build of the agent is called in the directory of the programs.
const againstName = "weft-agent.against"

func run(ctx context.Context, o options) (err error) {
	if o.buildOnly != "" {
		return buildPrograms(ctx, o.buildOnly, o.against)
	}
	dir := o.programs
	if dir == "" {
		if dir, err = os.MkdirTemp("", "weft-connrate-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		if err := buildPrograms(ctx, dir, o.against); err != nil {
			return err
		}
	}
	o.weftLab = filepath.Join(dir, "weft-lab")
	builds := []*build{{Name: "this", agent: filepath.Join(dir, "weft-agent")}}
	if other := filepath.Join(dir, againstName); exists(other) {
		builds = append(builds, &build{Name: "against", agent: other})
	}
	for _, b := range builds {
		b.Results = map[string][]result{}
	}
	for round := range o.rounds {
		for _, b := range builds {
			o.agentPath = b.agent
			if err := o.measure(ctx, b); err != nil {
				return fmt.Errorf("build %s, round %d: %w", b.Name, round+1, err)
			}
		}
		slices.Reverse(builds) // the other one goes first next time
	}
	slices.SortFunc(builds, func(a, b *build) int { return -strings.Compare(a.Name, b.Name) })
	fmt.Print(table(o, builds))
	if o.json == "" {
		return nil
	}
	text, err := json.MarshalIndent(map[string]any{"datapath": o.datapath, "connections": o.count, "builds": builds}, "",
		"  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(text, '\n'), 0o644)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// buildPrograms builds weft-lab and the agent from the working tree, and another agent from a commit, in a worktree
// that is removed again.
func buildPrograms(ctx context.Context, dir, against string) (err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	repo, err := testenv.Repository()
	if err != nil {
		return err
	}
	for _, pkg := range []string{"./test/weft-lab", "./cmd/weft-agent"} {
		if _, err := testenv.Program(ctx, repo, pkg, dir); err != nil {
			return err
		}
	}
	if against == "" {
		return nil
	}
	tree, err := os.MkdirTemp("", "weft-connrate-tree-")
	if err != nil {
		return err
	}
	// The worktree is git's to remove, also when the build is interrupted.
	defer func() {
		removed := command(context.WithoutCancel(ctx), repo, "git", "worktree", "remove", "--force", tree)
		err = errors.Join(err, removed)
	}()
	if err := command(ctx, repo, "git", "worktree", "add", "--detach", "--force", tree, against); err != nil {
		return err
	}
	return command(ctx, tree, "env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags=-s -w", "-o",
		filepath.Join(dir, againstName), "./cmd/weft-agent")
}

// command runs a command in a directory.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Dir, cmd.Stderr = dir, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return nil
}
