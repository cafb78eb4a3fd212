package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/preflight"
	"github.com/weft-cni/weft/pkg/report"
)

// checkFake is a variable that tells the fake kubectl that check creates the objects.
const checkFake = "WEFT_TEST_CHECK"

// fakeCheck answers what check asks kubectl: all is well, but for kube-proxy and the Nodes, which have no pod CIDRs.
func fakeCheck(args []string) int {
	fmt.Println(map[string]string{
		"version":            `{"serverVersion":{"gitVersion":"v1.34.1"}}`,
		"get daemonsets":     `{"items":[{"metadata":{"name":"kube-proxy","namespace":"kube-system"}}]}`,
		"get endpointslices": `{"items":[{"ports":[{"port":6443}],"endpoints":[{"addresses":["192.0.2.1"]}]}]}`,
		"get pods":           `{"items":[{"metadata":{"name":"check-1"},"status":{"phase":"Succeeded"}},{"metadata":{"name":"check-2"},"status":{"phase":"Failed"}}]}`,
		"logs":               `[{"check":"Open vSwitch","saw":"version 3.1.0"}]`,
	}[strings.TrimSpace(args[0]+" "+map[bool]string{true: args[1]}[args[0] == "get"])])
	return 0
}

// TestCheck: of a cluster, and of this machine, each line says ok, or what to do; the exit code says whether all is
// well.
func TestCheck(t *testing.T) {
	clusterOf(t, map[string]map[string]any{"node1": {}, "node2": {}})
	t.Setenv(checkFake, "yes")
	out, _, err := plugin("check")
	wantCode(t, err, cli.Problem)
	for _, want := range []string{"kube-proxy", "problem: set apiServer, and once Weft is ready", "node1  Open vSwitch", "node2  Open vSwitch",
		"version 3.1.0", "the Node has none", "https://192.0.2.1:6443", "\n3 problems.\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q:\n%s", want, out)
		}
	}
	root := rootFor("weftctl")
	var b strings.Builder
	root.SetOut(&b)
	root.SetArgs([]string{"check", "--root=" + t.TempDir(), "-o", "json"})
	wantCode(t, root.Execute(), cli.Problem)
	var list []preflight.Finding
	if err := json.Unmarshal([]byte(b.String()), &list); err != nil || len(list) != 10 || list[1].Check != "Open vSwitch" || list[1].Do == "" {
		t.Errorf("%v\n%s", err, b.String())
	}
	_, _, err = plugin("check", "--datapath=dpdk")
	wantCode(t, err, cli.CannotAsk)
}

// TestOne: one thing is not counted in the plural.
func TestOne(t *testing.T) {
	var b strings.Builder
	if err := errors.Join(showFindings(&b, []preflight.Finding{{Check: "c", Saw: "s", Do: "d"}}),
		showCluster(&b, []answer[report.Status]{{err: errors.New("it does not answer")}}, false)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\n1 problem.\n", "\n0 of 1 node is well.\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q:\n%s", want, b.String())
		}
	}
}
