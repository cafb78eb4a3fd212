// Package podns makes the network namespaces of the lab's pods and works in them: a responder on every port, and
// probes.
//
// A Namespace lives as long as its file is open, or as a process is in it; it is bound to no path. So when the process
// that holds it ends, however it ends, the kernel takes the namespace and its links away. A Namespace may be used from
// any goroutine; what runs in it runs on a thread of its own meanwhile.
package podns

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netthread"
)

// Namespace is one pod's network namespace.
type Namespace struct{ file *os.File }

// New makes a namespace with its loopback up.
func New() (Namespace, error) {
	var file *os.File
	unshare := func() error { return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET)) }
	if err := netthread.Do(unshare, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
		file, err = os.Open("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		return Namespace{}, fmt.Errorf("make a network namespace: %w", err)
	}
	return Namespace{file}, nil
}

// Open opens the namespace at a path, for example that of a process: /proc/1/ns/net.
func Open(path string) (Namespace, error) {
	file, err := os.Open(path)
	if err != nil {
		return Namespace{}, fmt.Errorf("open network namespace: %w", err)
	}
	return Namespace{file}, nil
}

// File is the namespace's file, for a CNI request.
func (n Namespace) File() *os.File { return n.file }

// Path is where other processes of this machine find the namespace while this one holds it.
func (n Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Close lets go of the namespace.
func (n Namespace) Close() error { return n.file.Close() }

// Do runs fn on a thread that is in the namespace. Sockets that fn opens stay there. The error is os.ErrClosed when the
// namespace has been closed.
func (n Namespace) Do(fn func() error) error {
	return netthread.Do(func() error {
		// Control keeps the descriptor from being closed, and its number from being another file's, meanwhile.
		raw, err := n.file.SyscallConn()
		if err != nil {
			return err
		}
		var failed error
		if raw.Control(func(fd uintptr) {
			failed = os.NewSyscallError("setns", unix.Setns(int(fd), unix.CLONE_NEWNET))
		}) != nil {
			return os.ErrClosed
		}
		return failed
	}, fn)
}
