//go:build integration

package ovsdb_test

import (
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// TestOwnPortsAreNoChange: pods that are added and removed cause no repair of the bridge; ports that other programs
// remove do.
func TestOwnPortsAreNoChange(t *testing.T) {
	l := newLab(t)
	l.ensure()
	a, b, c := attachment(0), attachment(1), attachment(2)
	for _, att := range []model.Attachment{a, b, c} {
		l.veth(att.HostIfName)
	}
	l.eventually("the switch is watched", func() bool { return l.c.Healthy() == nil })
	l.add(a)
	l.drain()
	l.add(b)
	if err := l.c.RemovePort(l.ctx, b.HostIfName); err != nil {
		t.Fatal(err)
	}
	l.add(c) // events are ordered, so the others have been handled
	select {
	case <-l.c.Changes():
		t.Error("our own ports were reported as a change")
	default:
	}
	l.vsctl("del-port", model.BridgeName, a.HostIfName)
	l.awaitChange("a pod's port was deleted")
}
