//go:build e2e

package install

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// section returns the commands of a page below a heading, until the next one of any level: the indented lines.
func (w *world) section(t *testing.T, page, heading string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(w.root, "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), " "+heading+"\n")
	if !ok {
		t.Fatalf("%s has no heading %q", page, heading)
	}
	var commands strings.Builder
	for line := range strings.Lines(rest) {
		if strings.HasPrefix(line, "#") {
			break
		}
		if code, ok := strings.CutPrefix(line, "    "); ok {
			commands.WriteString(code)
		}
	}
	if commands.Len() == 0 {
		t.Fatalf("%s has no commands below %q", page, heading)
	}
	return commands.String()
}

// shell runs commands as a person does in a folder of a release, and returns what they print.
func (w *world) shell(ctx context.Context, folder, commands string) (string, error) {
	cmd := exec.CommandContext(ctx, "bash", "-euc", commands)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "KUBECONFIG="+w.record.Kubeconfig(),
		"PATH="+w.bin+":"+filepath.Dir(w.record.Kubectl())+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w\n%s", strings.TrimSpace(commands), err, out)
	}
	return string(out), nil
}

// must is shell for commands that have to succeed.
func (w *world) must(t *testing.T, folder, commands string) string {
	t.Helper()
	out, err := w.shell(t.Context(), folder, commands)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
