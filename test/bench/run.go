package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/test/bench/result"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// options are what the command line says.
type options struct {
	result.Options
	name           string
	cases, systems string
	output         string
	programs       string
	against        string
	quick, check   bool
	list           bool
	timeout        time.Duration
}

// insideVariable tells the child process that it has namespaces of its own.
const insideVariable = "WEFT_BENCH_INSIDE"

// full and quick are the sizes of the two runs.
var (
	full = result.Options{Rounds: 7, Seconds: 1, Connections: 2000, Policies: 1000, Services: 5000, Attachments: 32,
		Standing: 20, Datapath: "netdev", Tunnel: "vxlan", AddressFamily: ipv4}
	quick = result.Options{Rounds: 3, Seconds: 0.2, Connections: 500, Policies: 100, Services: 1000, Attachments: 16,
		Standing: 5, Datapath: "netdev", Tunnel: "vxlan", AddressFamily: ipv4}
)

func runCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Measure, show the table, and write the file of the run",
		Long: "Builds the programs, brings all systems up, checks that each carries traffic both ways over IPv4 and IPv6,\n" +
			"and measures every case in every round. Progress goes to the standard error.",
		Example: "  bench run -o dist/bench.json      # everything, a quarter of an hour\n" +
			"  bench run --quick --check         # below three minutes, and exit code 1 for a missed aim\n" +
			"  bench run --list                  # the cases and systems\n" +
			"  bench run --cases '^connections/' --systems '^(weft|ovs-normal-ct)$'\n" +
			"  bench run --against HEAD~5 --cases '^connections' --systems '^weft'\n" +
			"  bench run --datapath system --programs dist/bench    # where there is no toolchain",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.complete(cmd); err != nil {
				return err
			}
			if os.Getenv(insideVariable) == "" && !o.list {
				return o.outside(cmd)
			}
			return o.inside(cmd)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.output, "output", "o", "", "file for the run as JSON")
	flags.StringVar(&o.cases, "cases", "", "regular expression: only these cases")
	flags.StringVar(&o.systems, "systems", "", "regular expression: only these systems")
	flags.BoolVar(&o.list, "list", false, "show cases with their systems, and end")
	flags.BoolVar(&o.quick, "quick", false, "fewer and shorter rounds, and smaller sets of objects")
	flags.BoolVar(&o.check, "check", false, "end with exit code 1 when an aim is missed")
	flags.IntVar(&o.Rounds, "rounds", full.Rounds, "rounds")
	flags.Float64Var(&o.Seconds, "seconds", full.Seconds, "seconds of one measurement of traffic")
	flags.IntVarP(&o.Connections, "connections", "n", full.Connections, "connections of one measurement")
	flags.IntVar(&o.Policies, "policies", full.Policies, "policies")
	flags.IntVar(&o.Services, "services", full.Services, "Services that are programmed")
	flags.IntVar(&o.Attachments, "attachments", full.Attachments, "CNI ADDs and DELs of one measurement")
	flags.IntVar(&o.Standing, "standing", full.Standing, "pods that stand while others are attached")
	flags.StringVar(&o.Datapath, "datapath", full.Datapath, "netdev, or system where the kernel has Open vSwitch")
	flags.StringVar(&o.Tunnel, "tunnel", full.Tunnel, "vxlan or geneve, of all systems with Open vSwitch")
	flags.StringVar(&o.AddressFamily, "ip-family", full.AddressFamily, "ipv4 or ipv6, of the traffic that is measured")
	flags.StringVar(&o.against, "against", "", "commit whose agent is built and measured, too")
	flags.StringVar(&o.programs, "programs", "", "directory of `bench build`, instead of building")
	flags.StringVar(&o.name, "name", "bench", "prefix of what stands meanwhile; two runs at a time need two")
	flags.DurationVar(&o.timeout, "timeout", 0,
		"end of the run, without the builds (default 3m with --quick, otherwise 1h)")
	return cmd
}

