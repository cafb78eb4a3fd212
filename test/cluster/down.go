package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/weft-cni/weft/test/lab/sandbox"
)

// contents are all the names that the tool makes in a state directory; state.json goes last, so that an interrupted
// removal is seen and finished.
var contents = []string{"bin", "dns.yaml", "etcd", "images", "kubeconfig", "logs", "nodes", "pki", "weft.yaml",
	"state.json.new", "state.json"}

const lockFile = "lock"

// down removes a cluster, whatever state it is in.
func down(ctx context.Context, p *progress, group sandbox.Group, dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("removing a cluster needs root")
	}
	return p.step("Remove the cluster", func(func(string)) error {
		// An `up` that is still at work there is ended.
		unlock, err := lockOf(dir).Seize(ctx)
		if err != nil {
			return fmt.Errorf("remove the cluster: %w", err)
		}
		defer unlock()
		if err := remove(ctx, group, dir); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(dir, lockFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the state directory: %w", err)
		}
		// The directory itself goes too unless it has other files.
		err = os.Remove(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			return fmt.Errorf("remove the state directory: %w", err)
		}
		return nil
	})
}

// remove ends all processes of the cluster, with all that they held open, and deletes its files.
func remove(ctx context.Context, group sandbox.Group, dir string) error {
	if err := group.Destroy(ctx); err != nil {
		return err
	}
	for _, name := range contents {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove the cluster's files: %w", err)
		}
	}
	return nil
}

func stateExists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "state.json"))
	return err == nil
}

// lockOf makes sure that one `up` at a time works in a state directory.
func lockOf(dir string) sandbox.LockFile {
	return sandbox.LockFile{Path: filepath.Join(dir, lockFile), DirMode: 0o755}
}
