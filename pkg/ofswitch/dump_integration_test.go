//go:build integration

package ofswitch_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// TestDumpInPieces reads more flows than the switch is asked for at once, others' among them: each is there once, and
// no answer has all of them.
func TestDumpInPieces(t *testing.T) {
	_, sw := start(t)
	sizes := answerSizes(t)
	const count = 20_000
	var d openflow.Delta
	for i, f := range numbered(t, count) {
		f.Cookie = flows.Cookie(model.Owner{Kind: model.KindPolicy, Name: fmt.Sprint("ns/", i/7)})
		if i%100 == 0 {
			f.Cookie = uint64(i)
		}
		d.Set = append(d.Set, f)
	}
	if err := sw.Apply(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	actual, err := sw.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[openflow.Flow]int{}
	for _, e := range actual.Flows {
		seen[e.Flow]++
	}
	for _, f := range d.Set {
		if seen[f] != 1 {
			t.Fatalf("%s is there %d times", f, seen[f])
		}
	}
	if len(seen) != count {
		t.Errorf("%d flows, want %d", len(seen), count)
	}
	const most = 4096 // twice what is asked for: a hash divides the flows
	answers := sizes()
	if largest := slices.Max(answers); len(answers) < count/most || largest > most {
		t.Errorf("the switch gave its flows in %d answers, the largest of %d lines; want at most %d", len(answers), largest,
			most)
	}
}

// answerSizes puts a program before ovs-ofctl that notes how many lines each answer to dump-flows has.
func answerSizes(t *testing.T) func() []int {
	t.Helper()
	ofctl, err := exec.LookPath("ovs-ofctl")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	sizes := filepath.Join(dir, "sizes")
	program := fmt.Sprintf(`#!/bin/sh
case "$*" in *dump-flows*) ;; *) exec %[1]s "$@" ;; esac
%[1]s "$@" >%[2]s.answer || exit
wc -l <%[2]s.answer >>%[2]s
cat %[2]s.answer
`, ofctl, sizes)
	if err := os.WriteFile(filepath.Join(dir, "ovs-ofctl"), []byte(program), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() (list []int) {
		text, err := os.ReadFile(sizes)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range strings.Fields(string(text)) {
			n, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, n)
		}
		return list
	}
}
