package testenv

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideVariable tells a program that Isolate has started it.
const insideVariable = "WEFT_ISOLATED"

// Isolate starts the program again inside new network and mount namespaces, which end with it. It returns there, with
// the loopback interface up, or with what went wrong.
func Isolate() error {
	if os.Getenv(insideVariable) != "" {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find the loopback interface: %w", err)
		}
		return netlink.LinkSetUp(lo)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make namespaces (are you root?): %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), insideVariable+"=1"))
}
