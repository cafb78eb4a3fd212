package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestPatience(t *testing.T) {
	for text, want := range map[string]time.Duration{"": time.Second, "1": time.Second, "2.5": 2500 * time.Millisecond} {
		t.Setenv(SlowVariable, text)
		if got := Patience(time.Second); got != want {
			t.Errorf("with %q a second becomes %s, want %s", text, got, want)
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

func TestProgram(t *testing.T) {
	const pkg = "github.com/weft-cni/weft/test/cluster/pause"
	t.Setenv(PrebuiltVariable, "")
	built, err := Program(t.Context(), ".", pkg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath(built); err != nil {
		t.Error(err)
	}
	prebuilt := t.TempDir()
	t.Setenv(PrebuiltVariable, prebuilt)
	if got, err := Program(t.Context(), ".", pkg, t.TempDir()); err != nil || filepath.Dir(got) == prebuilt {
		t.Errorf("where nothing is prebuilt: %q, %v; want one that was built", got, err)
	}
	want := filepath.Join(prebuilt, "pause")
	if err := os.WriteFile(want, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Program(t.Context(), ".", pkg, t.TempDir()); err != nil || got != want {
		t.Errorf("%q, %v; want the prebuilt %q", got, err, want)
	}
}
