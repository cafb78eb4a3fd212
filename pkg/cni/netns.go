package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// checkNetns makes sure that the descriptor which the plugin passed is a network namespace other than the node's.
func checkNetns(f *os.File, path string) error {
	if f == nil {
		return errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %q: the plugin passed no network namespace", path)
	}
	// Only a namespace file knows this request; NS_GET_NSTYPE says which kind it is of.
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %q is not a network namespace", path)
	}
	var pod, node unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &pod); err != nil {
		return fmt.Errorf("stat network namespace %s: %w", path, err)
	}
	if err := unix.Stat("/proc/self/ns/net", &node); err != nil {
		return fmt.Errorf("stat the node's network namespace: %w", err)
	}
	if pod.Dev == node.Dev && pod.Ino == node.Ino {
		return errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %q is the node's own network namespace", path)
	}
	return nil
}

// inNetns runs fn on a thread that is in the given network namespace. A thread that cannot be brought back stays locked
// to the goroutine and ends with it, so no other goroutine ever runs in a pod's namespace.
func inNetns(netns *os.File, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open the node's network namespace: %w", err)
			return
		}
		defer home.Close()
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("enter the pod's network namespace: %w", err)
			return
		}
		err = fn()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("return to the node's network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// sysctls is where /proc/sys can be written. In the agent's container that is a mount of the node's; whoever's it is,
// below net/ a thread finds the settings of its own network namespace.
type sysctls string

// set writes a setting of the calling thread's network namespace.
func (root sysctls) set(path, value string) error {
	return os.WriteFile(filepath.Join(string(root), "net", path), []byte(value), 0o644)
}
