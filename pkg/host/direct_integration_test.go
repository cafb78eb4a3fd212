//go:build integration

package host

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/model"
)

var neighborMAC = model.MAC{2, 0, 0, 0, 0, 0x12}

// directPeer is a neighbor on eth0 with two pod CIDRs.
func directPeer() model.Path {
	hop := func(cidr, local, next string) model.Hop {
		return model.Hop{CIDR: netip.MustParsePrefix(cidr), Local: netip.MustParseAddr(local),
			NextHop: netip.MustParseAddr(next), MAC: neighborMAC}
	}
	return model.Path{
		PodCIDRs: prefixes("10.244.2.0/24", "fd00:10:2::/64"), Addrs: addrs("192.0.2.12", "2001:db8::12"),
		Hops: []model.Hop{hop("10.244.2.0/24", "192.0.2.1", "192.0.2.12"),
			hop("fd00:10:2::/64", "2001:db8::1", "2001:db8::12")},
		ReceivesDirect: true, Routed: model.ModeDirect,
	}
}

// peerRoutes are the routes to pods, without what does not matter.
func (n *node) peerRoutes() string {
	return n.run("(ip route show root 10.244.0.0/16; ip -6 route show root fd00:10::/32) | " +
		"sed 's/ linkdown//; s/ onlink//; s/ proto 87//; s/ pref medium//; s/ metric 1024//; s/ *$//'")
}

