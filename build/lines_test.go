package build_test

import (
	"go/scanner"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// maxColumns is the width of a line of code or of a comment, a tab counted as one column.
const maxColumns = 120

// TestLines: code and comments are at most maxColumns wide. Lines with parts of a string may be, and the output that
// examples are compared with: texts are not cut.
func TestLines(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	list := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.go")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		source, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) { // removed, and not yet committed
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(name) == "example_test.go" {
			continue
		}
		for _, line := range tooWide(source) {
			t.Errorf("%s:%d is wider than %d columns", name, line, maxColumns)
		}
	}
}

func TestTooWide(t *testing.T) {
	wide := strings.Repeat("x", maxColumns)
	source := "package x\n// " + wide + "\nvar " + wide + " int\nvar a = \"" + wide + "\"\nvar b = `\n" + wide + "y\n`\nvar ü" +
		wide[:maxColumns-5] + " int\n"
	if got := tooWide([]byte(source)); len(got) != 3 || got[0] != 2 || got[1] != 3 || got[2] != 8 {
		t.Errorf("the lines %v are too wide, want 2, 3 and 8", got)
	}
}

// tooWide lists the lines of source, the first is 1, that are wider than maxColumns and have no part of a string.
func tooWide(source []byte) []int {
	var s scanner.Scanner
	files := token.NewFileSet()
	file := files.AddFile("", -1, len(source))
	s.Init(file, source, nil, 0)
	texts := map[int]bool{}
	for {
		pos, tok, literal := s.Scan()
		if tok == token.EOF {
			break
		}
		if tok == token.STRING {
			first := file.Line(pos)
			for line := first; line <= first+strings.Count(literal, "\n"); line++ {
				texts[line] = true
			}
		}
	}
	var wide []int
	line := 0
	for text := range strings.Lines(string(source)) {
		line++
		if !texts[line] && utf8.RuneCountInString(strings.TrimSuffix(text, "\n")) > maxColumns {
			wide = append(wide, line)
		}
	}
	return wide
}
