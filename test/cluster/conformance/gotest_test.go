package conformance

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const goTest = `=== RUN   TestConformance
    suite.go:1: Test Setup
=== RUN   TestConformance/IngressTCP
    apply.go:1: Creating ingress
=== RUN   TestConformance/IngressTCP/Should_allow
=== NAME  TestConformance/IngressTCP
    apply.go:2: Deleting ingress
=== RUN   TestConformance/EgressSCTP
=== RUN   TestConformance/EgressSCTP/Should_allow
=== RUN   TestConformance/EgressSCTP/Should_deny
    helper.go:1: Command was connect
    helper.go:2:
        	Error: Condition never satisfied
=== RUN   TestConformance/Named
    suite.go:2: not supported
=== RUN   TestConformance/Gress
--- FAIL: TestConformance (65.00s)
    --- PASS: TestConformance/IngressTCP (1.50s)
        --- PASS: TestConformance/IngressTCP/Should_allow (1.00s)
    --- FAIL: TestConformance/EgressSCTP (60.00s)
        --- PASS: TestConformance/EgressSCTP/Should_allow (1.00s)
        --- FAIL: TestConformance/EgressSCTP/Should_deny (59.00s)
    --- SKIP: TestConformance/Named (0.00s)
FAIL
`

func TestReadGoTest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tests.log")
	if err := os.WriteFile(file, []byte(goTest), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := ReadGoTest(file)
	if err != nil {
		t.Fatal(err)
	}
	want := []Spec{
		{"EgressSCTP", time.Minute, "Should_deny\nhelper.go:1: Command was connect\nhelper.go:2:\n" +
			"Error: Condition never satisfied", ""},
		{"Gress", 0, unfinished, ""},
		{"Named", 0, "", "suite.go:2: not supported"},
		{"IngressTCP", 1500 * time.Millisecond, "", ""},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("tests (-want +got):\n%s", d)
	}
	if _, err := ReadGoTest(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing output: no error")
	}
}
