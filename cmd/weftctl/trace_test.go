package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/pkg/trace/walk/walktest"
)

// TestTrace: against a cluster, and without one from what --save has written; the exit code says whether the connection
// is established.
func TestTrace(t *testing.T) {
	nodes := walktest.Nodes(t)
	clusterOf(t, map[string]map[string]any{"node1": {"/v1/trace": nodes[0]}, "node2": {"/v1/trace": nodes[1]}})
	file := filepath.Join(t.TempDir(), "nodes.json")
	for _, args := range []string{"trace shop/client shop/web --save " + file,
		"trace -f " + file + " client web -n shop"} {
		out, errs, err := plugin(strings.Fields(args)...)
		if err != nil || errs != "" || !strings.HasPrefix(out, "shop/client (10.244.1.2) to 10.96.0.80:80, TCP\n") ||
			!strings.Contains(out, "\nVerdict: reaches shop/web-1, shop/web-2\n") {
			t.Errorf("%s: %v %q\n%s", args, err, errs, out)
		}
	}
	out, _, err := plugin("trace", "-f", file, "shop/other", "shop/web", "-o", "json")
	wantCode(t, err, cli.Problem)
	var traces []walk.Trace
	if err := json.Unmarshal([]byte(out), &traces); err != nil || len(traces) != 1 || traces[0].Verdict != walk.Dropped ||
		traces[0].Paths[0].Reason != "policy-ingress" {
		t.Errorf("json: %v\n%s", err, out)
	}
	for args, want := range map[string]string{
		"trace shop/client":               "trace needs FROM and TO",
		"trace":                           "trace needs FROM and TO",
		"trace shop/none shop/web":        `there is no pod or node "shop/none"`,
		"trace -f /dev/null a b":          "is not what trace --save writes",
		"trace --node=node9 shop/a b:80":  `there is no node "node9"`,
		"trace shop/client shop/web -o x": "-o x is not known",
	} {
		_, _, err := plugin(strings.Fields(args)...)
		wantCode(t, err, cli.CannotAsk)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// TestExplain: against a cluster, and without one; the exit code says whether the policies allow, deny or are not
// known.
func TestExplain(t *testing.T) {
	nodes := walktest.Nodes(t)
	clusterOf(t, map[string]map[string]any{"node1": {"/v1/trace": nodes[0]}, "node2": {"/v1/trace": nodes[1]}})
	file := filepath.Join(t.TempDir(), "nodes.json")
	if _, _, err := plugin("trace", "--save", file); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"policy explain shop/client shop/web", "policy explain -n shop -f " + file +
		" client web"} {
		out, errs, err := plugin(strings.Fields(args)...)
		if err != nil || errs != "" || !strings.Contains(out, "allow: rule 0 of shop/web") ||
			!strings.HasSuffix(out, "\nVerdict: allowed\n") {
			t.Errorf("%s: %v %q\n%s", args, err, errs, out)
		}
	}
	out, _, err := plugin("policy", "explain", "-f", file, "shop/other", "shop/web", "-o", "json")
	wantCode(t, err, cli.Problem)
	var list []walk.Explanation
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || list[0].Verdict != walk.Denied {
		t.Errorf("json: %v\n%s", err, out)
	}
	out, _, err = plugin("policy", "explain", "--node=node1", "shop/client", "10.244.2.3:8080")
	wantCode(t, err, cli.CannotAsk)
	if !strings.HasSuffix(out, "\nVerdict: unknown\n") {
		t.Errorf("one node:\n%s", out)
	}
}
