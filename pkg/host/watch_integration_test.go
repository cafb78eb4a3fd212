//go:build integration

package host

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/model"
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
		"echo 0 > /proc/sys/net/ipv4/ip_forward",
		"echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
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
	// A pod's interface and a foreign route are not relevant.
	n.run("ip link add pod1 type veth peer name pod1p && ip link set pod1 up && ip link set pod1p up && ip link del " +
		"pod1 && ip route add 10.77.0.0/16 via 192.0.2.2; nft add table inet theirs; nft add table ip weft")
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

// TestWatchTable: another program's change of Weft's nftables table is reported at once and repaired within two seconds
// by a Sync that would trust its memory otherwise. A Sync's own writes are not reported, so repairs cause no loop.
func TestWatchTable(t *testing.T) {
	n := newNode(t)
	d := withServices()
	n.sync(d)
	events := n.h.Watch(t.Context())
	none := func(what string) {
		t.Helper()
		select {
		case <-events:
			t.Errorf("%s: reported", what)
		case <-time.After(brevity):
		}
	}
	n.write(d)
	none("nothing")
	more := d
	more.NodePorts = append(slices.Clone(d.NodePorts), NodePort{Protocol: model.TCP, Port: 30081})
	if len(n.write(more)) == 0 {
		t.Fatal("a node port changed nothing")
	}
	none("our own element")
	n.write(d)
	more.PodCIDRs = prefixes("10.244.9.0/24", "fd00:10:9::/64")
	n.sync(more)
	n.sync(d)
	for range 2 { // addresses and routes changed; there are no events of the table
		select {
		case <-events:
			n.write(d)
		case <-time.After(brevity):
		}
	}
	none("our own table")
	right := n.state()
	rule := "$(nft -a list chain inet weft arrived | sed -n 's/.*forged: .*# handle //p' | head -1)"
	for _, damage := range []string{
		"nft flush ruleset",
		"nft delete table inet weft",
		"nft flush chain inet weft from-pod-links",
		"nft 'add table inet weft { flags dormant; }'",
		"nft replace rule inet weft arrived handle " + rule +
			` counter comment "$(nft list chain inet weft arrived | sed -n 's/.*comment \("forged: .*\)/\1/p' | head -1)"`,
		"nft 'chain inet weft arrived { policy drop; }'",
		"nft delete element inet weft node-ports-v4 '{ tcp . 30080 }'",
		"nft add element inet weft pods-v4 '{ 203.0.113.0/24 }'",
		"nft insert rule inet weft entered accept",
	} {
		n.run(damage)
		began := time.Now()
		select {
		case <-events:
		case <-time.After(patience):
			t.Errorf("%s: not reported", damage)
			continue
		}
		if len(n.write(d)) == 0 {
			t.Errorf("%s: not noticed", damage)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: repaired after %s", damage, took)
		} else {
			t.Logf("%s: repaired after %s", damage, took)
		}
		if diff := cmp.Diff(right, n.state()); diff != "" {
			t.Errorf("%s: not repaired (-want +got):\n%s", damage, diff)
		}
		none(damage + ", then our own repair")
	}
	restarted := New(n.nft, "/proc/sys", n.h.log)
	n.run("nft replace rule inet weft arrived handle " + rule +
		` counter comment "$(nft list chain inet weft arrived | sed -n 's/.*comment \("forged: .*\)/\1/p' | head -1)"`)
	if done, err := restarted.Sync(t.Context(), d); err != nil || len(done.Changed) == 0 {
		t.Errorf("a rule replaced under its comment while no agent runs: changed %q, %v", done.Changed, err)
	}
}
