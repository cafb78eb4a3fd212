package scenario

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/testing/golden"
	"github.com/weft-cni/weft/pkg/model"
)

// load reads all scenario files, by their names without the ending.
func load(t *testing.T) map[string]*Scenario {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("scenario files: %v, %v", files, err)
	}
	all := map[string]*Scenario{}
	for _, file := range files {
		s, err := Read(file)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".txtar")] = s
	}
	return all
}

// TestScenarios runs every file on the packet interpreter, in its families, with the connection tracking of both
// datapaths, in tunnels and, on one of them, without, and compares golden flows.
func TestScenarios(t *testing.T) {
	all := load(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			s := all[name]
			for _, family := range s.families {
				for _, on := range []struct {
					kernel bool
					mode   model.Mode
				}{{false, model.ModeOverlay}, {true, model.ModeOverlay}, {false, model.ModeDirect}} {
					t.Run(fmt.Sprintf("%s/kernel=%t/%s", family, on.kernel, on.mode), func(t *testing.T) {
						n := newNetwork(family, on.kernel, s.nodes)
						n.transport = model.Transport{Mode: on.mode, Encapsulation: model.Geneve}
						results, err := s.run(n, family)
						if text := describe(results); text != "" {
							t.Errorf("\n%s", text)
						}
						if err != nil {
							t.Fatal(err)
						}
					})
				}
			}
			wantFlows(t, filepath.Join("testdata", name+".txtar"), s)
		})
	}
}

// wantFlows compares the sections "flows on NODE of OWNER" with the flows before the first step.
func wantFlows(t *testing.T, file string, s *Scenario) {
	t.Helper()
	n := newNetwork(s.families[0], false, s.nodes)
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
		golden.Section(t, f, got)
		if got == "" {
			t.Errorf("%s: no flow", f.Name)
		}
	}
	golden.Save(t, file, s.archive)
}
