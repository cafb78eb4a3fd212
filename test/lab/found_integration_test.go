//go:build integration

package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// An export of a cluster comes up from the standard input, beside rendered charts, and packets do what the policies
// say. What is kept of the input is in the lab's directory.
func TestAsFound(t *testing.T) {
	const name = "found"
	labtest.Down(t, name)
	t.Cleanup(func() { labtest.Down(t, name) })
	exported, err := os.Open("manifest/testdata/exported.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer exported.Close()
	up := labtest.Command(t, "up", "--name="+name, "--datapath="+string(labtest.Datapath()), "-f", "-", "-f",
		"manifest/testdata/database.yaml", "-f", "manifest/testdata/ingress.yaml", "--set=establishedConnections=keep")
	up.Stdin = exported
	out, err := labtest.Run(up)
	if err != nil {
		t.Fatal(err)
	}
	s, err := lab.ReadStatus(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Pods) != 10 || len(s.Services) != 7 || s.Manifests[0] != filepath.Join(lab.Root, name, "input.yaml") {
		t.Errorf("%d pods, %d Services, manifests %v", len(s.Pods), len(s.Services), s.Manifests)
	}
	for _, want := range []string{"warning: ", "input.yaml:80: Service web/web spec.clusterIPs: 172.20.14.7",
		"10 pods, 7 services"} {
		if !strings.Contains(out, want) {
			t.Errorf("up says\n%s\nwant %q", out, want)
		}
	}
	for _, n := range s.Nodes {
		if b, err := os.ReadFile(n.Files + "/run/weft/config.yaml"); err != nil ||
			!strings.Contains(string(b), "establishedConnections: keep\n") {
			t.Errorf("the agent of %s has %q, %v", n.Name, b, err)
		}
	}
	r, err := lab.ReadProbe(t.Context(), name, testenv.Patience(lab.ProbeTimeout))
	if err != nil {
		t.Fatal(err)
	}
	denied := 0
	for _, p := range r.Probes {
		if p.State == lab.Differs {
			t.Errorf("%s to %s: %+v", p.From, r.Targets[p.To], p)
		}
		if p.Expected == lab.Deny {
			denied++
		}
	}
	if len(r.Probes) == 0 || denied == 0 {
		t.Errorf("%d probes, %d expected to be denied", len(r.Probes), denied)
	}
}

// A kustomization is followed, with what its bases have.
func TestFollowsKustomization(t *testing.T) {
	dir := t.TempDir()
	write := func(file, text string) {
		t.Helper()
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("base/kustomization.yaml", "resources: [web.yaml]\n")
	write("base/web.yaml", deployment("web", 1, 80))
	write("dev/kustomization.yaml", "namespace: dev\nresources: [../base]\n")
	l := labtest.Up(t, "kustom", "-k", filepath.Join(dir, "dev"))
	l.Pod("dev/web-0")
	write("base/web.yaml", deployment("web", 2, 80))
	testenv.Eventually(t, 20*time.Second, func() error {
		if s := l.Status(); len(s.Pods) != 2 || s.Problem != "" {
			return fmt.Errorf("%d pods, problem %q; want 2 and none", len(s.Pods), s.Problem)
		}
		return nil
	})
}
