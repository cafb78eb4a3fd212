package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// metaPackage names Debian's newest kernel; the one for clouds lacks 9p.
const metaPackage = "linux-image-amd64"

// Kernel is an unpacked Debian kernel.
type Kernel struct {
	Version string
	Dir     string
}

func (k Kernel) image() string   { return filepath.Join(k.Dir, "boot", "vmlinuz-"+k.Version) }
func (k Kernel) modules() string { return filepath.Join(k.Dir, "lib", "modules", k.Version) }

// EnsureKernel returns the kernel that was unpacked last below the cache directory, and gets Debian's newest one if
// there is none. It is never installed on the host.
func EnsureKernel(ctx context.Context, out io.Writer, cache string) (Kernel, error) {
	if k, err := newestKernel(cache); err != nil || k.Version != "" {
		return k, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Kernel{}, fmt.Errorf("get a kernel (set WEFT_CACHE to a directory that can be written): %w", err)
	}
	name, err := newestPackage(ctx)
	if err != nil {
		return Kernel{}, err
	}
	fmt.Fprintln(out, "Getting Debian's package", name)
	tmp, err := os.MkdirTemp(cache, unpacking)
	if err != nil {
		return Kernel{}, fmt.Errorf("get a kernel: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := unpack(ctx, name, tmp); err != nil {
		return Kernel{}, fmt.Errorf("get a kernel: %w", err)
	}
	version := strings.TrimPrefix(name, "linux-image-")
	k := Kernel{Version: version, Dir: filepath.Join(cache, version)}
	// It appears whole or not at all. Another process may have been faster.
	if err := os.Rename(filepath.Join(tmp, "root"), k.Dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return Kernel{}, fmt.Errorf("get a kernel: %w", err)
	}
	return k, k.check()
}

// unpacking begins the names of directories that hold no kernel yet.
const unpacking = "unpacking-"

func newestKernel(cache string) (Kernel, error) {
	entries, err := os.ReadDir(cache)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Kernel{}, fmt.Errorf("look for a kernel: %w", err)
	}
	var newest fs.FileInfo
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() || strings.HasPrefix(e.Name(), unpacking) {
			continue // being unpacked, or gone again
		}
		if newest == nil || info.ModTime().After(newest.ModTime()) {
			newest = info
		}
	}
	if newest == nil {
		return Kernel{}, nil
	}
	k := Kernel{Version: newest.Name(), Dir: filepath.Join(cache, newest.Name())}
	return k, k.check()
}

func (k Kernel) check() error {
	for _, path := range []string{k.image(), filepath.Join(k.modules(), "modules.dep")} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%s is not an unpacked kernel, remove it: %w", k.Dir, err)
		}
	}
	return nil
}

// newestPackage asks apt which package the meta package stands for.
func newestPackage(ctx context.Context) (string, error) {
	find := func() (string, error) {
		out, err := exec.CommandContext(ctx, "apt-cache", "depends", metaPackage).Output()
		return parseDepends(string(out)), err
	}
	name, err := find()
	if err == nil && name != "" {
		return name, nil
	}
	if err := aptGet(ctx, "", "update"); err != nil {
		return "", err
	}
	if name, err = find(); err != nil || name == "" {
		return "", fmt.Errorf("apt knows no kernel (apt-cache depends %s): %w", metaPackage, err)
	}
	return name, nil
}

func parseDepends(text string) string {
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok &&
			strings.HasPrefix(name, "linux-image-") {
			return name
		}
	}
	return ""
}

// unpack downloads the package into dir and unpacks it into dir/root, with the index that installing it would have
// made.
func unpack(ctx context.Context, name, dir string) error {
	if err := aptGet(ctx, dir, "download", name); err != nil {
		// The lists may be older than what the mirror has.
		if err := errors.Join(aptGet(ctx, "", "update"), aptGet(ctx, dir, "download", name)); err != nil {
			return err
		}
	}
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("apt-get download %s left %d packages", name, len(packages))
	}
	root := filepath.Join(dir, "root")
	for _, argv := range [][]string{
		{"dpkg", "-x", packages[0], root},
		{"depmod", "--basedir=" + root, strings.TrimPrefix(name, "linux-image-")},
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
		}
	}
	return nil
}
