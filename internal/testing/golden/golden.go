// Package golden compares what tests make with files of the repository: generated documents, and the sections of txtar
// archives. With the flag -update a test writes the file first. It keeps nothing.
package golden

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

var update = flag.Bool("update", false, "write the files that tests compare with what they make")

// File fails the test unless a file has this text. With -update it writes the file.
func File(t testing.TB, file, text string) {
	t.Helper()
	if *update {
		write(t, file, []byte(text))
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), text); diff != "" {
		t.Errorf("%s is out of date (-file +made); %s writes it:\n%s", file, command(t), diff)
	}
}

// Section fails the test unless a section of an archive has this text. With -update it changes the section, and Save
// writes the archive.
func Section(t testing.TB, f *txtar.File, text string) {
	t.Helper()
	if *update {
		f.Data = []byte(text)
	}
	if diff := cmp.Diff(string(f.Data), text); diff != "" {
		t.Errorf("%s is out of date (-file +made); %s writes it:\n%s", f.Name, command(t), diff)
	}
}

// Save writes an archive with -update, and does nothing without.
func Save(t testing.TB, file string, archive *txtar.Archive) {
	t.Helper()
	if *update {
		write(t, file, txtar.Format(archive))
	}
}

func write(t testing.TB, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// command is what a developer types to have this test write its files.
func command(t testing.TB) string {
	dir, err := os.Getwd()
	if err == nil {
		var root string
		if root, err = testenv.Repository(); err == nil {
			dir, err = filepath.Rel(root, dir)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(t.Name(), "/")
	return "go test -C " + filepath.ToSlash(dir) + " -run " + name + " -update"
}
