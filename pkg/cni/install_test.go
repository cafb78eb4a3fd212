package cni

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/cni/wire"
)

func TestConfList(t *testing.T) {
	got, err := ConfList("")
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "cniVersion": "1.0.0",
  "cniVersions": [
    "1.0.0",
    "1.1.0"
  ],
  "name": "weft",
  "plugins": [
    {
      "capabilities": {
        "bandwidth": true
      },
      "type": "weft-cni"
    },
    {
      "capabilities": {
        "portMappings": true
      },
      "snat": true,
      "type": "portmap"
    },
    {
      "capabilities": {
        "bandwidth": true
      },
      "type": "bandwidth"
    }
  ]
}
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if same, _ := ConfList(wire.DefaultSocket); string(same) != want {
		t.Error("the default socket is mentioned")
	}
}

func TestWriteConfList(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	path := filepath.Join(dir, ConfListName)
	stat := func() os.FileInfo {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	if err := WriteConfList(dir, "/s", slog.Default()); err != nil {
		t.Fatal(err)
	}
	before := stat()
	if err := WriteConfList(dir, "/s", slog.Default()); err != nil || !os.SameFile(before, stat()) {
		t.Errorf("a file that was right was written again: %v", err)
	}
	if err := WriteConfList(dir, "/other", slog.Default()); err != nil || os.SameFile(before, stat()) {
		t.Errorf("a file that was wrong was not replaced: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}

func TestInstallBinaries(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "bin")
	for name, content := range map[string]string{"weft-cni": "new", "portmap": "p"} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(from, "lost+found"), 0o755); err != nil {
		t.Fatal(err)
	}
	install := func(want ...string) {
		t.Helper()
		got, err := InstallBinaries(from, to)
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("wrote %v, want %v: %v", got, want, err)
		}
	}
	install("portmap", "weft-cni")
	install()
	// A running program cannot be written to, but it can be replaced.
	running, err := os.Open(filepath.Join(to, "weft-cni"))
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	if err := os.Chmod(filepath.Join(to, "portmap"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "weft-cni"), []byte("newer"), 0o700); err != nil {
		t.Fatal(err)
	}
	install("portmap", "weft-cni")
	old := make([]byte, 10)
	if n, err := running.Read(old); err != nil || string(old[:n]) != "new" {
		t.Errorf("the running program became %q, %v", old[:n], err)
	}
	info, err := os.Stat(filepath.Join(to, "portmap"))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := InstallBinaries(filepath.Join(from, "missing"), to); err == nil {
		t.Error("a missing directory is accepted")
	}
}

// TestForeignPlugins: plugins that other programs added are kept, Weft's own are reset, and an invalid list is
// replaced.
func TestForeignPlugins(t *testing.T) {
	const mesh = `{"type": "mesh-cni", "id": 12345678901234567890, "nested": {"a": [1]}}`
	for what, tc := range map[string]struct {
		before string
		want   []string
		broken bool
	}{
		"none": {"", []string{"weft-cni", "portmap", "bandwidth"}, false},
		"appended": {
			`{"name": "weft", "disableGC": true, "plugins": [{"type": "weft-cni"}, {"type": "portmap"}, {"type": "bandwidth"}, ` +
				mesh + `, {"type": "tuning"}]}`, []string{"weft-cni", "portmap", "bandwidth", "mesh-cni", "tuning"}, false},
		"between": {`{"name": "weft", "plugins": [` + mesh +
			`, {"type": "weft-cni", "old": 1}, {"type": "tuning"}, {"type": "portmap", "snat": false}]}`, []string{"weft-cni",
			"portmap", "bandwidth", "mesh-cni", "tuning"}, false},
		"not JSON": {`{"name": "weft", `, []string{"weft-cni", "portmap", "bandwidth"}, true},
		"no type":  {`{"name": "weft", "plugins": [{"kind": "x"}]}`, []string{"weft-cni", "portmap", "bandwidth"}, true},
		"other":    {`{"name": "cbr0", "plugins": [` + mesh + `]}`, []string{"weft-cni", "portmap", "bandwidth"}, true},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, ConfListName)
			if tc.before != "" {
				if err := os.WriteFile(path, []byte(tc.before), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var logged strings.Builder
			write := func() []byte {
				if err := WriteConfList(dir, "", slog.New(slog.NewTextHandler(&logged, nil))); err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			first := write()
			if again := write(); !bytes.Equal(first, again) {
				t.Errorf("written again as\n%s", again)
			}
			var list struct {
				DisableGC bool
				Plugins   []struct{ Type string }
			}
			if err := json.Unmarshal(first, &list); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range list.Plugins {
				got = append(got, p.Type)
			}
			if !slices.Equal(got, tc.want) || list.DisableGC != strings.Contains(tc.before, "disableGC") {
				t.Errorf("wrote\n%s", first)
			}
			if slices.Contains(tc.want, "mesh-cni") && !bytes.Contains(first, []byte("12345678901234567890")) ||
				bytes.Contains(first, []byte(`"old"`)) {
				t.Errorf("wrote\n%s", first)
			}
			if broken := strings.Contains(logged.String(), "invalid"); broken != tc.broken {
				t.Errorf("logged %q", logged.String())
			}
		})
	}
}

// TestPreceding: only configurations that come before Weft's count.
func TestPreceding(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"00-README", "05-flannel.conflist", "10-aaa.conf", ConfListName, "87-podman.conflist"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Preceding(dir); err != nil || !slices.Equal(got, []string{"05-flannel.conflist", "10-aaa.conf"}) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := Preceding(filepath.Join(dir, "nowhere")); err != nil || len(got) > 0 {
		t.Errorf("of no directory: %q, %v", got, err)
	}
}
