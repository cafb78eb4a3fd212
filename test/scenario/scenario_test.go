package scenario

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/weft-cni/weft/test/lab"
)

var update = flag.Bool("update", false, "write the compiled flows into the golden sections")

// each runs a test for every scenario file.
func each(t *testing.T, test func(t *testing.T, file string, s *Scenario)) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("scenario files: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			s, err := Read(file)
			if err != nil {
				t.Fatal(err)
			}
			test(t, file, s)
		})
	}
}

// TestScenarios runs every file on the packet interpreter, in its families, with the connection tracking of both
// datapaths, and compares golden flows.
func TestScenarios(t *testing.T) {
	each(t, func(t *testing.T, file string, s *Scenario) {
		for i, family := range s.families {
			for _, kernel := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/kernel=%t", family, kernel), func(t *testing.T) {
					n := newNetwork(family, kernel, s.nodes)
					results, err := s.run(n, family)
					if text := describe(results); text != "" {
						t.Errorf("\n%s", text)
					}
					if err != nil {
						t.Fatal(err)
					}
				})
			}
			if i == 0 {
				golden(t, file, s, family)
			}
		}
	})
}

// golden compares the sections "flows on NODE of OWNER" with the flows before the first step.
func golden(t *testing.T, file string, s *Scenario, family lab.Family) {
	t.Helper()
	n := newNetwork(family, false, s.nodes)
	text, _ := s.section("objects.yaml")
	objects := documents{}
	if err := errors.Join(objects.add(text), n.apply(objects)); err != nil {
		t.Fatal(err)
	}
	for i := range s.archive.Files {
		f := &s.archive.Files[i]
		where, ok := strings.CutPrefix(f.Name, "flows on ")
		if !ok {
			continue
		}
		node, owner, _ := strings.Cut(where, " of ")
		got, err := n.flowsOf(node, owner)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			f.Data = []byte(got)
		}
		if diff := cmp.Diff(string(f.Data), got); diff != "" || got == "" {
			t.Errorf("%s (-golden +compiled); -update rewrites them:\n%s", f.Name, diff)
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(s.archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
