package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPatience(t *testing.T) {
	for text, want := range map[string]time.Duration{"": time.Second, "1": time.Second, "2.5": 2500 * time.Millisecond} {
		t.Setenv(SlowVariable, text)
		if got := Patience(time.Second); got != want*raceFactor {
			t.Errorf("with %q a second becomes %s, want %d times %s", text, got, raceFactor, want)
		}
	}
	t.Setenv(SlowVariable, "quick")
	defer func() {
		if recover() == nil {
			t.Error("nonsense is accepted")
		}
	}()
	Patience(time.Second)
}

func TestRepository(t *testing.T) {
	root := t.TempDir()
	below := filepath.Join(root, "test", "image")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(below)
	if got, err := Repository(); err == nil || !strings.Contains(err.Error(), "run this inside one") {
		t.Errorf("outside a clone: %q, %v", got, err)
	}
	for file, module := range map[string]string{
		filepath.Join(root, "go.mod"):         "github.com/weft-cni/weft",
		filepath.Join(root, "test", "go.mod"): "github.com/weft-cni/weft/test",
	} {
		if err := os.WriteFile(file, []byte("module "+module+"\n\ngo 1.26.0\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Repository(); err != nil || got != root {
		t.Errorf("%q, %v; want %q, past the module between", got, err, root)
	}
}

func TestProgram(t *testing.T) {
	const pkg = "./test/cluster/pause" // of another module than this test
	repo, err := Repository()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(PrebuiltVariable, "")
	built, err := Program(t.Context(), repo, pkg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath(built); err != nil {
		t.Error(err)
	}
	prebuilt := t.TempDir()
	t.Setenv(PrebuiltVariable, prebuilt)
	if got, err := Program(t.Context(), repo, pkg, t.TempDir()); err != nil || filepath.Dir(got) == prebuilt {
		t.Errorf("where nothing is prebuilt: %q, %v; want one that was built", got, err)
	}
	want := filepath.Join(prebuilt, "pause")
	if err := os.WriteFile(want, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Program(t.Context(), repo, pkg, t.TempDir()); err != nil || got != want {
		t.Errorf("%q, %v; want the prebuilt %q", got, err, want)
	}
}
