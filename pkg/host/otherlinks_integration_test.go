//go:build integration

package host

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRoutesThroughOtherLinks: remote pods are reached through an uplink or another device, and packets for them never
// leave in another way while that does not exist.
func TestRoutesThroughOtherLinks(t *testing.T) {
	n := newNode(t)
	d := dualStack()
	n.sync(d)
	d.Links = []Link{
		{Name: "eth0", Routes: []Route{{Dst: prefixes("10.244.2.0/24")[0], Via: addrs("192.0.2.12")[0]},
			{Dst: prefixes("fd00:10:2::/64")[0], Via: addrs("2001:db8::12")[0]}}},
		{Name: "secret0", Routes: []Route{{Dst: prefixes("10.244.3.0/24")[0]}}},
	}
	done, err := n.h.Sync(t.Context(), d)
	if err != nil || done.Unrouted == nil || !strings.Contains(done.Unrouted.Error(), "find link secret0") {
		t.Errorf("without the device: %v, unrouted %v", err, done.Unrouted)
	}
	routes := func() string {
		return n.run("(ip route show proto 87 root 10.244.0.0/16; ip -6 route show proto 87 root fd00:10::/32) | " +
			"sed 's/ linkdown//; s/ onlink//; s/ pref medium//; s/ metric 1024//; s/ *$//'")
	}
	const toPods = "10.244.1.0/24 dev weft0 scope link src 10.244.1.1\n" +
		"10.244.2.0/24 via 192.0.2.12 dev eth0 src 10.244.1.1\n"
	const toPodsV6 = "fd00:10:1::/64 dev weft0 src fd00:10:1::1\n" +
		"fd00:10:2::/64 via 2001:db8::12 dev eth0 src fd00:10:1::1\n" +
		"fd00:10:3::/64 via fd00:10:3::1 dev weft0 src fd00:10:1::1\n"
	if diff := cmp.Diff(toPods+"unreachable 10.244.3.0/24\n"+toPodsV6, routes()); diff != "" {
		t.Errorf("without the device (-want +got):\n%s", diff)
	}

	events := n.h.Watch(t.Context())
	n.run("ip link add secret0 type veth peer name secret1; ip link set secret0 up")
	select {
	case <-events:
	case <-time.After(patience):
		t.Fatal("the device was not reported")
	}
	n.write(d)
	right := routes()
	if diff := cmp.Diff(toPods+"10.244.3.0/24 dev secret0 scope link src 10.244.1.1\n"+toPodsV6, right); diff != "" {
		t.Errorf("with the device (-want +got):\n%s", diff)
	}
	if changed := n.sync(d); len(changed) > 0 {
		t.Errorf("then changed %q", changed)
	}
	if out := n.run("ip -o addr show dev secret0 scope global; ip -o link show eth0"); !strings.Contains(out,
		"mtu 1500") ||
		strings.Contains(out, "10.244") {
		t.Errorf("other links were changed: %s", out)
	}
	n.run("ip link del secret0")
	n.h.compared = time.Now().Add(-time.Hour)
	if _, err := n.h.Sync(t.Context(), d); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(toPods+"unreachable 10.244.3.0/24\n"+toPodsV6, routes()); diff != "" {
		t.Errorf("with the device removed (-want +got):\n%s", diff)
	}

	want := []string{"route to 10.244.2.0/24 added", "route to 10.244.3.0/24 added", "route to fd00:10:2::/64 added"}
	changed := n.write(dualStack())
	slices.Sort(changed)
	if diff := cmp.Diff(want, changed); diff != "" {
		t.Errorf("back to the gateway (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(strings.ReplaceAll(right, "secret0", "weft0"), routes()); diff == "" {
		t.Error("the routes stay")
	}
}
