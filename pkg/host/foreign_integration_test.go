//go:build integration

package host

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A foreign route to exactly a pod CIDR is neither replaced nor, later, missed.
func TestForeignRouteToPodCIDRStays(t *testing.T) {
	for _, tc := range []struct{ add, show, cidr string }{
		{"ip route add 10.244.2.0/24 via 192.0.2.2", "ip route show 10.244.2.0/24", "10.244.2.0/24"},
		{"ip route add 10.244.2.0/24 via 192.0.2.2 metric 100", "ip route show 10.244.2.0/24", "10.244.2.0/24"},
		{"ip route add unreachable 10.244.2.0/24", "ip route show 10.244.2.0/24", "10.244.2.0/24"},
		{"ip addr add 10.244.2.9/24 dev weft0; ip link set weft0 up", "ip route show 10.244.2.0/24", "10.244.2.0/24"},
		{"ip -6 route add fd00:10:2::/64 via 2001:db8::2", "ip -6 route show fd00:10:2::/64", "fd00:10:2::/64"},
		{"", "ip route show default", "0.0.0.0/0"},
		{"", "ip route show 192.0.2.0/24", "192.0.2.0/24"}, // the underlay's connected route
	} {
		t.Run(tc.cidr+strings.ReplaceAll(tc.add, "/", "-"), func(t *testing.T) {
			n := newNode(t)
			if tc.add != "" {
				n.run(tc.add)
			}
			want := n.run(tc.show)
			d := dualStack()
			if !slices.Contains(d.peerPodCIDRs(), prefixes(tc.cidr)[0]) {
				d.addPeer(tc.cidr)
			}
			for range 2 {
				done, err := n.h.Sync(t.Context(), d)
				if err != nil {
					t.Fatal(err)
				}
				if done.Unrouted == nil ||
					!strings.Contains(done.Unrouted.Error(),
						"add route to "+tc.cidr+" through weft0: a route that is not Weft's exists") {
					t.Errorf("unrouted: %v", done.Unrouted)
				}
				if got := n.run(tc.show); got != want {
					t.Errorf("the route is %q, was %q", got, want)
				}
			}
			for _, other := range []string{"10.244.1.0/24 dev weft0", "10.244.3.0/24 via 10.244.3.1 dev weft0"} {
				if all := n.run("ip route show"); !strings.Contains(all, other) {
					t.Errorf("lacks %q:\n%s", other, all)
				}
			}
			d.Peers = nil
			n.sync(d)
			if got := n.run(tc.show); got != want {
				t.Errorf("after the object is gone the route is %q, was %q", got, want)
			}
		})
	}
}

// A foreign route to the node's own range is an error: without its own route the node cannot work.
func TestForeignRouteToOwnPodCIDR(t *testing.T) {
	for _, foreign := range []string{
		"10.244.1.0/24 via 192.0.2.2",
		"10.244.1.0/24 dev eth0 proto kernel", // the connected route of another link
		"10.244.1.0/24 dev weft0 proto static",
	} {
		n := newNode(t)
		n.run("ip link set weft0 up; ip route add " + foreign)
		want := n.run("ip route show 10.244.1.0/24")
		done, err := n.h.Sync(t.Context(), dualStack())
		if err == nil ||
			!strings.Contains(err.Error(), "add route to 10.244.1.0/24 through weft0: a route that is not Weft's exists") {
			t.Errorf("%s: error %v", foreign, err)
		}
		if got := n.run("ip route show 10.244.1.0/24"); got != want {
			t.Errorf("%s: the route is %q, was %q", foreign, got, want)
		}
		if done.Unrouted != nil || !strings.Contains(n.run("ip -6 route show"), "fd00:10:2::/64 via fd00:10:2::1 dev weft0") {
			t.Errorf("%s: other routes are not made: %v", foreign, done.Unrouted)
		}
		n.run("ip route del " + foreign)
		n.sync(dualStack())
	}
}

// A route that the kernel rejects does not keep others from being added or removed.
func TestOneBadRoute(t *testing.T) {
	n := newNode(t)
	d := dualStack()
	d.addPeer("10.244.4.0/24")
	n.sync(d)
	d.Peers = peers(nil, "224.0.9.0/24", "10.244.2.0/24", "10.244.3.0/24", "10.244.5.0/24", "224.0.8.0/24",
		"fd00:10:2::/64", "fd00:10:3::/64")
	done, err := n.h.Sync(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	want := "add route to 224.0.9.0/24 through weft0: invalid argument\nadd route to 224.0.8.0/24 through weft0: " +
		"invalid argument"
	if done.Unrouted == nil || done.Unrouted.Error() != want {
		t.Errorf("unrouted: %v, want %s", done.Unrouted, want)
	}
	got := slices.DeleteFunc(done.Changed, func(s string) bool { return !strings.HasPrefix(s, "route") })
	if diff := cmp.Diff([]string{"route to 10.244.5.0/24 added", "route to 10.244.4.0/24 removed"}, got); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}
