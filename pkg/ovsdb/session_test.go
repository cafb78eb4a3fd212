package ovsdb

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestAdvice: a socket of another user is told from one at which no one listens.
func TestAdvice(t *testing.T) {
	for errno, want := range map[syscall.Errno]string{
		syscall.EACCES: "add DAC_OVERRIDE", syscall.ENOENT: "is ovsdb-server running?", syscall.ECONNREFUSED: "is ovsdb-server running?",
	} {
		err := fmt.Errorf("failed to connect: %w", &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", errno)})
		if got := advice(err); !strings.Contains(got, want) {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}
