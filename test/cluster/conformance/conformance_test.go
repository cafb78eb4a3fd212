package conformance

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const junit = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="6"><testsuite name="Kubernetes e2e suite">
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"></testcase>
<testcase name="[It] [sig-network] Services should serve b [Conformance] [sig-network, Conformance]" status="passed" time="12.5"></testcase>
<testcase name="[It] [sig-network] DNS should work [sig-network]" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] [sig-network] DNS should be GCE [sig-network]" status="skipped" time="0"><skipped message="skipped - not here"></skipped></testcase>
<testcase name="[It] [sig-network] Services should serve z [sig-network]" status="failed" time="3">
  <failure message="want a&#xA;got b" type="failed">stack</failure><system-err>much</system-err></testcase>
<testcase name="[It] [sig-network] Services should serve a [sig-network]" status="panicked" time="2"><error message="nil" type="panicked">stack</error></testcase>
<testcase name="[SynchronizedAfterSuite]" status="failed" time="1"><failure message="left over" type="failed"></failure></testcase>
</testsuite></testsuites>`

func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "junit.xml")
	if err := os.WriteFile(file, []byte(junit), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	want := []Spec{
		{"[SynchronizedAfterSuite]", time.Second, "failed: left over", ""},
		{"[sig-network] Services should serve a", 2 * time.Second, "panicked: nil", ""},
		{"[sig-network] Services should serve z", 3 * time.Second, "failed: want a\ngot b", ""},
		{"[sig-network] DNS should be GCE", 0, "", "not here"},
		{"[sig-network] Services should serve b [Conformance]", 12500 * time.Millisecond, "", ""},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("specs (-want +got):\n%s", d)
	}
	if Failed(got) != 3 || Passed(got) != 1 {
		t.Errorf("%d failed and %d passed, want 3 and 1", Failed(got), Passed(got))
	}
	var out bytes.Buffer
	Print(&out, got[2:])
	const printed = "FAILED     3s  [sig-network] Services should serve z\n                failed: want a\n" +
		"                got b\n" +
		"skipped        [sig-network] DNS should be GCE: not here\n" +
		"passed    12s  [sig-network] Services should serve b [Conformance]\n"
	if d := cmp.Diff(printed, out.String()); d != "" {
		t.Errorf("printed (-want +got):\n%s", d)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a report that is not there is no error")
	}
}

func TestFocus(t *testing.T) {
	for name, expression := range focuses {
		if got, err := Focus(name); err != nil || got != expression {
			t.Errorf("focus %q is %q, %v", name, got, err)
		}
		regexp.MustCompile(expression)
	}
	for _, invalid := range []string{"", "("} {
		if got, err := Focus(invalid); err == nil {
			t.Errorf("focus %q is %q, want an error", invalid, got)
		}
	}
	if got, err := Focus("Services should"); err != nil || got != "Services should" {
		t.Errorf("an expression became %q, %v", got, err)
	}
}
