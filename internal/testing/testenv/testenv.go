// Package testenv is what the environment says about the machine that tests run on, and what they need of it: programs,
// and namespaces to run in. It keeps nothing.
package testenv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// The variables.
const (
	// SlowVariable is how many times slower than a usual machine this one is: 4 on an emulated processor.
	SlowVariable = "WEFT_TEST_SLOW"
	// PrebuiltVariable is a directory of programs that have been built already, where building takes too long.
	PrebuiltVariable = "WEFT_PREBUILT"
)

// Patience stretches a time limit on a machine that is known to be slow, and under the race detector.
func Patience(limit time.Duration) time.Duration {
	limit *= raceFactor
	text := os.Getenv(SlowVariable)
	if text == "" {
		return limit
	}
	factor, err := strconv.ParseFloat(text, 64)
	if err != nil || factor < 1 {
		panic(fmt.Sprintf("%s=%q: want a number, 1 or more", SlowVariable, text))
	}
	return time.Duration(float64(limit) * factor)
}

// Repository is the root of the clone that the working directory is in: where the product's go.mod is. The modules of
// the workshop and of single tests lie below it.
func Repository() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && productModule.Match(mod) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find the repository: %s is not in a clone of Weft; run this inside one", start)
		}
	}
}

var productModule = regexp.MustCompile(`(?m)^module github\.com/weft-cni/weft$`)

// Program returns the program of a package: the prebuilt one, or one that it builds into dir, without cgo. The package
// is named by its directory in the repository, which also says whose module's dependencies it is built with.
func Program(ctx context.Context, repo, pkg, dir string) (string, error) {
	name := path.Base(pkg)
	if prebuilt := os.Getenv(PrebuiltVariable); prebuilt != "" {
		program := filepath.Join(prebuilt, name)
		if _, err := os.Stat(program); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return program, err
		}
	}
	program := filepath.Join(dir, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, ".")
	cmd.Dir = filepath.Join(repo, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return program, nil
}
