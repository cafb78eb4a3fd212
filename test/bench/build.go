package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// againstName is what another build of the agent is called in the directory of the programs.
const againstName = "weft-agent.against"

// commitFile is the file, beside the programs, that names the commit that they were built from.
const commitFile = "commit"

// buildPrograms builds what the benchmarks run from the working tree, and another agent from a commit, in a worktree
// that is removed again.
func buildPrograms(ctx context.Context, dir, against string) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	repo, err := testenv.Repository()
	if err != nil {
		return err
	}
	for _, pkg := range []string{"./test/weft-lab", "./cmd/weft-agent", "./cmd/weft-cni"} {
		if _, err := testenv.Program(ctx, repo, pkg, dir); err != nil {
			return err
		}
	}
	commit := "unknown" // of an archive of the sources
	if out, err := exec.CommandContext(ctx, "git", "-C", repo, "describe", "--always", "--abbrev=40", "--exclude=*",
		"--dirty").Output(); err == nil {
		commit = strings.TrimSpace(string(out))
	}
	if err := os.WriteFile(filepath.Join(dir, commitFile), []byte(commit), 0o644); err != nil {
		return err
	}
	// The peers' plugins are built like weft-cni: static and stripped, as an image has them.
	if err := goBuild(ctx, filepath.Join(repo, "test/bench/plugins"), dir+"/", "tool"); err != nil {
		return err
	}
	if against == "" {
		return nil
	}
	tree, err := os.MkdirTemp("", "weft-bench-tree-")
	if err != nil {
		return err
	}
	// The worktree is git's to remove, also when the build is interrupted.
	defer func() {
		removed := command(context.WithoutCancel(ctx), repo, "git", "worktree", "remove", "--force", tree)
		err = errors.Join(err, removed)
	}()
	if err := command(ctx, repo, "git", "worktree", "add", "--detach", "--force", tree, against); err != nil {
		return err
	}
	return goBuild(ctx, tree, filepath.Join(dir, againstName), "./cmd/weft-agent")
}

func goBuild(ctx context.Context, dir, output, what string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", output, what)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s in %s: %w\n%s", what, dir, err, out)
	}
	return nil
}