// TestDirectRoutes: the pods of a neighbor are reached through the uplink, by one route for each pod CIDR, which a
// change replaces and a deletion brings back. Without the uplink's address they are unreachable, never by another way.
// With FabricRoutes the host adds no route. A foreign route stays.
func TestDirectRoutes(t *testing.T) {
	n := newNode(t)
	d := dualStack()
	n.sync(d)
	overlay := n.peerRoutes()
	d.Peers = []model.Path{directPeer(), peers(nil, "10.244.3.0/24", "fd00:10:3::/64")[0]}
	both := func(v4, v6 string) string {
		return "10.244.1.0/24 dev weft0 scope link src 10.244.1.1\n" + v4 +
			"10.244.3.0/24 via 10.244.3.1 dev weft0 src 10.244.1.1\nfd00:10:1::/64 dev weft0 src fd00:10:1::1\n" + v6 +
			"fd00:10:3::/64 via fd00:10:3::1 dev weft0 src fd00:10:1::1\n"
	}
	want := both("10.244.2.0/24 via 192.0.2.12 dev eth0 src 10.244.1.1\n",
		"fd00:10:2::/64 via 2001:db8::12 dev eth0 src fd00:10:1::1\n")
	expect := func(when, want string) {
		t.Helper()
		if diff := cmp.Diff(want, n.peerRoutes()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	events := n.h.Watch(t.Context())
	changed := n.write(d)
	if !slices.Contains(changed, "route to 10.244.2.0/24 added") {
		t.Errorf("changed %q", changed)
	}
	expect("direct", want)
	chain := n.run("nft list chain inet weft entered")
	for _, rule := range []string{"ether saddr . ip saddr & 255.255.255.0 @neighbors-v4",
		"ether saddr . ip6 saddr & ffff:ffff:ffff:ffff:: @neighbors-v6"} {
		if !strings.Contains(chain, rule) {
			t.Errorf("packets of the neighbor's pods are not accepted by its link and its whole range, %q:\n%s", rule, chain)
		}
	}
	all := append(d.peerPodCIDRs(), d.PodCIDRs...)
	if got, err := NotToSwitch("weft0", all); err != nil || !slices.Equal(got, directPeer().PodCIDRs) {
		t.Errorf("NotToSwitch = %v, %v", got, err)
	}
	if changed := n.sync(d); len(changed) > 0 {
		t.Errorf("then changed %q", changed)
	}

	n.run("ip route del 10.244.2.0/24; ip -6 route del fd00:10:2::/64")
	select {
	case <-events:
	case <-time.After(patience):
		t.Fatal("the deletion was not reported")
	}
	n.write(d)
	expect("repaired", want)

	n.run("ip addr del 192.0.2.1/24 dev eth0")
	done, err := n.h.Sync(t.Context(), d)
	if err != nil || done.Unrouted == nil || !strings.Contains(done.Unrouted.Error(), "no link of this host has address 192.0.2.1") {
		t.Errorf("without the address: %v, unrouted %v", err, done.Unrouted)
	}
	if got := n.peerRoutes(); !strings.Contains(got, "unreachable 10.244.2.0/24\n") {
		t.Errorf("without the address:\n%s", got)
	}
	n.run("ip addr add 192.0.2.1/24 dev eth0")
	n.write(d)
	expect("with the address again", want)

	fabric := directPeer()
	for i := range fabric.Hops {
		fabric.Hops[i].NextHop, fabric.Hops[i].MAC = netip.Addr{}, model.MAC{}
	}
	d.Peers[0] = fabric
	n.write(d)
	expect("routes of the network", both("", ""))

	n.run("ip route add 10.244.2.0/24 via 192.0.2.2 dev eth0")
	d.Peers[0] = directPeer()
	if done, err = n.h.Sync(t.Context(), d); err != nil || done.Unrouted == nil ||
		!strings.Contains(done.Unrouted.Error(), "add route to 10.244.2.0/24 through eth0: a route that is not Weft's") {
		t.Errorf("beside a foreign route: %v, unrouted %v", err, done.Unrouted)
	}
	if got := n.peerRoutes(); !strings.Contains(got, "10.244.2.0/24 via 192.0.2.2 dev eth0\n") {
		t.Errorf("the foreign route was changed:\n%s", got)
	}
	n.run("ip route del 10.244.2.0/24")
	d.Peers = dualStack().Peers
	n.sync(d)
	expect("back to the gateway", overlay)
}

// TestNeighborsChecked: pods' packets are accepted on the uplink from the link of the node that has their pod CIDR, and
// from no other; without a check of links where routers may be between. Drops are counted.
func TestNeighborsChecked(t *testing.T) {
	n := newNode(t)
	n.in(n.out, func() {
		n.run("ip link set lo up; ip link set out0 address 02:00:00:00:00:12 up; ip addr add 192.0.2.12/24 dev out0; " +
			"ip -6 addr add 2001:db8::12/64 dev out0 nodad; ip addr add 10.244.2.5/32 dev lo; " +
			"ip -6 addr add fd00:10:2::5/128 dev lo nodad; ip addr add 10.244.3.5/32 dev lo; " +
			"ip route add 10.244.1.1 via 192.0.2.1; ip -6 route add fd00:10:1::1 via 2001:db8::1")
	})
	d := dualStack()
	other := peers(nil, "10.244.3.0/24", "fd00:10:3::/64")[0]
	d.Peers = []model.Path{directPeer(), other}
	n.sync(d)
	n.in(n.pods, func() { n.run("ip link set switch0 up") })
	reaches := func(from, to string, tries int) bool {
		out := ""
		n.in(n.out, func() {
			out = n.run("ping -i0.2 -W1 -c" + strconv.Itoa(tries) + " -I " + from + " " + to + " >/dev/null && echo yes || echo no")
		})
		return out == "yes\n"
	}
	check := func(when string, want map[string]bool) {
		t.Helper()
		for from, yes := range want {
			to := "10.244.1.1"
			if strings.Contains(from, ":") {
				to = "fd00:10:1::1"
			}
			tries := 1
			if yes {
				tries = 20 // IPv6 may still look for duplicates of addresses
			}
			if reaches(from, to, tries) != yes {
				t.Errorf("%s: %s reaches the node: %v, want %v", when, from, !yes, yes)
			}
		}
	}
	check("the neighbor", map[string]bool{"10.244.2.5": true, "fd00:10:2::5": true, "10.244.3.5": false})
	n.in(n.out, func() { n.run("ip link set out0 address 02:00:00:00:00:13") })
	n.run("ip neigh flush dev eth0")
	check("another link", map[string]bool{"10.244.2.5": false, "fd00:10:2::5": false})
	if out := n.run("nft list chain inet weft entered"); strings.Count(out, "counter packets 0 bytes 0") > 1 ||
		!strings.Contains(out, "counter packets") {
		t.Errorf("drops are not counted:\n%s", out)
	}
	for i := range d.Peers[0].Hops {
		d.Peers[0].Hops[i].MAC, d.Peers[0].Hops[i].NextHop = model.MAC{}, netip.Addr{}
	}
	n.sync(d)
	n.run("ip route add 10.244.2.0/24 via 192.0.2.12; ip -6 route add fd00:10:2::/64 via 2001:db8::12")
	if changed := n.sync(d); len(changed) > 0 {
		t.Errorf("then changed %q", changed)
	}
	check("through routers", map[string]bool{"10.244.2.5": true, "fd00:10:2::5": true, "10.244.3.5": false})
	d.Peers[0].ReceivesDirect = false
	n.sync(d)
	check("not received", map[string]bool{"10.244.2.5": false})
}
