//go:build integration

package host

import (
	"context"
	"testing"
	"time"
)

func TestWatch(t *testing.T) {
	n := newNode(t)
	n.sync(dualStack())
	events := n.h.Watch(t.Context())
	quiet := func() {
		for {
			select {
			case <-events:
			case <-time.After(100 * time.Millisecond):
				return
			}
		}
	}
	for _, damage := range []string{
		"ip route del 10.244.2.0/24",
		"ip route replace 10.244.3.0/24 via 192.0.2.2",
		"ip addr del 10.244.1.1/24 dev weft0",
		"ip -6 addr del fd00:10:1::1/64 dev weft0",
		"ip link set weft0 mtu 1300",
		"ip link set weft0 down",
		"ip link del weft0",
		"ip link add weft0 type veth peer name switch1",
		"ip link set eth0 mtu 1400",
		"ip addr add 192.0.2.77/24 dev eth0",
	} {
		quiet()
		n.run(damage)
		select {
		case <-events:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: not reported", damage)
		}
	}
	quiet()
	// A pod's interface, and a route of somebody else, do not concern us.
	n.run("ip link add pod1 type veth peer name pod1p && ip link set pod1 up && ip link set pod1p up && ip link del pod1 && ip route add 10.77.0.0/16 via 192.0.2.2")
	select {
	case <-events:
		t.Error("a pod's interface was reported")
	case <-time.After(300 * time.Millisecond):
	}
}

func TestWatchEnds(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	events := n.h.Watch(ctx)
	cancel()
	select {
	case _, open := <-events:
		if open {
			t.Error("an event instead of the end")
		}
	case <-time.After(5 * time.Second):
		t.Error("the channel was not closed")
	}
}
