package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

const compilePods = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 1}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{port: 8080, targetPort: 80}]
`

const compilePolicy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: wall, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
`

// compile runs weft-lab compile in a directory with the manifests.
func compile(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{"pods.yaml": compilePods, "wall.yaml": compilePolicy,
		"other.yaml": "apiVersion: v1\nkind: Node\nmetadata: {name: other}\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	root := newRoot()
	root.SetOut(&b)
	root.SetErr(io.Discard)
	root.SetArgs(append([]string{"compile"}, args...))
	err = root.Execute()
	return b.String(), err
}

// TestCompile: the flows of an object are those of its node, with names of tables, ports and endpoints.
func TestCompile(t *testing.T) {
	out, err := compile(t, "service/shop/front", "-f", "pods.yaml", "--node", "node1")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out, "Node node1\nServiceLB ") || !strings.Contains(out, "service/shop/front") ||
		!strings.Contains(out, "tcp,nw_dst=10.96.0.10,tp_dst=8080") || !strings.Contains(out, ": 10.244.1.2:80]") ||
		strings.Contains(out, "pipeline") {
		t.Errorf("%s", out)
	}
	if out, err = compile(t, "-f", "pods.yaml", "-o", "json"); err != nil {
		t.Fatal(err)
	}
	var nodes []compiled
	if err := json.Unmarshal([]byte(out), &nodes); err != nil || len(nodes) != 2 || len(nodes[0].Flows) < 50 ||
		len(nodes[1].Flows) < 50 {
		t.Errorf("%v, %d nodes", err, len(nodes))
	}
	if out, err = compile(t, "-f", "pods.yaml", "--ip-family=ipv6", "--tunnel=vxlan", "--datapath=system", "node/node2"); err != nil ||
		!strings.Contains(out, "ipv6_dst=fd57:") || !strings.Contains(out, "weft-vxlan") || strings.Contains(out, "nw_dst") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestCompileChange: a policy adds its own flows on the node of its pods, and nothing changes elsewhere; that is exit
// code 1, and 0 where nothing changes.
func TestCompileChange(t *testing.T) {
	out, err := compile(t, "--before", "pods.yaml", "-f", "pods.yaml", "-f", "wall.yaml")
	if code := cli.Finish("weft-lab", err, cli.CannotAsk, io.Discard); code != cli.Problem {
		t.Fatalf("exit code %d, %v", code, err)
	}
	node1, node2, _ := strings.Cut(out, "\n\n")
	if node1 != "Node node1\n0 flows go, 0 come." {
		t.Errorf("%s", node1)
	}
	lines := strings.Split(strings.TrimSpace(node2), "\n")
	if len(lines) < 3 || lines[0] != "Node node2" {
		t.Fatalf("%s", node2)
	}
	for _, line := range lines[1 : len(lines)-1] {
		if !strings.HasPrefix(line, "+ ") || !strings.Contains(line, " policy/shop/wall ") {
			t.Errorf("%s", line)
		}
	}
	if !strings.HasPrefix(lines[len(lines)-1], "0 flows go, ") {
		t.Errorf("%s", lines[len(lines)-1])
	}
	if out, err = compile(t, "--before", "pods.yaml", "--before", "wall.yaml", "-f", "pods.yaml", "--node=node2"); err == nil ||
		!strings.Contains(out, "\n- ") || strings.Contains(out, "\n+ ") || !strings.Contains(out, " flows go, 0 come.\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = compile(t, "--before", "pods.yaml", "-f", "pods.yaml"); err != nil || strings.Count(out, "0 flows go, 0 come.") != 2 {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestCompileSave: what is saved can be traced in, and the trace says what the policy denies.
func TestCompileSave(t *testing.T) {
	for files, want := range map[string]walk.Outcome{"-f pods.yaml": walk.Reaches, "-f pods.yaml -f wall.yaml": walk.Dropped} {
		out, err := compile(t, append(strings.Fields(files), "--save", "nodes.json")...)
		if err != nil || out != "" {
			t.Fatalf("%v %q", err, out)
		}
		text, err := os.ReadFile("nodes.json")
		if err != nil {
			t.Fatal(err)
		}
		var nodes []walk.Node
		if err := json.Unmarshal(text, &nodes); err != nil {
			t.Fatal(err)
		}
		cluster, err := walk.New(nodes, walk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		queries, err := cluster.Resolve("shop/client", "service/shop/front", "")
		if err != nil || len(queries) != 1 {
			t.Fatal(queries, err)
		}
		if got := cluster.Trace(queries[0]); got.Verdict != want {
			t.Errorf("with %s: %s\n%s", files, got.Verdict, got.Text(true))
		}
	}
}

// TestCompileMistakes: what cannot be compiled is named.
func TestCompileMistakes(t *testing.T) {
	for args, want := range map[string]string{
		"":                                     "-f must name a file",
		"-f pods.yaml --node node9":            `there is no node "node9"`,
		"-f pods.yaml policy/shop/none":        "no flow exists because of policy/shop/none",
		"-f pods.yaml --datapath xx":           `--datapath "xx": want netdev or system`,
		"-f pods.yaml --ip-family 5":           `"5"`,
		"-f pods.yaml --set mtu=1400":          "--set is for agents that run",
		"-f pods.yaml --before other.yaml":     "--before: the manifests have no pods",
		"-f pods.yaml --before none.yaml":      "--before: ",
		"-f pods.yaml --save /nonexistent/dir": "no such file or directory",
		"-f pods.yaml -o wide":                 "-o wide is not known",
	} {
		if _, err := compile(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}
