package golden

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// recorder takes the failures of a test that is to fail.
type recorder struct {
	testing.TB
	failed string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) { r.failed += fmt.Sprintf(format, args...) }

// TestGolden: what differs fails and says how to write it; with -update it is written, and fails no more.
func TestGolden(t *testing.T) {
	file, archive := filepath.Join(t.TempDir(), "file"), filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(file, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sections := &txtar.Archive{Files: []txtar.File{{Name: "a", Data: []byte("old\n")}}}
	look := func(text string) string {
		r := &recorder{TB: t}
		File(r, file, text)
		Section(r, &sections.Files[0], text)
		Save(r, archive, sections)
		return r.failed
	}
	const command = "go test -C internal/testing/golden -run TestGolden -update writes it"
	if failed := look("old\n"); failed != "" {
		t.Errorf("what is equal fails: %s", failed)
	}
	if failed := look("new\n"); strings.Count(failed, command) != 2 {
		t.Errorf("of what differs it says %q, want twice %q", failed, command)
	}
	if _, err := os.Stat(archive); !os.IsNotExist(err) {
		t.Errorf("an archive is written without -update: %v", err)
	}
	before := *update
	*update = true
	t.Cleanup(func() { *update = before })
	if failed := look("new\n"); failed != "" {
		t.Errorf("with -update: %s", failed)
	}
	*update = false
	written, err := txtar.ParseFile(archive)
	if err != nil || len(written.Files) != 1 || string(written.Files[0].Data) != "new\n" {
		t.Errorf("the archive has %+v: %v", written, err)
	}
	if failed := look("new\n"); failed != "" {
		t.Errorf("after -update: %s", failed)
	}
}
