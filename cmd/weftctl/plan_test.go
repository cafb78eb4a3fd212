package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
)

// planner answers as an agent, and notes what it was asked.
func planner(t *testing.T, plan report.Plan, asked *api.PlanRequest) string {
	t.Helper()
	return onSocket(t, func(w http.ResponseWriter, r *http.Request) {
		*asked = api.PlanRequest{}
		if r.Method != http.MethodPost || r.URL.String() != "/v1/plan" {
			t.Errorf("asked %s %s", r.Method, r.URL)
		}
		if err := json.NewDecoder(r.Body).Decode(asked); err != nil {
			t.Error(err)
		}
		if err := json.NewEncoder(w).Encode(plan); err != nil {
			t.Error(err)
		}
	})
}

// TestDiff: the agent gets every object of the files, as JSON, and what it says is shown by owner; the exit code says
// whether anything would change.
func TestDiff(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml": "# two documents\n---\nkind: A\nmetadata: {name: a}\n" +
			"--- # and merge keys\nx: &x {l: 1}\nkind: B\nspec: {<<: *x}\n",
		"b.json": `{"kind": "List", "items": [{"kind": "C", "metadata": {"namespace": "own"}}]}`, "c.txt": "not read",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var asked api.PlanRequest
	flow := report.Flow{Table: "IngressRule", Priority: 7, Match: "ip", Actions: "group:5", Owner: "policy/shop/x",
		Groups: []report.Group{{ID: openflow.GroupID(5), Buckets: []report.Bucket{{To: "10.0.0.1:80"}, {To: "group 6"}}}}}
	other := flow
	other.Match, other.Actions, other.Groups = "", "drop", nil
	socket := planner(t, report.Plan{Changes: []report.OwnerChange{{Owner: "policy/shop/x",
		Removed: []report.Flow{other}, Added: []report.Flow{flow, flow}}}}, &asked)
	out, err := weftctl(socket, "diff", "-n", "shop", "-f", dir)
	wantCode(t, err, cli.Problem)
	wantText(t, out, `
policy/shop/x: 1 flow fewer, 2 more
- IngressRule  7  (any)  drop
+ IngressRule  7  ip     group:5 [group 5: 10.0.0.1:80, group 6]
+ IngressRule  7  ip     group:5 [group 5: 10.0.0.1:80, group 6]

3 flows of 1 object: 1 would go, 2 would come.
`)
	var objects []string
	for _, o := range asked.Objects {
		objects = append(objects, string(o))
	}
	want := `{"kind":"A","metadata":{"name":"a","namespace":"shop"}} {"kind":"B","spec":{"l":1},"x":{"l":1}} ` +
		`{"kind":"C","metadata":{"namespace":"own"}}`
	if got := strings.Join(objects, " "); got != want || asked.Delete || asked.All {
		t.Errorf("asked about %s, want %s; %+v", got, want, asked)
	}
	for args, ask := range map[string]api.PlanRequest{
		"diff --delete -f ":            {Delete: true},
		"compile policy/shop/x -f ":    {All: true, Object: "policy/shop/x"},
		"compile policy/x -n shop -f ": {All: true, Object: "policy/shop/x"},
		"compile -o json --filename=":  {All: true},
	} {
		list := strings.Fields(args)
		if last := len(list) - 1; strings.HasSuffix(args, "=") {
			list[last] += dir
		} else {
			list = append(list, dir)
		}
		_, _ = weftctl(socket, list...) // diff has changes
		if asked.Delete != ask.Delete || asked.All != ask.All || asked.Object != ask.Object || len(asked.Objects) != 3 {
			t.Errorf("%s asked %+v", args, asked)
		}
	}
}

// TestPlanExitCodes: 0 nothing changes, 1 something or a problem, 2 it cannot be said.
func TestPlanExitCodes(t *testing.T) {
	var asked api.PlanRequest
	file := filepath.Join(t.TempDir(), "x.yaml")
	if err := os.WriteFile(file, []byte("kind: A"), 0o600); err != nil {
		t.Fatal(err)
	}
	change := []report.OwnerChange{{Owner: "pod/a/b"}}
	for _, tc := range []struct {
		plan          report.Plan
		diff, compile int
		text          string
	}{
		{report.Plan{}, cli.Well, cli.Well, "No flow would change."},
		{report.Plan{Changes: change}, cli.Problem, cli.Well, "1 object"},
		{report.Plan{Problems: []string{"policy/a/b: bad"}}, cli.Problem, cli.Problem, "Problem: policy/a/b: bad"},
	} {
		socket := planner(t, tc.plan, &asked)
		out, err := weftctl(socket, "diff", "-f", file)
		wantCode(t, err, tc.diff)
		if !strings.Contains(out, tc.text) {
			t.Errorf("%q is not in %q", tc.text, out)
		}
		_, err = weftctl(socket, "compile", "-f", file)
		wantCode(t, err, tc.compile)
	}
	socket := planner(t, report.Plan{}, &asked)
	for _, args := range []string{"diff", "diff -f /nonexistent", "diff -f /dev/null", "diff -o wide -f " + file} {
		_, err := weftctl(socket, strings.Fields(args)...)
		wantCode(t, err, cli.CannotAsk)
	}
	_, err := weftctl(filepath.Join(t.TempDir(), "none"), "diff", "-f", file)
	wantCode(t, err, cli.CannotAsk)
}
