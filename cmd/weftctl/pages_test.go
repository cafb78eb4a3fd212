package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPages: the commands that pages show with weftctl or kubectl weft exist, with their flags.
func TestPages(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, page := range append(pages, "../../README.md") {
		if filepath.Base(page) == "weftctl.md" {
			continue // generated from the commands
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if code, ok := strings.CutPrefix(line, "    "); ok {
				for _, args := range commands(code) {
					found++
					cmd, rest, err := rootFor("kubectl-weft").Find(args)
					if err == nil {
						err = cmd.ParseFlags(rest)
					}
					if err != nil {
						t.Errorf("%s: %s: %v", filepath.Base(page), strings.TrimSpace(code), err)
					}
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("found %d commands only", found)
	}
}

// commands are the arguments of what a line of code runs of this program.
func commands(code string) (list [][]string) {
	code, _, _ = strings.Cut(strings.TrimPrefix(code, "$ "), " #")
	for _, one := range strings.FieldsFunc(code, func(r rune) bool { return strings.ContainsRune("|;&", r) }) {
		args := strings.Fields(one)
		switch {
		case len(args) > 2 && args[0] == "kubectl" && args[1] == "weft":
			list = append(list, args[2:])
		case len(args) > 3 && args[0] == "on" && args[2] == "weftctl":
			list = append(list, args[3:])
		case len(args) > 1 && args[0] == "weftctl":
			list = append(list, args[1:])
		}
	}
	return list
}
