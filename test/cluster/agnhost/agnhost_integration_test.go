//go:build integration

package main

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"
)

// An association begins where a porter listens, and nowhere else.
func TestConnect(t *testing.T) {
	failed := make(chan error, 1)
	go func() { failed <- serve([]uint16{9003}) }()
	for _, host := range []string{"127.0.0.1", "::1"} {
		addr := netip.MustParseAddr(host)
		if err := connect(netip.AddrPortFrom(addr, 9003), 10*time.Second); err != nil {
			t.Errorf("to %s: %v", host, err)
		}
		if err := connect(netip.AddrPortFrom(addr, 9005), 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("to a port of %s where no one listens: %v, want a deadline exceeded", host, err)
		}
	}
	select {
	case err := <-failed:
		t.Error(err)
	default:
	}
}
