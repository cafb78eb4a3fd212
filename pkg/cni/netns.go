package cni

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/netthread"
)

// checkNetns rejects a descriptor that is not a network namespace, or is the node's own.
func checkNetns(f *os.File, path string) error {
	if f == nil {
		return errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %q: the plugin passed no network namespace", path)
	}
	// Only namespace files support this ioctl; NS_GET_NSTYPE returns the type.
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

// inNetns runs fn on a thread in the pod's network namespace.
func inNetns(netns *os.File, fn func() error) error {
	enter := func() error {
		return os.NewSyscallError("setns", unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET))
	}
	return netthread.Do(enter, fn)
}

// sysctls is a writable mount of /proc/sys. In the agent's container it is the node's; below net/, every thread sees
// the sysctls of its own network namespace in any mount.
type sysctls string

// set writes a sysctl of the calling thread's network namespace.
func (root sysctls) set(path, value string) error {
	return os.WriteFile(filepath.Join(string(root), "net", path), []byte(value), 0o644)
}
