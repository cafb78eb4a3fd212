package machine

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const dep = `kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/fscache/fscache.ko kernel/fs/netfs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko kernel/drivers/virtio/virtio.ko
kernel/fs/fscache/fscache.ko: kernel/fs/netfs/netfs.ko
kernel/fs/netfs/netfs.ko:
kernel/drivers/virtio/virtio.ko:
kernel/net/openvswitch/vport-geneve.ko: kernel/net/9p/9pnet.ko
`

func TestModulesComeBehindWhatTheyNeed(t *testing.T) {
	got, err := parseDependencies(dep).order("9pnet_virtio", "9p", "vport_geneve", "9pnet")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"kernel/net/9p/9pnet.ko", "kernel/drivers/virtio/virtio.ko", "kernel/net/9p/9pnet_virtio.ko",
		"kernel/fs/netfs/netfs.ko", "kernel/fs/fscache/fscache.ko", "kernel/fs/9p/9p.ko",
		"kernel/net/openvswitch/vport-geneve.ko",
	}
	if !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
	if _, err := parseDependencies(dep).order("floppy"); err == nil || !strings.Contains(err.Error(), "floppy") {
		t.Errorf("a module that does not exist: %v", err)
	}
}

func TestCPIO(t *testing.T) {
	entries := []entry{
		{path: "init", mode: 0o755, content: []byte("#!/bin/sh\n")},
		{path: "a/b/odd", mode: 0o644, content: []byte("12345")},
		{path: "a/empty", mode: 0o600},
	}
	var archive bytes.Buffer
	if err := writeCPIO(&archive, entries); err != nil {
		t.Fatal(err)
	}
	got := readCPIO(t, archive.Bytes())
	want := []string{"init 100755 #!/bin/sh\n", "a 40755 ", "a/b 40755 ", "a/b/odd 100644 12345", "a/empty 100600 "}
	if !slices.Equal(got, want) {
		t.Errorf("the archive holds %q, want %q", got, want)
	}
}

func TestWhatIsMissing(t *testing.T) {
	got := missingPackages(func(program string) (string, error) {
		if program == "dpkg" {
			return "/usr/bin/dpkg", nil
		}
		return "", exec.ErrNotFound
	})
	if want := []string{"qemu-system-x86", "kmod"}; !slices.Equal(got, want) {
		t.Errorf("missing %q, want %q", got, want)
	}
}

func TestNewestPackage(t *testing.T) {
	const depends = "linux-image-amd64\n  Depends: linux-base\n  Depends: linux-image-6.1.0-56-amd64\n"
	if got := parseDepends(depends); got != "linux-image-6.1.0-56-amd64" {
		t.Errorf("got %q", got)
	}
	if got := parseDepends("linux-image-amd64\n"); got != "" {
		t.Errorf("got %q where there is none", got)
	}
}

func TestKernelInCache(t *testing.T) {
	cache := t.TempDir()
	if k, err := newestKernel(filepath.Join(cache, "none")); err != nil || k.Version != "" {
		t.Errorf("without a cache: %v, %v", k, err)
	}
	for _, dir := range []string{unpacking + "1/root", "6.1.0-1-amd64/boot"} {
		if err := os.MkdirAll(filepath.Join(cache, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := newestKernel(cache); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("a damaged kernel: %v", err)
	}
	k := Kernel{Version: "6.1.0-1-amd64", Dir: filepath.Join(cache, "6.1.0-1-amd64")}
	for _, file := range []string{k.image(), k.modules() + "/modules.dep"} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := newestKernel(cache); err != nil || got != k {
		t.Errorf("got %v, %v, want %v", got, err, k)
	}
}
