package flows_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/internal/testing/golden"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// view is a snapshot as a golden file's author writes it.
type view struct {
	Self   model.Node          `json:"self"`
	Tunnel model.Encapsulation `json:"tunnel"`
	Kernel bool                `json:"kernelDatapath"`
	Nodes  []model.Node        `json:"nodes"`
	Pods   []model.Attachment  `json:"pods"`
	// Policies and Services are as the store resolves them: selectors are addresses already.
	Policies []model.Policy  `json:"policies"`
	Services []model.Service `json:"services"`
	Keep     bool            `json:"keepEstablished"`
}

func (v view) snapshot() *model.Snapshot {
	s := &model.Snapshot{Self: v.Self, Transport: model.Tunnel(v.Tunnel), KernelDatapath: v.Kernel,
		Nodes: map[string]model.Node{}, Attachments: map[model.AttachmentKey]model.Attachment{}}
	for _, n := range v.Nodes {
		s.Nodes[n.Name] = n
	}
	for _, a := range v.Pods {
		s.Attachments[a.Key()] = a
	}
	s.KeepEstablished, s.Policies, s.Services = v.Keep, map[model.PolicyID]model.Policy{}, map[string]model.Service{}
	for _, p := range v.Policies {
		s.Policies[p.ID] = p
	}
	for _, service := range v.Services {
		s.Services[service.Name] = service
	}
	return s
}

// TestGolden compiles each testdata/*.txtar: "objects.yaml" in, "flows" out. Every flow is held to its table's
// contract.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("golden files: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sections := map[string]*txtar.File{}
			for i := range archive.Files {
				sections[archive.Files[i].Name] = &archive.Files[i]
			}
			var v view
			if err := yaml.UnmarshalStrict(sections["objects.yaml"].Data, &v); err != nil {
				t.Fatal(err)
			}
			desired, err := flows.Compile(v.snapshot())
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range desired.Flows {
				if err := flows.Check(f.Flow); err != nil {
					t.Error(err)
				}
			}
			got := readable(desired)
			golden.Section(t, sections["flows"], got)
			golden.Save(t, file, archive)
		})
	}
}

// readable shows tables and owners by name, a flow a line, the way a reviewer reads them. The pipeline's own flows are
// the same in every snapshot and are shown only where there is nothing else.
func readable(d flows.Desired) string {
	var b bytes.Buffer
	only := true
	for _, f := range d.Flows {
		only = only && f.Owner.Kind == model.KindPipeline
	}
	for _, line := range strings.Split(strings.TrimSpace(d.String()), "\n") {
		e, err := openflow.Parse(line)
		if err != nil {
			panic(err) // Desired.String writes what Parse reads; TestTextRoundTrip says so
		}
		f := d.Flows[e.Key]
		if f.Owner.Kind == model.KindPipeline && !only {
			continue
		}
		actions := f.Actions.String()
		if f.Reason != "" {
			actions += " # " + string(f.Reason)
		}
		fmt.Fprintf(&b, "%s: %s %d %s -> %s\n", f.Owner, flows.TableName(f.Table), f.Priority, f.Match, actions)
	}
	return b.String()
}

func TestCheckHoldsFlowsToTheirTable(t *testing.T) {
	for _, tc := range []struct{ flow, want string }{
		{"table=0,priority=1,in_port=1 actions=goto_table:10", ""},
		{"table=0,priority=1,in_port=1 actions=drop", ""},
		{"table=1,priority=1 actions=drop", "has no table 1"},
		{"table=0,priority=1,ip,nw_src=10.0.0.1 actions=drop", "does not match ip"},
		{"table=0,priority=1,in_port=1 actions=goto_table:90", "does not go to Output"},
		{"table=60,priority=1,ip actions=goto_table:10", "does not go to SpoofGuard"},
		{"table=90,priority=1 actions=NORMAL", "does not do NORMAL"},
	} {
		e, err := openflow.Parse(tc.flow)
		if err != nil {
			t.Fatal(err)
		}
		switch err := flows.Check(e.Flow); {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.flow, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: error %v, want %q", tc.flow, err, tc.want)
		}
	}
}

// TestPipelineGoesForward holds the declaration itself to its rule.
func TestPipelineGoesForward(t *testing.T) {
	seen := map[openflow.TableID]bool{}
	names := map[string]bool{}
	for _, table := range flows.Pipeline {
		if seen[table.ID] || names[table.Name] || table.Doc == "" {
			t.Errorf("table %d %s stands twice or has no text", table.ID, table.Name)
		}
		seen[table.ID], names[table.Name] = true, true
		for _, next := range table.Next {
			if next <= table.ID {
				t.Errorf("table %s goes back to %d", table.Name, next)
			}
		}
	}
	for _, table := range flows.Pipeline {
		for _, next := range table.Next {
			if !seen[next] {
				t.Errorf("table %s goes to %d, which does not exist", table.Name, next)
			}
		}
	}
}
