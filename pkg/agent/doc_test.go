package agent

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/testing/golden"
	"github.com/weft-cni/weft/pkg/config"
)

const (
	docFile  = "../../docs/architecture.md"
	docBegin = "<!-- Made from pkg/agent/table.go by: go test ./pkg/agent -run TestDocumentation -update -->\n"
	docEnd   = "<!-- end of the table -->\n"
)

// allParts are those of both datapaths.
func allParts() []part {
	cfg := config.Default()
	cfg.Datapath = config.DatapathNetdev
	return (&Agent{cfg: cfg}).parts(nil)
}

// TestDocumentation: docs/architecture.md has the table of parts that the agent has.
func TestDocumentation(t *testing.T) {
	var table strings.Builder
	table.WriteString("| Part | Starts after | Woken by | Does |\n|---|---|---|---|\n")
	for _, p := range allParts() {
		var changes []string
		for _, c := range p.wokenBy {
			changes = append(changes, string(c))
		}
		after, woken := strings.Join(p.after, ", "), strings.Join(changes, "; ")
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", p.name, after, woken, p.does)
	}
	doc, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := bytes.Cut(doc, []byte(docBegin))
	_, after, ends := bytes.Cut(rest, []byte(docEnd))
	if !begins || !ends {
		t.Fatalf("%s lacks the lines %q and %q", docFile, docBegin, docEnd)
	}
	want := slices.Concat(before, []byte(docBegin), []byte(table.String()), []byte(docEnd), after)
	golden.File(t, docFile, string(want))
}

// TestTableIsSound: names are unique, each part comes after those that it starts after, and has one way to run; each
// change that comes from elsewhere wakes a part.
func TestTableIsSound(t *testing.T) {
	seen := map[string]bool{}
	wakes := map[change]bool{}
	for _, p := range allParts() {
		if seen[p.name] {
			t.Errorf("two parts are named %s", p.name)
		}
		seen[p.name] = true
		for _, name := range p.after {
			if !seen[name] || name == p.name {
				t.Errorf("%s starts after %s, which does not come before it in the table", p.name, name)
			}
		}
		ways := 0
		for _, is := range []bool{p.once != nil, p.sync != nil, p.run != nil} {
			if is {
				ways++
			}
		}
		if ways != 1 || p.does == "" {
			t.Errorf("%s has %d ways to run, and does %q", p.name, ways, p.does)
		}
		for _, c := range p.wokenBy {
			wakes[c] = true
		}
	}
	for _, p := range allParts() {
		for c := range p.sources {
			if !wakes[c] {
				t.Errorf("the change %q of %s wakes no part", c, p.name)
			}
		}
	}
}
