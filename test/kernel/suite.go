package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// built is a program or test binary that the guest runs; nothing is compiled there.
type built struct {
	name, pkg string // the package is a directory of the repository
	tags      string // of a test binary; programs have none
}

// suite is a set of tests that runs in one guest.
type suite struct {
	name, doc string
	needs     []built
	cluster   bool // it needs Weft's image and the programs of Kubernetes
	// run runs the tests, in the guest.
	run func(ctx context.Context, in inside) error
}

// labPrograms are what tests on labs run.
var labPrograms = []built{
	{name: "weft-lab", pkg: "./test/weft-lab"}, {name: "weft-agent", pkg: "./cmd/weft-agent"},
	{name: "weftctl", pkg: "./cmd/weftctl"}, {name: "probe", pkg: "./test/e2e/probe"},
}

// clusterPrograms are what starts a cluster.
var clusterPrograms = []built{
	{name: "cluster", pkg: "./test/cluster"}, {name: "pause", pkg: "./test/cluster/pause"},
	{name: "routes", pkg: "./test/cluster/routes"},
}

var suites = []suite{
	{
		name: "datapath", doc: "what the switch does with packets, on labs",
		needs: append(slices.Clone(labPrograms), built{name: "datapath.test", pkg: "./test/datapath", tags: "integration"}),
		run: func(ctx context.Context, in inside) error {
			return in.test(ctx, "test/datapath", "datapath.test", in.tests)
		},
	},
	{
		name: "scenario", doc: "the scenario files, on labs",
		needs: append(slices.Clone(labPrograms), built{name: "scenario.test", pkg: "./test/scenario", tags: "integration"}),
		run: func(ctx context.Context, in inside) error {
			return in.test(ctx, "test/scenario", "scenario.test", cmp.Or(in.tests, "TestLab"))
		},
	},
	{
		name: "openvswitch", doc: "the kernel forwards while Open vSwitch is replaced",
		needs: []built{{name: "openvswitch.test", pkg: "./internal/openvswitch", tags: "kernel"}},
		run: func(ctx context.Context, in inside) error {
			return in.test(ctx, "internal/openvswitch", "openvswitch.test", "TestKernel")
		},
	},
	{
		name: "cluster", doc: "the end-to-end tests that depend on the datapath, on a real cluster", cluster: true,
		needs: append(slices.Clone(clusterPrograms),
			built{name: "probe", pkg: "./test/e2e/probe"}, built{name: "e2e.test", pkg: "./test/e2e", tags: "e2e"}),
		run: func(ctx context.Context, in inside) error { return in.cluster(ctx) },
	},
	{
		name: "conformance", doc: "network-policy-api's conformance tests, on a real cluster", cluster: true,
		needs: clusterPrograms,
		run:   func(ctx context.Context, in inside) error { return in.conformance(ctx) },
	},
}

// endToEnd are the tests of the end-to-end suite that depend on the datapath.
const endToEnd = "^(TestMesh|TestLarge.*|TestHostsAndPods|TestPodsToOutside|TestMTU|TestSpoofing|TestTunnelSpoofing|TestTunnelChange|TestAgentRestart|TestSwitchRestart)$"

// slow is how many times slower than a usual machine the emulated one may be.
const slow = "4"

func findSuites(names []string) ([]suite, error) {
	var found []suite
	for _, name := range names {
		i := slices.IndexFunc(suites, func(s suite) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no suite %q", name)
		}
		found = append(found, suites[i])
	}
	return found, nil
}

// inside is what the tests in the guest are told.
type inside struct {
	bin, repo, image, family string
	tests                    string // a regular expression; empty: the suite's own choice
}

func (in *inside) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&in.image, "image", filepath.Join("dist", "weft-image.tar"), "tar with Weft's image, for the cluster")
	flags.StringVar(&in.family, "ip-family", "dual", "the cluster's address families")
	flags.StringVar(&in.tests, "run", "", "regular expression of the tests to run, instead of all that matter")
}

func testCommand() *cobra.Command {
	var o options
	var in inside
	var names []string
	for _, s := range suites {
		names = append(names, s.name+": "+s.doc)
	}
	cmd := &cobra.Command{
		Use: "test [flags] SUITE…", Short: "Build tests here and run them in the guest", Long: "The suites:\n  " +
			strings.Join(names, "\n  "),
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			chosen, err := findSuites(args)
			if err != nil {
				return err
			}
			if in.bin, err = os.MkdirTemp("", "weft-kernel-bin-"); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, os.RemoveAll(in.bin)) }()
			if err := prepare(cmd.Context(), in, chosen); err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			o.env = append(o.env, testenv.SlowVariable+"="+slow, testenv.PrebuiltVariable+"="+in.bin, "WEFT_BIN="+in.bin,
				"WEFT_DATAPATH=system")
			inner := []string{self, "inside", "--bin=" + in.bin, "--image=" + in.image, "--ip-family=" + in.family,
				"--run=" + in.tests}
			return runInGuest(cmd.Context(), o, append(inner, args...))
		},
	}
	o.flags(cmd)
	in.flags(cmd)
	return cmd
}

// prepare builds what the suites need.
func prepare(ctx context.Context, in inside, chosen []suite) error {
	repo, err := testenv.Repository()
	if err != nil {
		return err
	}
	done := map[string]bool{}
	for _, s := range chosen {
		for _, b := range s.needs {
			if done[b.name] {
				continue
			}
			done[b.name] = true
			args := []string{"build"}
			if b.tags != "" {
				args = []string{"test", "-c", "-tags=" + b.tags}
			}
			cmd := exec.CommandContext(ctx, "go", append(args, "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(in.bin,
				b.name), ".")...)
			cmd.Dir = filepath.Join(repo, b.pkg)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("build %s: %w\n%s", b.pkg, err, out)
			}
		}
		if !s.cluster {
			continue
		}
		if _, err := os.Stat(in.image); err != nil {
			return fmt.Errorf("the cluster needs Weft's image, make it with `make image`: %w", err)
		}
		cmd := exec.CommandContext(ctx, filepath.Join(in.bin, "cluster"), "build",
			fmt.Sprintf("--clusternetworkpolicy=%t", s.name == "conformance"))
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build the cluster's components: %w", err)
		}
	}
	return nil
}

// show runs a command with its output shown.
func show(ctx context.Context, out io.Writer, dir string, env []string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return nil
}