// complete checks what was typed, and fills in what --quick stands for.
func (o *options) complete(cmd *cobra.Command) error {
	if o.quick {
		typed := o.Options
		o.Options = quick
		for name, keep := range map[string]func(){
			"rounds": func() { o.Rounds = typed.Rounds }, "seconds": func() { o.Seconds = typed.Seconds },
			"connections": func() { o.Connections = typed.Connections }, "policies": func() { o.Policies = typed.Policies },
			"services": func() { o.Services = typed.Services }, "attachments": func() { o.Attachments = typed.Attachments },
			"standing": func() { o.Standing = typed.Standing }, "datapath": func() { o.Datapath = typed.Datapath },
			"tunnel": func() { o.Tunnel = typed.Tunnel }, "ip-family": func() { o.AddressFamily = typed.AddressFamily },
		} {
			if cmd.Flags().Changed(name) {
				keep()
			}
		}
	}
	if o.timeout == 0 {
		o.timeout = time.Hour
		if o.quick {
			o.timeout = 3 * time.Minute
		}
	}
	for _, f := range []struct {
		name        string
		value, most float64
	}{
		{"rounds", float64(o.Rounds), 1000}, {"seconds", o.Seconds, 600}, {"connections", float64(o.Connections), portsInAll},
		{"policies", float64(o.Policies), 2000}, {"services", float64(o.Services), 1 << 16},
		{"attachments", float64(o.Attachments), 10000},
		{"timeout", o.timeout.Seconds(), 86400},
	} {
		if f.value <= 0 || f.value > f.most {
			return fmt.Errorf("--%s %g: want more than 0, at most %g", f.name, f.value, f.most)
		}
	}
	if o.Standing < 0 || o.Standing > 200 {
		return fmt.Errorf("--standing %d: want 0 to 200", o.Standing)
	}
	for _, f := range []struct {
		name, value string
		want        []string
	}{{"tunnel", o.Tunnel, []string{"vxlan", "geneve"}}, {"ip-family", o.AddressFamily, []string{ipv4, ipv6}},
		{"datapath", o.Datapath, []string{"netdev", "system"}}} {
		if !slices.Contains(f.want, f.value) {
			return fmt.Errorf("--%s %s: want one of %v", f.name, f.value, f.want)
		}
	}
	if _, err := sandbox.ParseGroup(o.name + "lx"); err != nil {
		return fmt.Errorf("--name %s: want 1 to 6 lower-case letters and digits, a letter first", o.name)
	}
	for _, f := range []struct{ name, text string }{{"cases", o.cases}, {"systems", o.systems}} {
		if _, err := regexp.Compile(f.text); err != nil {
			return fmt.Errorf("--%s: %w", f.name, err)
		}
	}
	return nil
}

// outside builds the programs, and runs the same command again in namespaces of its own.
func (o options) outside(cmd *cobra.Command) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("this needs root: it makes namespaces, cgroups and network devices")
	}
	dir := o.programs
	if dir == "" {
		if dir, err = os.MkdirTemp("", "weft-bench-programs-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		fmt.Fprintln(cmd.ErrOrStderr(), "building the programs")
		if err := buildPrograms(cmd.Context(), dir, o.against); err != nil {
			return err
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), o.timeout, fmt.Errorf("--timeout %s is over", o.timeout))
	defer cancel()
	child := exec.CommandContext(ctx, "/proc/self/exe", append(slices.Clone(os.Args[1:]), "--programs="+dir)...)
	child.Env = append(os.Environ(), insideVariable+"=1")
	child.Stdout, child.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Setpgid: true}
	// It takes down what stands.
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = time.Minute
	err = child.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return cli.ExitError{Code: exit.ExitCode()} // it has said why
	}
	return err
}

// inside measures.
func (o options) inside(cmd *cobra.Command) (err error) {
	ctx := cmd.Context()
	run := &result.Run{Format: result.Format, Started: time.Now().UTC().Truncate(time.Second), Options: o.Options,
		LoadBefore: load()}
	s := &systems{}
	if o.list {
		return o.showCases(cmd.OutOrStdout())
	}
	if run.Versions, err = versions(ctx, o.programs); err != nil {
		return err
	}
	run.Machine = machine()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set the loopback interface up: %w", err)
	}
	lock := sandbox.LockFile{Path: filepath.Join("/run/weft-bench", o.name), DirMode: 0o700}
	unlock, err := lock.Lock()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("another run has the name %q: wait for its end, or choose another --name", o.name)
	}
	if err != nil {
		return err
	}
	defer unlock()
	defer func() { err = errors.Join(err, s.stop(context.WithoutCancel(ctx))) }()
	progress := cmd.ErrOrStderr()
	fmt.Fprintln(progress, "bringing the systems up")
	if err := o.start(ctx, s); err != nil {
		return err
	}
	cases := o.chosen(s.cases(o))
	if len(cases) == 0 {
		return fmt.Errorf("--cases %q and --systems %q leave nothing to measure (`bench run --list` shows them)", o.cases,
			o.systems)
	}
	for _, n := range s.networks {
		reached, err := n.reach(ctx)
		if err != nil {
			return err
		}
		run.Reached = append(run.Reached, reached...)
	}
	h := harness{rounds: o.Rounds, limit: o.limit(), progress: progress}
	if err := h.run(ctx, cases, run); err != nil {
		return err
	}
	fmt.Fprintln(progress, "counting")
	if err := s.count(ctx, o, run); err != nil {
		return err
	}
	run.Seconds, run.LoadAfter = time.Since(run.Started).Round(time.Second).Seconds(), load()
	if err := o.write(run); err != nil {
		return err
	}
	if err := run.Table(cmd.OutOrStdout()); err != nil {
		return err
	}
	if s.attachment != nil {
		if err := s.attachment.node.phases.print(cmd.OutOrStdout()); err != nil {
			return err
		}
	}
	if len(run.Failures) > 0 || o.check && len(run.Missed()) > 0 {
		return cli.Found
	}
	return nil
}

// limit bounds one measurement: what it takes, with much to spare for a busy machine.
func (o options) limit() time.Duration {
	return time.Duration(3*o.Seconds*float64(time.Second)) + 2*time.Minute
}

func (o options) write(run *result.Run) error {
	if o.output == "" {
		return nil
	}
	text, err := run.JSON()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.output), 0o755); err != nil {
		return err
	}
	return os.WriteFile(o.output, text, 0o644)
}
