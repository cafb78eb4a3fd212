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

	"github.com/weft-cni/weft/internal/terminal"
)

// component is a Go module of programs that the cluster runs and that do not depend on Weft's code.
type component struct {
	what     string                        // for a person, with the version at the end
	dir      string                        // of the module, below test
	requires string                        // the module whose version counts
	flags    func(version string) []string // of go build
	packages string                        // what is built there: `tool`, or a directory
	test     bool                          // the package's test binary instead of a program
	programs []string                      // and files that are copied
	copies   map[string]string             // files of the module that counts, by their path in it, and their names
	// rename gives a program its usual name.
	rename map[string]string
}

var (
	kubernetes = component{
		what: "etcd and Kubernetes", dir: "components", requires: "k8s.io/kubernetes", flags: kubernetesFlags,
		packages: "tool",
		programs: []string{"agnhost", "etcd", "ginkgo", "kube-apiserver", "kube-controller-manager", "kube-scheduler",
			"kubectl", "kubelet"},
		rename: map[string]string{"server": "etcd"},
	}
	upstreamTests = component{
		what: "Kubernetes' own end-to-end tests", dir: "components", requires: "k8s.io/kubernetes", flags: kubernetesFlags,
		packages: "./e2e", test: true, programs: []string{"e2e.test"},
	}
	coreDNS = component{
		what: "CoreDNS", dir: "components/coredns", requires: "github.com/coredns/coredns", packages: ".", programs: []string{
			"coredns"},
		flags: func(string) []string { return []string{"-trimpath", "-ldflags", "-s -w"} },
	}
)

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

// buildAll builds components.
func buildAll(ctx context.Context, p *progress, repo string, all []component) error {
	for _, c := range all {
		if _, err := c.ensure(ctx, p, repo); err != nil {
			return err
		}
	}
	return nil
}

// ensure returns the directory of the component's programs, and builds them if they are not there. The directory's name
// depends on everything that the programs are made from, and it appears whole or not at all.
func (c component) ensure(ctx context.Context, p *progress, repo string) (string, error) {
	module := filepath.Join(repo, "test", c.dir)
	version, hash, err := c.read(module)
	if err != nil {
		return "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "components", hash)
	if c.complete(dir) {
		return dir, nil
	}
	err = p.step(fmt.Sprintf("Build %s %s (once)", c.what, version), func(detail func(string)) error {
		return c.build(ctx, module, version, dir, detail)
	})
	return dir, err
}

// read returns the version that the component's module requires, and a hash of all that its programs are made from.
func (c component) read(module string) (version, hash string, err error) {
	sources, err := filepath.Glob(filepath.Join(module, c.packages, "*.go"))
	if err != nil {
		return "", "", err
	}
	sum := sha256.New()
	for _, file := range append([]string{filepath.Join(module, "go.mod"), filepath.Join(module, "go.sum")}, sources...) {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", "", fmt.Errorf("read the module of %s: %w", c.what, err)
		}
		sum.Write(data)
		for line := range strings.Lines(string(data)) {
			required, ok := strings.CutPrefix(strings.TrimPrefix(strings.TrimSpace(line), "require "), c.requires+" v")
			if ok && filepath.Base(file) == "go.mod" {
				version = "v" + strings.Fields(required)[0]
			}
		}
	}
	if version == "" {
		return "", "", fmt.Errorf("%s/go.mod does not require %s", module, c.requires)
	}
	sum.Write([]byte(strings.Join(c.flags(version), " ")))
	return version, hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// kubernetesFlags also tell the programs which version they are.
func kubernetesFlags(version string) []string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	const pkg = "-X k8s.io/component-base/version."
	return []string{"-trimpath", "-ldflags", "-s -w " + pkg + "gitVersion=" + version + " " + pkg + "gitMajor=" + major +
		" " + pkg + "gitMinor=" + minor}
}

func (c component) complete(dir string) bool {
	for _, name := range c.programs {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

func (c component) build(ctx context.Context, module, version, dir string, detail func(string)) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("build the components (set WEFT_CACHE to a directory that can be written): %w", err)
	}
	unlock, err := lockBuild(parent, detail)
	if err != nil {
		return err
	}
	defer unlock()
	if c.complete(dir) {
		return nil // another clone has built them while we waited
	}
	tmp := filepath.Join(parent, "building")
	for _, f := range []func() error{func() error { return os.RemoveAll(tmp) }, func() error {
		return os.Mkdir(tmp, 0o755)
	}} {
		if err := f(); err != nil {
			return fmt.Errorf("build the components: %w", err)
		}
	}
	defer os.RemoveAll(tmp)
	args := []string{"build", "-v"}
	if c.test {
		// -v of go test is another; go vet over Kubernetes would cost as much as compiling it.
		args = []string{"test", "-c", "-vet=off"}
	}
	args = append(append(args, "-o", tmp+"/"), c.flags(version)...)
	cmd := exec.CommandContext(ctx, "go", append(args, c.packages)...)
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
			detail(terminal.Count(compiled, "package") + " compiled")
			continue
		}
		if last = append(last, lines.Text()); len(last) > 20 {
			last = last[1:]
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("build the components in %s: %w\n%s", module, err, strings.Join(last, "\n"))
	}
	for from, to := range c.rename {
		if err := os.Rename(filepath.Join(tmp, from), filepath.Join(tmp, to)); err != nil {
			return fmt.Errorf("build the components: %w", err)
		}
	}
	if err := c.copy(ctx, module, tmp); err != nil {
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

// copy copies files of the module that counts.
func (c component) copy(ctx context.Context, module, to string) error {
	if len(c.copies) == 0 {
		return nil
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", c.requires)
	cmd.Dir = module
	dir, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("find the module %s: %w", c.requires, err)
	}
	for from, name := range c.copies {
		data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), from))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o644); err != nil {
			return err
		}
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
