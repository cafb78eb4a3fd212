package sandbox

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
)

const (
	// seizeTimeout bounds how long a holder that was killed may take to let go.
	seizeTimeout = 40 * time.Second
	// releaseTimeout bounds how long a holder that is dead may keep the lock: a child that it was just starting shares its
	// open files until it executes its program.
	releaseTimeout = 10 * time.Second
	lockPoll       = 20 * time.Millisecond
)

// LockFile keeps two programs from working on one thing at a time.
type LockFile struct {
	Path string
	// DirMode is the mode of the file's directory, where it has to be made.
	DirMode fs.FileMode
}

// Lock takes the lock, and notes in the file whose it is. The kernel drops it with its holder and with the children
// that the holder was starting. The error is syscall.EWOULDBLOCK when another process has it.
func (l LockFile) Lock() (unlock func(), err error) {
	for deadline := time.Now().Add(releaseTimeout); ; time.Sleep(lockPoll) {
		unlock, err = l.try()
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
			return unlock, err
		}
		if holder, known := l.holder(); !known || holder.Alive() {
			return nil, err
		}
	}
}

// holder returns the process that the file names: the last one that took the lock and had the time to write.
func (l LockFile) holder() (p Process, known bool) {
	data, err := os.ReadFile(l.Path)
	return p, err == nil && json.Unmarshal(data, &p) == nil
}

func (l LockFile) try() (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(l.Path), l.DirMode); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	file, err := os.OpenFile(l.Path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: another process is at work: %w", l.Path, err)
	}
	self, err := FindProcess(os.Getpid())
	if err == nil {
		err = file.Truncate(0)
	}
	if err == nil {
		err = json.NewEncoder(file).Encode(self)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", l.Path, err)
	}
	return func() { file.Close() }, nil
}

// Seize takes the lock from its holder, by ending that process.
func (l LockFile) Seize(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, seizeTimeout)
	defer cancel()
	for {
		unlock, err = l.try()
		switch {
		case err == nil:
			return unlock, nil
		case errors.Is(err, syscall.EWOULDBLOCK):
			// Not written yet, or gone: look again.
			if holder, known := l.holder(); known {
				if err := holder.Signal(syscall.SIGKILL); err != nil {
					return nil, err
				}
			}
		case !errors.Is(err, fs.ErrNotExist): // as it is when another one removed the directory meanwhile
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%w)", err, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}
