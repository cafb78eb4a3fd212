// Command scale measures the real agent on a real Open vSwitch (userspace datapath) against an API server that holds
// thousands of Services or policies: how long it takes from a cold start, how much memory and processor time it uses,
// and what one change costs.
//
// It runs in network and mount namespaces of its own, where one node stands: Open vSwitch, the agent, pods that the
// agent's real CNI code connects, and the lab's API server, in this process. All of it ends with the program. It needs
// root and openvswitch-switch. One goroutine does everything but serve the API, read the switch's events, and answer in
// the pods.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// options are what the command line says.
type options struct {
	agent    string // the program; built when empty
	services int
	policies int
	pods     int
	local    int
	rounds   int
	logs     string
}

// scenarios are what can be measured, by name.
var scenarios = map[string]func(context.Context, *node, options, *report) error{
	"services":        measureServices,
	"policies":        measurePolicies,
	"policies-spread": measureSpread,
	"square":          measureSquare,
	"tiers":           measureTiers,
}

func main() {
	var opt options
	names := strings.Join(slices.Sorted(maps.Keys(scenarios)), ",")
	what := flag.String("run", names, "what to measure, separated by commas")
	output := flag.String("o", "table", "table or json")
	flag.StringVar(&opt.agent, "agent", "", "the weft-agent to measure; built from this repository when empty")
	flag.IntVar(&opt.services, "services", 10000, "Services, of two endpoints each")
	flag.IntVar(&opt.policies, "policies", 5000, "policies")
	flag.IntVar(&opt.pods, "pods", 10000, "pods of the cluster with policies")
	flag.IntVar(&opt.local, "local", 110, "pods of this node")
	flag.IntVar(&opt.rounds, "n", 20, "how often each single change is measured")
	flag.StringVar(&opt.logs, "logs", "", "directory that gets the agents' logs; nothing when empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, strings.Split(*what, ","), *output, opt)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, names []string, output string, opt options) (err error) {
	for _, name := range names {
		if scenarios[name] == nil {
			return fmt.Errorf("-run %s: want any of %v", name, slices.Sorted(maps.Keys(scenarios)))
		}
	}
	if output != "table" && output != "json" {
		return fmt.Errorf("-o %s: want table or json", output)
	}
	if err := testenv.Isolate(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ws")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if opt.agent == "" {
		repo, err := testenv.Repository()
		if err != nil {
			return err
		}
		if opt.agent, err = testenv.Program(ctx, repo, "./cmd/weft-agent", dir); err != nil {
			return err
		}
	}
	for i, name := range names {
		r := &report{Scenario: name, LoadBefore: load()}
		if err := measure(ctx, filepath.Join(dir, fmt.Sprint(i)), scenarios[name], opt, r); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		r.LoadAfter = load()
		if err := r.print(os.Stdout, output); err != nil {
			return err
		}
	}
	return nil
}

// measure gives a scenario a node of its own.
func measure(ctx context.Context, dir string, scenario func(context.Context, *node, options, *report) error,
	opt options, r *report) (err error) {
	n, err := startNode(ctx, dir, opt.agent)
	if err != nil {
		return err
	}
	defer func() {
		if opt.logs != "" {
			err = errors.Join(err, keepLog(dir, opt.logs, r.Scenario))
		}
		err = errors.Join(err, n.stop())
	}()
	return scenario(ctx, n, opt, r)
}

// keepLog copies the agent's log to where it outlives the program.
func keepLog(dir, to, scenario string) error {
	log, err := os.ReadFile(filepath.Join(dir, "logs", "agent.log"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, scenario+".log"), log, 0o600)
}
