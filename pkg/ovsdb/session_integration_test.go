//go:build integration

package ovsdb_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/ovsdb"
)

// TestServerHangs: a request to a server that does not answer may still take effect. So the caller gets
// ErrDisconnected, and the copy of the database is discarded.
func TestServerHangs(t *testing.T) {
	l := newLab(t)
	l.ensure()
	a := attachment(0)
	l.veth(a.HostIfName)
	l.add(a)
	server := l.ovs.PIDs()[0]
	if err := syscall.Kill(server, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := func() {
		if err := syscall.Kill(server, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	defer resume() // otherwise it could not be ended
	ctx, cancel := context.WithTimeout(l.ctx, time.Second)
	defer cancel()
	if err := l.c.RemovePort(ctx, a.HostIfName); !errors.Is(err, ovsdb.ErrDisconnected) {
		t.Errorf("RemovePort: error %v, want ErrDisconnected", err)
	}
	if err := l.c.Healthy(); !errors.Is(err, ovsdb.ErrDisconnected) {
		t.Errorf("after it: %v, want ErrDisconnected", err)
	}
	resume()
	l.eventually("what was asked for has happened, and the new copy says so", func() bool {
		list, _, err := l.c.Attachments(l.ctx)
		return err == nil && len(list) == 0
	})
	l.wantPorts()
	l.add(a)
}
