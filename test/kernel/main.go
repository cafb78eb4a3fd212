// Command kernel tests Weft on the datapath of a kernel that has Open vSwitch, whatever kernel the host has: it boots
// Debian's in an emulated machine (see test/kernel/machine) and runs there what was built on the host.
//
// It holds no state beyond one run: the emulator and its files end with it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/test/kernel/machine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	var status exitStatus
	switch {
	case errors.As(err, &status):
		os.Exit(int(status))
	case err != nil:
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// exitStatus is that of a command that ran in the guest and failed; it has said why itself.
type exitStatus int

func (s exitStatus) Error() string { return "exit status " + strconv.Itoa(int(s)) }

func command() *cobra.Command {
	root := &cobra.Command{Use: "kernel", Short: "Weft on a kernel with Open vSwitch", SilenceUsage: true,
		SilenceErrors: true}
	root.AddCommand(runCommand(), testCommand(), insideCommand())
	return root
}

// options are what every guest is started with.
type options struct {
	timeout time.Duration
	memory  string
	cpus    int
	results string
	env     []string
}

func (o *options) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.DurationVar(&o.timeout, "timeout", 15*time.Minute, "bound on the whole run")
	flags.StringVar(&o.memory, "memory", "6G", "the guest's memory")
	flags.IntVar(&o.cpus, "cpus", 2, "the guest's processors")
	flags.StringVar(&o.results, "results", "",
		"directory that the guest may write to, as /guest/results; without it, a temporary one")
	flags.StringArrayVar(&o.env, "env", nil, "NAME=VALUE for the command's environment")
}

func runCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: "run [flags] -- COMMAND…", Short: "Run a command in the guest, in this directory, and return its exit status",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runInGuest(cmd.Context(), o, args) },
	}
	o.flags(cmd)
	return cmd
}

// modules are those of the datapath, with the tunnels. The kernel loads others by itself.
var modules = []string{"openvswitch", "vport-geneve", "vport-vxlan", "vport-gre", "nf_conntrack"}

// bootTimeout is generous: the emulator shares the host's processors with whatever else runs there.
const bootTimeout = 5 * time.Minute

// runInGuest boots the guest and runs a command; the error is an exitStatus when the command failed.
func runInGuest(ctx context.Context, o options, args []string) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not finished within %s", o.timeout))
	defer cancel()
	if err := machine.InstallPackages(ctx, os.Stdout); err != nil {
		return err
	}
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	k, err := machine.EnsureKernel(ctx, os.Stdout, filepath.Join(cache, "kernel"))
	if err != nil {
		return err
	}
	if o.results == "" {
		if o.results, err = os.MkdirTemp("", "weft-results-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.results)) }()
	} else if o.results, err = filepath.Abs(o.results); err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	fmt.Printf("Booting Linux %s, emulated, on %d processors with %s of memory\n", k.Version, o.cpus, o.memory)
	status, err := machine.Run(ctx, machine.Config{
		Kernel: k, Modules: modules, Command: args, Dir: dir,
		Env:     append(guestEnv(os.LookupEnv), o.env...),
		Results: o.results, Output: os.Stdout, CPUs: o.cpus, Memory: o.memory, BootTimeout: bootTimeout,
	})
	if err == nil && status != 0 {
		return exitStatus(status)
	}
	return err
}

// guestEnv is what the guest's command sees of the caller's environment: how to find programs and their settings.
func guestEnv(lookup func(string) (string, bool)) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "LANG", "GOFLAGS", "GOPATH", "GOCACHE", "GOMODCACHE", "WEFT_CACHE"} {
		if value, ok := lookup(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// cacheDir is where the kernel survives a fresh clone.
func cacheDir() (string, error) {
	if dir := os.Getenv("WEFT_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory, set WEFT_CACHE: %w", err)
	}
	return filepath.Join(home, ".cache", "weft"), nil
}
