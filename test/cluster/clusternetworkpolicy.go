package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/conformance"
	"github.com/weft-cni/weft/test/cluster/manifest"
	"github.com/weft-cni/weft/test/cluster/state"
)

const (
	// policyKind is the file with the CustomResourceDefinition, of the channel experimental, beside the suite.
	policyKind = "clusternetworkpolicies.yaml"
	// kindTimeout bounds how long the API server and the agents may take to know a new kind.
	kindTimeout = time.Minute
)

var policyTests = component{
	what: "network-policy-api's conformance suite", dir: "components/clusternetworkpolicy",
	requires: "sigs.k8s.io/network-policy-api", packages: ".", test: true,
	flags: func(string) []string { return []string{"-trimpath", "-ldflags", "-s -w"} },
	copies: map[string]string{
		"config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml": policyKind,
	},
	programs: []string{"clusternetworkpolicy.test", policyKind},
}

// conformPolicies runs network-policy-api's conformance tests, as conform does specs: all, or those with names that
// match a regular expression.
func conformPolicies(ctx context.Context, p *progress, c state.Cluster, o conformanceOptions, only string) error {
	repo, err := testenv.Repository()
	if err != nil {
		return err
	}
	tests, err := policyTests.ensure(ctx, p, repo)
	if err != nil {
		return err
	}
	dir, err := resultsDir(o, c)
	if err != nil {
		return err
	}
	if err := p.step("Namespaces of an earlier run are gone", func(func(string)) error {
		_, err := kubectl(ctx, c, "delete", "namespaces", "--selector=conformance-house", "--ignore-not-found")
		return err
	}); err != nil {
		return err
	}
	if err := p.step("CustomResourceDefinition of ClusterNetworkPolicies", func(func(string)) error {
		if _, err := kubectl(ctx, c, "apply", "-f", filepath.Join(tests, policyKind)); err != nil {
			return err
		}
		return testenv.Poll(ctx, kindTimeout, func(ctx context.Context) error { return policiesServed(ctx, c) })
	}); err != nil {
		return err
	}
	sctp := "the kernel's"
	if !kernelHasSCTP() {
		sctp = "the first two packets of an association, by the test image: this kernel has no SCTP"
	}
	p.print("SCTP is " + sctp + "; the suite has no test of domainNames")
	cmd := exec.CommandContext(ctx, filepath.Join(tests, policyTests.programs[0]), "-test.v",
		"-test.timeout="+conformanceTimeout, "-test.run=TestConformance/"+only, fmt.Sprintf("-slow=%d", testenv.Patience(1)))
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	log := filepath.Join(dir, "tests.log")
	begun := 0
	runErr := p.step("Tests of ClusterNetworkPolicies; they print to "+log, func(detail func(string)) error {
		return runLogged(cmd, log, func(line string) {
			// Results come at the end of all.
			if name, ok := strings.CutPrefix(line, "=== RUN   TestConformance/"); ok && !strings.Contains(name, "/") {
				begun++
				detail(fmt.Sprintf("%d, %s", begun, strings.TrimSpace(name)))
			}
		})
	})
	specs, err := conformance.ReadGoTest(log)
	if err != nil {
		return err
	}
	if len(specs) == 0 && runErr != nil {
		return fmt.Errorf("no test has begun: %w; the end of %s:\n%s", runErr, log, tail(log))
	}
	return summarize(ctx, p, o, specs, dir, runErr)
}

// policiesServed returns an error until every agent knows the kind.
func policiesServed(ctx context.Context, c state.Cluster) error {
	out, err := kubectl(ctx, c, "--namespace="+manifest.Namespace, "get", "pods", "--output=name",
		"--selector=app.kubernetes.io/name=weft-agent")
	if err != nil {
		return err
	}
	agents := strings.Fields(out)
	if len(agents) < len(c.Nodes) {
		return fmt.Errorf("%d agents on %d nodes: %w", len(agents), len(c.Nodes), errNotReady)
	}
	for _, agent := range agents {
		out, err := kubectl(ctx, c, "--namespace="+manifest.Namespace, "exec", agent, "--", "weftctl", "status",
			"--output=json")
		if err != nil {
			return err
		}
		var status struct{ NoClusterPolicies string }
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return fmt.Errorf("read the status of %s: %w", agent, err)
		}
		if status.NoClusterPolicies != "" {
			return fmt.Errorf("%s: %s: %w", agent, status.NoClusterPolicies, errNotReady)
		}
	}
	return nil
}

// kernelHasSCTP tells whether programs can open SCTP sockets, for which the kernel may have to load its module.
func kernelHasSCTP() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err == nil {
		_ = unix.Close(fd)
	}
	return !errors.Is(err, unix.EPROTONOSUPPORT)
}
