// Package netthread runs functions on threads in other network namespaces.
//
// It keeps no state. Each call uses a goroutine with its own thread until it returns.
package netthread

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs fn on a thread that enter has moved into another network namespace, moves the thread back, and returns their
// errors. A thread that cannot be moved back stays locked to its goroutine and ends with it, so no other goroutine ever
// runs in the wrong namespace. Sockets that fn opens stay in the other namespace. When enter fails, fn does not run.
func Do(enter, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open the own network namespace: %w", err)
			return
		}
		defer home.Close()
		if err := enter(); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("enter another network namespace: %w", err)
			return
		}
		err = fn()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("return to the own network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}
