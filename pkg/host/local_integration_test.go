//go:build integration

package host

import (
	"net/netip"
	"slices"
	"testing"
)

// TestLocalAddrs: the addresses of all links count, including IPv4 link-local ones, as they are added and removed.
func TestLocalAddrs(t *testing.T) {
	n := newNode(t)
	addrs := func(list ...string) (out []netip.Addr) {
		for _, text := range list {
			out = append(out, netip.MustParseAddr(text))
		}
		return out
	}
	expect := func(want []netip.Addr) {
		t.Helper()
		slices.SortFunc(want, netip.Addr.Compare)
		if got, err := LocalAddrs(); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
	}
	own := []string{"192.0.2.1", "2001:db8::1"}
	expect(addrs(own...))
	changes := n.h.Watch(t.Context())
	for _, add := range []string{"169.254.20.10/32 dev lo scope link", "198.51.100.1/32 dev lo",
		"fd00:53::10/128 dev lo"} {
		n.run("ip addr add " + add)
		<-changes // the test's deadline ends the wait
	}
	n.run("ip addr add fe80::53/64 dev eth0; ip addr add 127.0.0.2/8 dev lo")
	expect(addrs(append(own, "169.254.20.10", "198.51.100.1", "fd00:53::10")...))
	n.run("ip addr del 169.254.20.10/32 dev lo")
	<-changes
	expect(addrs(append(own, "198.51.100.1", "fd00:53::10")...))
}
