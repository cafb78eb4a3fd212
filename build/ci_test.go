package build_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCI: .ci/run succeeds when the tests, the linter and the build of the Kubernetes programs do, fails when one of
// them fails, and shows what the linter printed; each of them is the last to end once.
func TestCI(t *testing.T) {
	script, err := os.ReadFile("../.ci/run")
	if err != nil {
		t.Fatal(err)
	}
	for _, slow := range []string{"test", "lint", "build"} {
		for _, failing := range []string{"", "test", "lint", "build"} {
			t.Run(fmt.Sprintf("%s is slow, failing %q", slow, failing), func(t *testing.T) {
				t.Parallel()
				root := t.TempDir()
				program := fmt.Sprintf("#!/bin/sh\n[ $1 != %s ] || sleep 0.3\necho \"printed by $1\"\n[ $1 != %q ]\n", slow, failing)
				for name, text := range map[string]string{".ci/run": string(script), "bin/cluster": program, "tools/make": program} {
					name = filepath.Join(root, name)
					if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				cmd := exec.CommandContext(t.Context(), filepath.Join(root, ".ci/run"))
				cmd.Env = append(os.Environ(), "PATH="+filepath.Join(root, "tools")+":"+os.Getenv("PATH"))
				out, err := cmd.CombinedOutput()
				if (err != nil) != (failing != "") {
					t.Errorf("it ended with %v and printed:\n%s", err, out)
				}
				// A linter that is not waited for, because the tests have failed, is ended before it prints.
				if failing == "" && !strings.Contains(string(out), "printed by lint\n") {
					t.Errorf("it did not show what the linter printed, but:\n%s", out)
				}
			})
		}
	}
}
