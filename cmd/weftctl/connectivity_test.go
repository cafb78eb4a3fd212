package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/connectivity"
)

// fakeConnectivity answers what connectivity test asks kubectl: one pod that no packet reaches in the file "broken",
// and everything else works.
func fakeConnectivity(dir string, args []string) int {
	answer := ""
	switch args[0] {
	case "get":
		answer = map[string]string{
			"pods": `{"items":[{"metadata":{"name":"server-1","labels":{"app":"server"}},"spec":{"nodeName":"node1"},"status":{"phase":"Running",
				"podIPs":[{"ip":"10.244.1.2"}],"conditions":[{"type":"Ready","status":"True"}]}},{"metadata":{"name":"client-1","labels":{"app":"client"}},
				"spec":{"nodeName":"node1"},"status":{"phase":"Running","podIPs":[{"ip":"10.244.1.3"}],"conditions":[{"type":"Ready","status":"True"}]}}]}`,
			"service": `{"spec":{"clusterIPs":["10.96.0.9"],"ports":[{"name":"http","nodePort":30001}]}}`,
		}[args[1]]
	case "exec":
		var targets []connectivity.Target
		if err := json.NewDecoder(os.Stdin).Decode(&targets); err != nil {
			return 1
		}
		broken, err := os.ReadFile(filepath.Join(dir, "broken"))
		results := make([]connectivity.Result, len(targets))
		for i, t := range targets {
			denied := strings.HasSuffix(t.Address, ":8081") || t.Protocol == connectivity.UDP
			if err == nil && strings.HasPrefix(t.Address, string(broken)) || denied && t.Attempts == 1 {
				results[i].Error = "no answer within 3s"
			}
		}
		text, _ := json.Marshal(results) // of plain values
		answer = string(text)
	case "delete":
		if err := os.WriteFile(filepath.Join(dir, "deleted"), []byte(args[2]), 0o600); err != nil {
			return 1
		}
	}
	fmt.Println(answer)
	return 0
}

// TestConnectivity: the table, the report as JSON and for CI, and the exit code say what works, and the namespace goes.
func TestConnectivity(t *testing.T) {
	dir := clusterOf(t, map[string]map[string]any{"node1": {}, "node2": nil})
	file := filepath.Join(t.TempDir(), "junit.xml")
	out, errs, err := plugin("connectivity", "test", "--junit", file)
	if err != nil || !strings.Contains(out, "All tests passed on 1 node,") ||
		!strings.Contains(errs, "pod-same-node   ok (") || !strings.Contains(errs, "node node2 is left out: ") {
		t.Errorf("%v\n%s\n%s", err, out, errs)
	}
	if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text),
		`<testcase classname="weft.connectivity" name="dns"`) {
		t.Errorf("junit: %v\n%s", err, text)
	}
	if name, err := os.ReadFile(filepath.Join(dir, "deleted")); err != nil ||
		!strings.HasPrefix(string(name), "weft-connectivity-") {
		t.Errorf("deleted %q, %v", name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken"), []byte("10.96.0.9:"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, err = plugin("connectivity", "test", "-o", "json")
	wantCode(t, err, cli.Problem)
	var r connectivity.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Passed() {
		t.Errorf("%v\n%s", err, out)
	}
	for _, one := range r.Tests {
		if (len(one.Failures) > 0) != (one.Test == "cluster-ip") {
			t.Errorf("%+v", one)
		}
	}
	for _, args := range []string{"connectivity test --timeout=1ns", "connectivity test --node=node2",
		"connectivity test --context=nowhere"} {
		_, _, err := plugin(strings.Fields(args)...)
		wantCode(t, err, cli.CannotAsk)
		if errors.Is(err, cli.Found) {
			t.Errorf("%s: %v", args, err)
		}
	}
}
