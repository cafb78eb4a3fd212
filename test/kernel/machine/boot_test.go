//go:build kernel

package machine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bootable is a configuration of a small guest. Everything temporary is below one directory, so that a test can see
// what stays.
func bootable(t *testing.T, command ...string) (Config, *bytes.Buffer) {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	cache := os.Getenv("WEFT_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(home, ".cache", "weft")
	}
	k, err := EnsureKernel(t.Context(), os.Stderr, filepath.Join(cache, "kernel"))
	if err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	return Config{
		Kernel: k, Modules: []string{"openvswitch"}, Command: command, Dir: t.TempDir(), Env: []string{
			"PATH=" + os.Getenv("PATH")},
		Results: t.TempDir(), Output: &output, CPUs: 2, Memory: "1G", BootTimeout: 3 * time.Minute,
	}, &output
}

// nothingLeft checks that no file stays, and no process: one that ran there would hold a file below it open.
func nothingLeft(t *testing.T, c Config) {
	t.Helper()
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		t.Errorf("%s is left", entry.Name())
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range commands {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), c.Results) {
			t.Errorf("%s still runs: %q", filepath.Dir(path), text)
		}
	}
}

func TestRun(t *testing.T) {
	c, output := bootable(t, "sh", "-c",
		`echo hello; grep -c ^openvswitch /proc/modules; echo kept >/guest/results/file; echo lost >lost; (sleep 1000 &); exit 3`)
	status, err := Run(t.Context(), c)
	if err != nil || status != 3 {
		t.Fatalf("status %d, %v; want 3; output: %s", status, err, output)
	}
	for _, want := range []string{"guest: Linux " + c.Kernel.Version, "hello\n", "1\n"} {
		if !strings.Contains(output.String(), want) {
			t.Errorf("the output has no %q: %s", want, output)
		}
	}
	if kept, err := os.ReadFile(filepath.Join(c.Results, "file")); err != nil || string(kept) != "kept\n" {
		t.Errorf("the results hold %q, %v", kept, err)
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "lost")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the guest has written to the host's disk: %v", err)
	}
	nothingLeft(t, c)
}

func TestPanicIsNoSuccess(t *testing.T) {
	c, output := bootable(t, "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000")
	_, err := Run(t.Context(), c)
	if !errors.Is(err, errNoResult) || !strings.Contains(err.Error(), "sysrq") {
		t.Errorf("%v, want that there is no result, with the kernel's last words; output: %s", err, output)
	}
	nothingLeft(t, c)
}

func TestNoKernelIsNoSuccess(t *testing.T) {
	c, _ := bootable(t, "true")
	broken := t.TempDir()
	if err := os.Symlink(filepath.Join(c.Kernel.Dir, "lib"), filepath.Join(broken, "lib")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(broken, "boot"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.Kernel.Dir, c.BootTimeout = broken, 10*time.Second
	if err := os.WriteFile(c.Kernel.image(), bytes.Repeat([]byte("no kernel"), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), c); err == nil {
		t.Error("a machine without a kernel has succeeded")
	}
	nothingLeft(t, c)
}

func TestInterrupted(t *testing.T) {
	c, output := bootable(t, "sh", "-c", "echo begun; sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.Output = writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("begun")) {
			cancel()
		}
		return output.Write(p)
	})
	start := time.Now()
	if _, err := Run(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was cancelled; output: %s", err, output)
	}
	t.Logf("ended after %.1f s", time.Since(start).Seconds())
	nothingLeft(t, c)
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
