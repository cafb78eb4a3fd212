package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/kubectl"
	"github.com/weft-cni/weft/pkg/report"
)

// clusterDir is the variable that tells this test's program, run under the name kubectl, what the cluster has.
const clusterDir = "WEFT_TEST_CLUSTER"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "kubectl" {
		os.Exit(fakeKubectl(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// fakeKubectl answers what weftctl asks kubectl.
func fakeKubectl(args []string) int {
	dir, line := os.Getenv(clusterDir), strings.Join(args, " ")
	switch {
	case strings.Contains(line, "--context=nowhere"):
		fmt.Fprintln(os.Stderr, `error: context "nowhere" does not exist`)
		return 1
	case strings.HasPrefix(line, "get nodes --output=json"), strings.HasPrefix(line, "get pods --namespace=weft-system"):
		text, err := os.ReadFile(filepath.Join(dir, args[1]+".json"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		_, err = os.Stdout.Write(text)
		return len(fmt.Sprint(err)) - len("<nil>")
	case strings.HasPrefix(line, "get nodes --all-namespaces"):
		fmt.Println("<none> node1\n<none> node2\n<none> other")
		return 0
	case strings.HasPrefix(line, "get pods --all-namespaces --field-selector=metadata.name=web,metadata.namespace=shop"):
		fmt.Println(`{"items":[{"spec":{"nodeName":"node2"}}]}`)
		return 0
	case strings.HasPrefix(line, "get pods --all-namespaces --field-selector"):
		fmt.Println(`{"items":[]}`)
		return 0
	case strings.HasPrefix(line, "get pods --all-namespaces"), strings.HasPrefix(line, "get networkpolicies --all"):
		return 0
	case strings.HasPrefix(line, "get services --all-namespaces"):
		fmt.Println("shop   web\nshop   db\n<none> odd")
		return 0
	case strings.HasPrefix(line, "get --output=json pods --all"):
		fmt.Println(`{"items":[{"spec":{"nodeName":"node1","containers":[{"name":"c","env":[{"name":"K","value":"GEHEIM"}]}]}}]}`)
		return 0
	case strings.HasPrefix(line, "get --output=json configmap weft-config --namespace=weft-system"):
		fmt.Println(`{"data":{"config.yaml":"tunnelType: geneve"}}`)
		return 0
	case strings.HasPrefix(line, "logs --namespace=weft-system --all-containers"):
		fmt.Println("level=INFO msg=ready token=GEHEIM")
		return 0
	case strings.HasPrefix(line, "exec --namespace=weft-system --container=weft-agent agent-node1 -- ovs-ofctl"):
		fmt.Println("flows of the switch")
		return 0
	case strings.HasPrefix(line, "exec --namespace=weft-system --container=weft-agent agent-node1 -- nft"):
		fmt.Fprintln(os.Stderr, "nft: not permitted")
		return 1
	case strings.Contains(line, "weft-check-"), strings.HasPrefix(line, "version"), strings.HasPrefix(line, "get daemonsets"),
		strings.HasPrefix(line, "get endpointslices --namespace=default"), os.Getenv(checkFake) != "" && args[0] == "create":
		return fakeCheck(args)
	case strings.Contains(line, "weft-connectivity-"), line == "create --filename=-":
		return fakeConnectivity(dir, args)
	case strings.HasPrefix(line, "exec --stdin --namespace=weft-system --container=weft-agent agent-"):
		at := slices.Index(args, "--")
		pod := args[at-1]
		if _, err := os.Stat(filepath.Join(dir, pod+".old")); err == nil {
			fmt.Fprintln(os.Stderr, "weftctl: unknown command \"connect\" for \"weftctl\"\ncommand terminated with exit code 1")
			return 1
		}
		root := rootFor(args[at+1])
		root.SetArgs(append(args[at+2:], "--socket="+filepath.Join(dir, pod+".sock")))
		return cli.Finish("weftctl", root.ExecuteContext(context.Background()), cli.CannotAsk, os.Stderr)
	}
	fmt.Fprintln(os.Stderr, "the test does not expect kubectl", line)
	return 1
}

// clusterOf makes a cluster with a node for each entry, whose agent gives these answers. A nil one does not run.
func clusterOf(t *testing.T, answers map[string]map[string]any) string {
	t.Helper()
	dir := t.TempDir()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, filepath.Join(dir, "kubectl")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	t.Setenv(clusterDir, dir)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // with the race detector, each kubectl would wait a second before it ends
	var nodes, pods []any
	for name, a := range answers {
		ready := map[string]any{"type": "Ready", "status": "True"}
		state := map[string]any{"running": map[string]any{}}
		if a == nil {
			state = map[string]any{"waiting": map[string]any{"reason": "ImagePullBackOff", "message": "no such image"}}
		} else if err := os.Symlink(serve(t, a), filepath.Join(dir, "agent-"+name+".sock")); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, map[string]any{"metadata": map[string]any{"name": name},
			"status": map[string]any{"conditions": []any{ready},
				"addresses": []any{map[string]any{"type": "InternalIP", "address": "172.30.0.1"}}}})
		pods = append(pods, map[string]any{"metadata": map[string]any{"name": "agent-" + name},
			"spec": map[string]any{"nodeName": name}, "status": map[string]any{"phase": "Running",
				"containerStatuses": []any{map[string]any{"name": "weft-agent", "state": state}}}})
	}
	write := func(kind string, items []any) {
		text, err := json.Marshal(map[string]any{"items": items})
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, kind+".json"), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("nodes", nodes)
	write("pods", pods)
	return dir
}

// plugin runs kubectl weft.
func plugin(args ...string) (out, errs string, err error) {
	var o, e bytes.Buffer
	root := rootFor("/usr/local/bin/kubectl-weft")
	root.SetOut(&o)
	root.SetErr(&e)
	root.SetArgs(args)
	err = root.Execute()
	return o.String(), e.String(), err
}

func statusOf(node string) report.Status {
	s := exampleReport()
	s.Node, s.Commit = node, "0123456789abcdef"
	s.Nodes = []report.Node{}
	return s
}

// TestClusterStatus: all nodes are in one table; one that is down, or has a problem, is named with the reason.
func TestClusterStatus(t *testing.T) {
	sick := statusOf("node2")
	sick.Problems = []string{"bridge: no answer"}
	sick.Flows.Programmed = 7
	dir := clusterOf(t, map[string]map[string]any{
		"node1": {"/v1/status": statusOf("node1")}, "node2": {"/v1/status": sick}, "node3": nil, "node4": {},
	})
	if err := os.WriteFile(filepath.Join(dir, "agent-node4.old"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, err := plugin("status")
	wantCode(t, err, cli.Problem)
	wantText(t, out, `
NODE   AGENT  PODS  FLOWS  SERVICES  POLICIES  STATE
node1  v1     1     61     12        3         well
node2  v1     1     61*    12        3         problems
node3  -      -     -      -         -         no answer
node4  -      -     -      -         -         no answer

1 of 4 nodes are well.
node2: bridge: no answer
node3: pod agent-node3: ImagePullBackOff: no such image
node4: `+kubectl.Older("agent-node4")+`
`)
	if out, _, err = plugin("status", "--node", "node1", "-o", "wide"); err != nil ||
		!strings.Contains(out, "172.30.0.11,fd30::11  10.244.0.0/24,fd44::/64  geneve  1450  0123456789ab  well") {
		t.Errorf("wide: %v\n%s", err, out)
	}
	out, _, err = plugin("status", "-o", "name")
	wantCode(t, err, cli.Problem)
	wantText(t, out, "node/node1\nnode/node2\nnode/node3\nnode/node4\n")
	out, _, err = plugin("status", "-o", "json")
	wantCode(t, err, cli.Problem)
	var list []report.Answer[report.Status]
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 4 || list[0].Answer.Node != "node1" ||
		list[2].Answer != nil || !strings.Contains(list[2].Error, "ImagePullBackOff") {
		t.Errorf("json: %v\n%s", err, out)
	}
	_, _, err = plugin("status", "--node=node3,node4")
	wantCode(t, err, cli.CannotAsk)
	_, _, err = plugin("status", "--node=node9")
	wantCode(t, err, cli.CannotAsk)
	if want := `there is no node "node9"; there are node1, node2, node3, node4`; err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
	_, _, err = plugin("status", "--context=nowhere")
	wantCode(t, err, cli.CannotAsk)
	if want := `kubectl get: error: context "nowhere" does not exist`; err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
}

// TestClusterLists: each node's list has its name above it; a node that does not answer is told and makes the exit code
// 2; --namespace limits, and completes names.
func TestClusterLists(t *testing.T) {
	web := report.Policy{Policy: "shop/web", Tier: "NetworkPolicy", Rules: []report.Rule{
		{Direction: "Ingress", Rule: "0", Verdict: "allowed", Pods: []string{"web"}}}}
	other := report.Policy{Policy: "bank/web", Tier: "NetworkPolicy", Rules: web.Rules}
	clusterOf(t, map[string]map[string]any{
		"node1": {"/v1/policies": []report.Policy{web, other}, "/v1/policies?object=shop%2Fweb": []report.Policy{web},
			"/v1/flows?object=service%2Fshop%2Fweb": exampleFlows()},
		"node2": {"/v1/policies": []report.Policy{}, "/v1/policies?object=shop%2Fweb": []report.Policy{},
			"/v1/flows?object=service%2Fshop%2Fweb": []report.Flow{}},
		"node3": nil,
	})
	out, errs, err := plugin("policy", "web", "-n", "shop")
	wantCode(t, err, cli.CannotAsk)
	wantText(t, out, `
Node node1
POLICY    TIER           DIRECTION  RULE  VERDICT  PACKETS  BYTES  PODS  STATE
shop/web  NetworkPolicy  Ingress    0     allowed  0        0      web   programmed

Node node2
No policy selects a pod of this node.
`)
	if errs != "node node3: pod agent-node3: ImagePullBackOff: no such image\n" {
		t.Errorf("errors %q", errs)
	}
	for _, tc := range []struct{ args, want string }{
		{"policy --node=node1,node2 -o name -n shop", "networkpolicy/shop/web\n"},
		{"policy --node=node2 -o json", "[\n  {\n    \"node\": \"node2\",\n    \"answer\": []\n  }\n]\n"},
		{"policy --node=node2 -o yaml", "- answer: []\n  node: node2\n"},
		{"flows svc/shop/web --node=node1,node2 -o name", "pipeline\npod/shop/web\n"},
		{"flows svc/web -n shop --node=node1,node2 -o name", "pipeline\npod/shop/web\n"},
	} {
		if out, _, err := plugin(strings.Fields(tc.args)...); err != nil || out != tc.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", tc.args, err, out, tc.want)
		}
	}
	if _, _, err := plugin("flows", "svc/shop/web", "--node=node2"); err == nil ||
		!strings.Contains(err.Error(), "no flow on the nodes that were asked exists because of svc/shop/web") {
		t.Errorf("%v", err)
	}
	for args, want := range map[string]string{
		"service shop/":   "shop/db\nshop/web\n:4",
		"status --node n": "node1\nnode2\n:4",
		"flows service/o": "service/odd\n:4",
	} {
		if out, _, err := plugin(append([]string{"__complete"}, strings.Fields(args)...)...); err != nil ||
			!strings.HasPrefix(out, want) {
			t.Errorf("completion of %q: %v %q, want %q", args, err, out, want)
		}
	}
}

// TestNoKubectl: what is missing is named.
func TestNoKubectl(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, _, err := plugin("status")
	wantCode(t, err, cli.CannotAsk)
	if want := "kubectl is not on the PATH; nodes of a cluster are asked through it"; err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
}

// screens collects what a command prints and ends the command after enough of it.
type screens struct {
	text   bytes.Buffer
	enough func(string) bool
	end    context.CancelFunc
}

func (s *screens) Write(b []byte) (int, error) {
	n, err := s.text.Write(b)
	if s.enough(s.text.String()) {
		s.end()
	}
	return n, err
}

// TestWatch: status is shown again when it has changed, and only then.
func TestWatch(t *testing.T) {
	asked := 0
	var lc net.ListenConfig
	socket := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := lc.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		r := exampleReport()
		asked++
		if asked > 2 {
			r.Node = "renamed"
		}
		if err := json.NewEncoder(w).Encode(r); err != nil {
			t.Error(err)
		}
	})}
	go func() { _ = server.Serve(listener) }() // it ends with an error when the test closes it
	t.Cleanup(func() { _ = server.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out := &screens{end: cancel, enough: func(s string) bool { return strings.Contains(s, "renamed") }}
	root := newRoot()
	root.SetOut(out)
	root.SetArgs([]string{"--socket", socket, "status", "--watch"})
	if err := root.ExecuteContext(ctx); err != nil {
		t.Error(err)
	}
	if n := strings.Count(out.text.String(), "Node "); n != 2 {
		t.Errorf("shown %d times, want twice:\n%s", n, &out.text)
	}
}

// TestWait: status waits for what is under way, and says after the time what is still wrong.
func TestWait(t *testing.T) {
	behind := exampleReport()
	behind.Flows.Programmed--
	answers := map[string]any{"/v1/status": behind}
	begin := time.Now()
	_, err := weftctl(serve(t, answers), "status", "--wait", "1ms")
	wantCode(t, err, cli.Problem)
	_, err = weftctl(serve(t, answers), "status") // what is on its way is well
	wantCode(t, err, cli.Well)
	_, err = weftctl(serve(t, map[string]any{"/v1/status": exampleReport()}), "status", "--wait", "1m")
	wantCode(t, err, cli.Well)
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("took %s", took)
	}
}
