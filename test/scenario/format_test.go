package scenario

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-cni/weft/test/lab"
)

const small = `A pod reaches another.
families: ipv4
-- objects.yaml --
{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: a}, spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 9}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: b}, spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 80}]}]}}
-- steps --
`

func read(t *testing.T, text string) (*Scenario, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "f.txtar")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Read(file)
}

// TestMistakes: mistakes in a file are errors that name the step.
func TestMistakes(t *testing.T) {
	for line, want := range map[string]string{
		"x/a x/b:80 refused":            "want FROM -> TO:PORT VERDICT",
		"x/a -> x/b reaches x/b":        "has no port",
		"x/a -> x/b:80/tpc reaches x/b": "want PORT, PORT/udp or PORT/sctp",
		"x/a -> x/b:80 works":           "want reaches, refused or dropped",
		"x/a -> x/b:80 reaches":         "reaches which pods?",
		"x/a -> x/b:80 refused today":   "unknown words",
		"apply more.yaml":               "no such section",
		"delete pod x/c":                "there is no pod x/c",
		"x/c -> x/b:80 reaches x/b":     `there is no pod NAMESPACE/NAME or node "x/c"`,
		"x/a -> x/c:80 reaches x/c":     `Service NAME.NAMESPACE or node "x/c"`,
		"x/a -> b.x:80 reaches x/b":     `Service NAME.NAMESPACE or node "b.x"`,
	} {
		s, err := read(t, small+line+"\n")
		if err == nil {
			_, err = s.run(newNetwork(lab.IPv4, false, 2), lab.IPv4)
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `step "`) {
			t.Errorf("%s: error %v, want one that names the step and has %q", line, err, want)
		}
	}
	if _, err := read(t, "-- steps --\n"); err == nil {
		t.Error("a file without objects was taken")
	}
}

// TestDifferences: what goes otherwise than expected is shown beside what was expected, with the tables that the
// packets passed.
func TestDifferences(t *testing.T) {
	for line, got := range map[string]string{
		"x/a -> x/b:80 refused":             "reaches x/b",
		"x/a -> x/b:80 dropped":             "reaches x/b",
		"x/a -> x/b:80 reaches x/a":         "reaches x/b",
		"x/a -> x/b:80 reaches x/b as x/b":  "reaches x/b as 10.244.0.2",
		"x/a -> x/b:80 reaches x/a, x/b":    "reaches x/b",
		"x/a -> x/b:81 reaches x/b":         "refused",
		"x/a -> 10.244.1.77:80 reaches x/b": "dropped (no-such-pod)",
	} {
		s, err := read(t, small+line+"\n")
		if err != nil {
			t.Fatal(err)
		}
		results, err := s.run(newNetwork(lab.IPv4, false, 2), lab.IPv4)
		if err != nil {
			t.Fatal(err)
		}
		text := describe(results)
		if len(results) != 1 || results[0].got != got || !strings.Contains(text, "✗") ||
			!strings.Contains(text, "SpoofGuard: ") {
			t.Errorf("%s: observed %v, want %q in\n%s", line, results, got, text)
		}
	}
}
