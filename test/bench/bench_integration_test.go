//go:build integration

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/bench/result"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// A quick run, as `make bench-quick` has it, with one round. How fast anything is depends on the machine, so only what
// does not is checked: every case has a value for each of its systems, every system carried traffic both ways in both
// families, and the counts are within what the cases can cost.
func TestQuick(t *testing.T) {
	const name = "bq"
	dir := t.TempDir()
	repo, err := testenv.Repository()
	if err != nil {
		t.Fatal(err)
	}
	program, err := testenv.Program(t.Context(), repo, "./test/bench", dir)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "run.json")
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience(10*time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "run", "--quick", "--rounds=1", "--name="+name, "-o", file, "--timeout="+
		testenv.Patience(9*time.Minute).String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r, err := result.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	list, err := bench("run", "--list", "--quick")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(list) {
		kase, systems, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, system := range strings.Split(strings.TrimSpace(systems), ", ") {
			if !slices.ContainsFunc(r.Series, func(s result.Series) bool {
				return s.Case == kase && s.System == system && s.Summary().Min > 0
			}) {
				t.Errorf("%s of %s was not measured", kase, system)
			}
		}
	}
	paths := map[string][]string{result.Weft: {result.SameNode, result.AcrossNodes, result.Service, result.Policies}}
	for _, peer := range []string{result.OVS, result.OVSCt, result.Linux} {
		paths[peer] = []string{result.SameNode, result.AcrossNodes}
	}
	for system, paths := range paths {
		for _, path := range paths {
			for _, family := range []string{ipv4, ipv6} {
				if !slices.Contains(r.Reached, result.Reach{System: system, Path: path, Family: family}) {
					t.Errorf("%s: path %s did not carry IP%s both ways", system, path, family)
				}
			}
		}
	}
	checkCounts(t, r)
	if _, err := lab.ReadStatus(t.Context(), name); err == nil {
		t.Error("the lab still stands")
	}
	for _, group := range []sandbox.Group{"l-" + name, name + "no", name + "ct", name + "lx"} {
		if left, err := group.Leftovers(); err != nil || len(left) > 0 {
			t.Errorf("of %s is left: %q, %v", group, left, err)
		}
	}
}

// checkCounts bounds what connections cost, whatever the machine, and compares what two ways to program one set sent.
func checkCounts(t *testing.T, r *result.Run) {
	t.Helper()
	counts := map[string]int{}
	for _, c := range r.Counts {
		counts[fmt.Sprintf("%s %s %s", c.Case, c.System, c.Name)] = c.Value
	}
	text, err := json.MarshalIndent(counts, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	within := func(name string, low, high int) {
		t.Helper()
		if got, ok := counts[name]; !ok || got < low || got > high {
			t.Errorf("%s: %d, want %d to %d; of\n%s", name, got, low, high, text)
		}
	}
	for _, path := range []string{result.SameNode, result.AcrossNodes, result.Service, result.Policies} {
		kase := "connections/" + path + " " + result.Weft
		// One entry for each connection would be as many as there are connections.
		within(kase+" entries", 2, r.Options.Connections/2)
		within(kase+" masks", 2, 60)
		within(kase+" upcalls", 2, r.Options.Connections/2)
		within(kase+" recirculations", 1, 1)
		within(kase+" flows", 100, 5000)
	}
	within("connections/across-nodes "+result.OVS+" recirculations", 0, 0)
	within("connections/across-nodes "+result.OVS+" flows", 1, 1)
	within("connections/across-nodes "+result.OVSCt+" recirculations", 1, 1)
	within("connections/across-nodes "+result.OVSCt+" flows", len(stateful), len(stateful))
	services, raw := "program/services "+result.Weft, "program/services "+result.Raw
	within(services+" groups", r.Options.Services, r.Options.Services)
	within(services+" flows", r.Options.Services, 4*r.Options.Services)
	within(raw+" flows", counts[services+" flows"], counts[services+" flows"])
	// Weft asks more than it tells; in all it sends little more than the bundle.
	within(services+" bytes sent", counts[raw+" bytes sent"], counts[raw+" bytes sent"]*3/2)
}
