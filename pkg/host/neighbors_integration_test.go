//go:build integration

package host

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// TestResolveNeighbors: the kernel resolves an unknown neighbor, and probes a known one, which a restarted switch
// depends on.
func TestResolveNeighbors(t *testing.T) {
	n := newNode(t)
	// The wire must carry nothing but ARP.
	n.run("echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
	n.in(n.out, func() {
		n.run("echo 1 > /proc/sys/net/ipv6/conf/out0/disable_ipv6; ip link set out0 up; ip addr add 192.0.2.2/24 dev out0")
	})
	questions := func() int {
		var count int
		n.in(n.out, func() {
			var err error
			if count, err = strconv.Atoi(strings.TrimSpace(n.run("cat /proc/net/dev | awk '/out0:/ {print $3}'"))); err != nil {
				t.Fatal(err)
			}
		})
		return count
	}
	// The second address is behind the first, so there is one request for both.
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("198.51.100.7")}
	for round := 1; round <= 2; round++ {
		before := questions()
		if err := ResolveNeighbors(addrs); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 5*time.Second, func() error {
			if questions() == before {
				return fmt.Errorf("round %d: the kernel did not ask for 192.0.2.2; it has %s", round, n.run("ip neigh"))
			}
			if !strings.Contains(n.run("ip neigh show 192.0.2.2 nud reachable"), "lladdr") {
				return fmt.Errorf("round %d: no answer; the kernel has %s", round, n.run("ip neigh"))
			}
			return nil
		})
		if got := questions() - before; got != 1 {
			t.Errorf("round %d: %d questions for one neighbour", round, got)
		}
	}
	n.run("ip route del default")
	if err := ResolveNeighbors(addrs); err == nil || !strings.Contains(err.Error(), "198.51.100.7") {
		t.Errorf("an address without a route: error %v", err)
	}
}
