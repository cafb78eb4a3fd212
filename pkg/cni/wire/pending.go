package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A pending deletion is a DEL that weft-cni accepted while no agent listened. It is a file beside the socket, for root
// only; the agent carries it out as soon as it listens. The address is not reused before, because only the agent
// allocates addresses.

// Pending identifies an attachment to be removed.
type Pending struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// maxPending bounds the bytes read of a file.
const maxPending = 4 << 10

func pendingDir(socket string) string { return filepath.Join(filepath.Dir(socket), "deleted") }

// path is unique: CNI does not allow '@' in a container ID.
func (p Pending) path(socket string) string {
	return filepath.Join(pendingDir(socket), p.ContainerID+"@"+p.IfName)
}

// Write records the deletion atomically. Idempotent.
func (p Pending) Write(socket string) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	dir := pendingDir(socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".weft-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), p.path(socket))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// Remove removes the record. Idempotent.
func (p Pending) Remove(socket string) error {
	if err := os.Remove(p.path(socket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ReadPending lists the records. It continues after an invalid file and returns all errors.
func ReadPending(socket string) (list []Pending, err error) {
	files, err := os.ReadDir(pendingDir(socket))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var errs []error
	for _, f := range files {
		path := filepath.Join(pendingDir(socket), f.Name())
		if f.Name()[0] == '.' {
			continue // being written
		}
		var p Pending
		info, err := f.Info()
		if err == nil && info.Size() > maxPending {
			err = fmt.Errorf("%s has %d bytes", path, info.Size())
		}
		var b []byte
		if err == nil {
			b, err = os.ReadFile(path)
		}
		if err == nil {
			err = json.Unmarshal(b, &p)
		}
		if err == nil && p.path(socket) != path {
			err = fmt.Errorf("%s is about container %q interface %q", path, p.ContainerID, p.IfName)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, p)
	}
	return list, errors.Join(errs...)
}

// NotListening reports whether a Call failed because no agent listens, so that the request has certainly not begun. An
// agent with too many connections does listen: a record for the next agent would wait until this one ends.
func NotListening(err error) bool {
	var dial *os.SyscallError
	return errors.As(err, &dial) && dial.Syscall == "connect" && IsUnavailable(err) && !errors.Is(err, syscall.EAGAIN)
}
