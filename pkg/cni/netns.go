package cni

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netthread"
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

// inNetns runs fn on a thread that is in the pod's network namespace.
func inNetns(netns *os.File, fn func() error) error {
	return netthread.Do(func() error { return os.NewSyscallError("setns", unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET)) }, fn)
}

// sysctls is where /proc/sys can be written. In the agent's container that is a mount of the node's; whoever's it is,
// below net/ a thread finds the settings of its own network namespace.
type sysctls string

// set writes a setting of the calling thread's network namespace.
func (root sysctls) set(path, value string) error {
	return os.WriteFile(filepath.Join(string(root), "net", path), []byte(value), 0o644)
}
