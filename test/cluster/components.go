package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// programs are what the components module builds, after etcd's has got its usual name.
var programs = []string{"agnhost", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet"}

// repository is the root of the clone that the tool runs in.
func repository(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Path}} {{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the repository (run this from Weft's clone): %w", err)
	}
	module, dir, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if module != "github.com/weft-cni/weft" {
		return "", fmt.Errorf("find the repository: this is module %s; run this from Weft's clone", module)
	}
	return dir, nil
}

// cacheDir is where built programs survive a fresh clone.
func cacheDir() (string, error) {
	if dir := os.Getenv("WEFT_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory, set WEFT_CACHE: %w", err)
	}
	return filepath.Join(home, ".cache", "weft"), nil
}

// ensureComponents returns the directory of the Kubernetes programs, and builds them if they are not there. The
// directory's name depends on everything that the programs are made from, and it appears whole or not at all.
func ensureComponents(ctx context.Context, p *progress, repo string) (string, error) {
	module := filepath.Join(repo, "test", "components")
	version, hash, err := readModule(module)
	if err != nil {
		return "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "components", hash)
	if complete(dir) {
		return dir, nil
	}
	err = p.step("Build Kubernetes "+version+" and etcd (once; about five minutes on two cores)", func(detail func(string)) error {
		return buildComponents(ctx, module, version, dir, detail)
	})
	return dir, err
}

// readModule returns the version of Kubernetes that the components module requires, and a hash of all that it requires.
func readModule(module string) (version, hash string, err error) {
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", "", fmt.Errorf("read the components module: %w", err)
		}
		sum.Write(data)
		for line := range strings.Lines(string(data)) {
			if required, ok := strings.CutPrefix(strings.TrimSpace(line), "k8s.io/kubernetes v"); ok && name == "go.mod" {
				version = "v" + strings.Fields(required)[0]
			}
		}
	}
	if version == "" {
		return "", "", fmt.Errorf("%s/go.mod does not require k8s.io/kubernetes", module)
	}
	sum.Write([]byte(strings.Join(buildFlags(version), " ")))
	return version, hex.EncodeToString(sum.Sum(nil))[:16], nil
}

func buildFlags(version string) []string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	const pkg = "-X k8s.io/component-base/version."
	return []string{"-trimpath", "-ldflags", "-s -w " + pkg + "gitVersion=" + version + " " + pkg + "gitMajor=" + major + " " + pkg + "gitMinor=" + minor}
}

func complete(dir string) bool {
	for _, name := range programs {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

func buildComponents(ctx context.Context, module, version, dir string, detail func(string)) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("build the components (set WEFT_CACHE to a directory that can be written): %w", err)
	}
	unlock, err := lockBuild(parent, detail)
	if err != nil {
		return err
	}
	defer unlock()
	if complete(dir) {
		return nil // another clone has built them while we waited
	}
	tmp := filepath.Join(parent, "building")
	for _, f := range []func() error{func() error { return os.RemoveAll(tmp) }, func() error { return os.Mkdir(tmp, 0o755) }} {
		if err := f(); err != nil {
			return fmt.Errorf("build the components: %w", err)
		}
	}
	defer os.RemoveAll(tmp)
	args := append([]string{"build", "-v", "-o", tmp}, buildFlags(version)...)
	cmd := exec.CommandContext(ctx, "go", append(args, "tool")...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly -buildvcs=false")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("build the components: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("build the components: %w", err)
	}
	// -v names every package as it is compiled; whatever else is printed is worth showing when it fails.
	compiled, last := 0, []string{}
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if !strings.ContainsAny(lines.Text(), " :") {
			compiled++
			detail(fmt.Sprintf("%d packages compiled", compiled))
			continue
		}
		if last = append(last, lines.Text()); len(last) > 20 {
			last = last[1:]
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("build the components in %s: %w\n%s", module, err, strings.Join(last, "\n"))
	}
	if err := os.Rename(filepath.Join(tmp, "server"), filepath.Join(tmp, "etcd")); err != nil {
		return fmt.Errorf("build the components: %w", err)
	}
	// A directory of that name with a program missing was damaged by hand.
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("build the components: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("build the components: keep the result: %w", err)
	}
	return nil
}

// lockBuild lets one process build at a time; the others would only take its cores.
func lockBuild(parent string, detail func(string)) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(parent, lockFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("build the components (set WEFT_CACHE to a directory that can be written): %w", err)
	}
	detail("waiting for another build")
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("build the components: %w", err)
	}
	detail("")
	return func() { file.Close() }, nil
}
