package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/trace/walk/walktest"
)

// archived reads an archive; names are without its directory.
func archived(t *testing.T, file string) map[string]string {
	t.Helper()
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	files := map[string]string{}
	for name, text := range testenv.Untar(t, in) {
		_, name, _ = strings.Cut(name, "/")
		files[name] = text
	}
	return files
}

// TestSysdump: of a cluster with an agent that does not run, everything else is in the archive, without secrets; the
// flows of the node that answers can be traced in.
func TestSysdump(t *testing.T) {
	nodes := walktest.Nodes(t)
	clusterOf(t, map[string]map[string]any{
		"node1": {"/v1/status": statusOf("node1"), "/v1/trace": nodes[0], "/v1/flows": exampleFlows(),
			"/v1/services": []report.Service{}, "/v1/policies": []report.Policy{}},
		"node2": nil,
	})
	file := filepath.Join(t.TempDir(), "dump.tar.gz")
	out, errs, err := plugin("sysdump", "--file", file)
	wantCode(t, err, cli.Problem) // some items failed
	if !strings.HasPrefix(out, file+": ") {
		t.Errorf("printed %q", out)
	}
	files := archived(t, file)
	for name, want := range map[string]string{
		"version.txt":               "dev (commit ",
		"cluster/pods.json":         `"nodeName": "node1"`,
		"cluster/weft-config.json":  "tunnelType: geneve",
		"nodes/node1/status.json":   `"node": "node1"`,
		"nodes/node1/flows.json":    "SpoofGuard",
		"nodes/node1/ovs-flows.txt": "flows of the switch",
		"nodes/node1/log.txt":       "token=REDACTED",
		"nodes/node2/log.txt":       "token=REDACTED",
		"nodes/node2/problem.txt":   "ImagePullBackOff",
		"index.txt":                 "nodes/node1/nftables.txt\t0 bytes\tkubectl exec: nft: not permitted",
		"cluster/namespaces.json":   "",
	} {
		if text, ok := files[name]; want != "" && !strings.Contains(text, want) || ok != (want != "") {
			t.Errorf("%s: %q, want %q", name, text, want)
		}
	}
	if !strings.Contains(errs, "cluster/namespaces.json: kubectl get: ") {
		t.Errorf("what failed is not told: %q", errs)
	}
	for name, text := range files {
		if strings.Contains(text, "GEHEIM") {
			t.Errorf("%s has a secret:\n%s", name, text)
		}
	}
	trace := filepath.Join(t.TempDir(), "trace.json")
	if err := os.WriteFile(trace, []byte(files["nodes/node1/trace.json"]), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, err := plugin("trace", "-f", trace, "shop/client", "shop/web-1:8080"); err != nil ||
		!strings.Contains(out, "Verdict: reaches shop/web-1") {
		t.Errorf("trace in the archive: %v\n%s", err, out)
	}
}

// TestSysdumpWithoutAPIServer: it says that nothing of the cluster could be collected, and the version is there.
func TestSysdumpWithoutAPIServer(t *testing.T) {
	clusterOf(t, nil)
	file := filepath.Join(t.TempDir(), "dump.tar.gz")
	_, errs, err := plugin("sysdump", "--context=nowhere", "--file", file)
	wantCode(t, err, cli.Problem)
	if files := archived(t, file); !strings.Contains(errs, `context "nowhere" does not exist`) ||
		!strings.Contains(files["index.txt"], `nodes`+"\t0 bytes\tkubectl get: error: context") {
		t.Errorf("%q %v", errs, files)
	}
}

// TestSysdumpOfANode: without an agent and without Open vSwitch, what failed is named.
func TestSysdumpOfANode(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	file := filepath.Join(t.TempDir(), "dump.tar.gz")
	_, err := weftctl(filepath.Join(t.TempDir(), "none.sock"), "sysdump", "--file", file)
	wantCode(t, err, cli.Problem)
	files := archived(t, file)
	for _, want := range [][2]string{
		{"node/status.json\t0 bytes\t", "there is no socket"}, {"node/ovs-flows.txt\t0 bytes\t", `exec: "ovs-ofctl"`},
	} {
		if !strings.Contains(files["index.txt"], want[0]+want[1]) {
			t.Errorf("%q is missing:\n%s", want, files["index.txt"])
		}
	}
}
