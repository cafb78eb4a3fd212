package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/weft-cni/weft/pkg/lab/sandbox"
)

// contents are all the names that the tool makes in a state directory; state.json goes last, so that an interrupted removal
// is seen and finished.
var contents = []string{"bin", "etcd", "images", "kubeconfig", "logs", "nodes", "pki", "weft.yaml", "state.json.new", "state.json"}

const (
	lockFile    = "lock"
	lockTimeout = 10 * time.Second
)

// down removes a cluster, whatever state it is in.
func down(ctx context.Context, p *progress, group sandbox.Group, dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("removing a cluster needs root")
	}
	return p.step("Remove the cluster", func(func(string)) error {
		unlock, err := takeLock(ctx, dir)
		if err != nil {
			return err
		}
		defer unlock()
		if err := remove(ctx, group, dir); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(dir, lockFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the state directory: %w", err)
		}
		// The directory itself goes too unless somebody else keeps something there.
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

// lock makes sure that one `up` at a time works in a state directory, and notes in the lock file whose it is. The kernel drops
// the lock with its holder.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock the state directory: another `up` is at work in %s: %w", dir, err)
	}
	self, err := sandbox.FindProcess(os.Getpid())
	if err == nil {
		err = file.Truncate(0)
	}
	if err == nil {
		err = json.NewEncoder(file).Encode(self)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	return func() { file.Close() }, nil
}

// takeLock locks the state directory for `down`, and ends an `up` that is still at work there.
func takeLock(ctx context.Context, dir string) (unlock func(), err error) {
	err = poll(ctx, lockTimeout, func(context.Context) error {
		var err error
		if unlock, err = lock(dir); !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		data, readErr := os.ReadFile(filepath.Join(dir, lockFile))
		if readErr != nil {
			return readErr
		}
		var holder sandbox.Process
		if jsonErr := json.Unmarshal(data, &holder); jsonErr != nil {
			return jsonErr // not written yet
		}
		return errors.Join(err, holder.Signal(syscall.SIGKILL))
	})
	return unlock, err
}
