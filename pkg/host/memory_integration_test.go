//go:build integration

package host

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/model"
)

// TestSyncTrustsItsMemory: between comparisons Sync writes only differences and reads nothing; it finds damage when a
// comparison is due or after Watch saw a change.
func TestSyncTrustsItsMemory(t *testing.T) {
	n := newNode(t)
	now := time.Now()
	n.h.now = func() time.Time { return now }
	d := withRoutes()
	n.write(d)
	n.nft.lists = 0
	// The second damage conflicts with a difference to be written, and so is found at once.
	n.run("nft delete element inet weft node-ports-v4 '{ udp . 30053 }'; ip route del 198.51.100.80")

	d.NodePorts = append(slices.Clone(d.NodePorts), NodePort{Protocol: model.TCP, Port: 31000})
	d.ServiceCIDRs = append(slices.Clone(d.ServiceCIDRs), prefixes("198.51.100.90/32")...)
	want := []string{"route to 198.51.100.90/32 added",
		"nftables map node-ports-v4: tcp . 31000 : 169.254.87.1:31000 added"}
	if diff := cmp.Diff(want, n.write(d)); diff != "" || n.nft.lists > 0 {
		t.Errorf("one more Service: %d lists read, changed (-want +got):\n%s", n.nft.lists, diff)
	}
	now = now.Add(compareEvery)
	d.ServiceCIDRs = d.ServiceCIDRs[:len(d.ServiceCIDRs)-1]
	want = []string{"route to 198.51.100.90/32 removed"}
	if diff := cmp.Diff(want, n.write(d)); diff != "" || n.nft.lists > 0 {
		t.Errorf("one less, when it is time but there is something to write: %d lists read, changed (-want +got):\n%s",
			n.nft.lists, diff)
	}
	repaired := []string{"route to 198.51.100.80/32 added",
		"nftables map node-ports-v4: udp . 30053 : 240.87.117.101:30053 added"}
	if diff := cmp.Diff(repaired, n.write(d)); diff != "" {
		t.Errorf("when it is time: changed (-want +got):\n%s", diff)
	}
	n.nft.lists = 0
	if changed := n.write(d); len(changed) > 0 || n.nft.lists > 0 {
		t.Errorf("then changed %q, %d lists read", changed, n.nft.lists)
	}

	n.run("nft delete element inet weft node-ports-v4 '{ udp . 30053 }'; ip route del 198.51.100.80")
	now = now.Add(compareEveryBusy)
	d.NodePorts = d.NodePorts[1:]
	if changed := n.write(d); !slices.Contains(changed, repaired[0]) || !slices.Contains(changed, repaired[1]) {
		t.Errorf("busy for long: changed %q, want the damage repaired", changed)
	}

	events := n.h.Watch(t.Context())
	n.run("ip route del 198.51.100.80")
	select {
	case <-events:
	case <-time.After(patience):
		t.Fatal("the route's removal was not reported")
	}
	n.nft.lists = 0
	if changed := n.write(d); !slices.Equal(changed, repaired[:1]) || n.nft.lists > 0 {
		t.Errorf("after an event: changed %q, want %q; %d lists read of what Watch does not see", changed, repaired[:1],
			n.nft.lists)
	}

	n.run("nft delete table inet weft")
	d.NodePorts = d.NodePorts[1:]
	if changed := n.write(d); !slices.Equal(changed, []string{"nftables table weft written"}) {
		t.Errorf("with the table gone: changed %q", changed)
	}
}

// A recreated link has none of the remembered routes.
func TestMemoryOfAnotherLink(t *testing.T) {
	n := newNode(t)
	n.write(withRoutes())
	right := n.state()
	n.run("ip link del weft0")
	n.gateway()
	n.write(withRoutes())
	if diff := cmp.Diff(right, n.state()); diff != "" {
		t.Errorf("the recreated gateway interface (-want +got):\n%s", diff)
	}
	n.run("ip addr del 10.244.1.1/24 dev weft0")
	n.write(withRoutes())
	if diff := cmp.Diff(right, n.state()); diff != "" {
		t.Errorf("the gateway's address, and with it the routes, removed (-want +got):\n%s", diff)
	}
}

// TestFailureIsTriedAgain: without waiting for a comparison.
func TestFailureIsTriedAgain(t *testing.T) {
	n := newNode(t)
	n.run("ip link set weft0 up; ip route add 169.254.87.1 via 192.0.2.2")
	for range 2 {
		if _, err := n.h.Sync(t.Context(), withRoutes()); err == nil ||
			!strings.Contains(err.Error(), "add route to 169.254.87.1/32 through weft0: a route that is not Weft's exists") {
			t.Fatalf("error %v", err)
		}
	}
	n.run("ip route del 169.254.87.1")
	if changed := n.write(withRoutes()); !slices.Equal(changed, []string{"route to 169.254.87.1/32 added"}) {
		t.Errorf("changed %q", changed)
	}
}

// TestOwnRoutesAreNoNews: a Sync does not cause the next one.
func TestOwnRoutesAreNoNews(t *testing.T) {
	n := newNode(t)
	d := withRoutes()
	n.sync(d)
	events := n.h.Watch(t.Context())
	for {
		select {
		case <-events:
			continue
		case <-time.After(brevity):
		}
		break
	}
	d.ServiceCIDRs = append(slices.Clone(d.ServiceCIDRs), prefixes("198.51.100.90/32", "2001:db8:80::90/128")...)
	d.addPeer("10.244.77.0/24")
	d.ServicePorts = append(slices.Clone(d.ServicePorts), ports("198.51.100.91:80", "[2001:db8:80::91]:80")...)
	n.write(d)
	n.write(withRoutes())
	n.sync(d) // a comparison makes no difference
	select {
	case <-events:
		t.Error("what Sync wrote was reported")
	case <-time.After(brevity):
	}
	for _, damage := range []string{
		"ip route del 198.51.100.90",
		"ip route replace 198.51.100.80 via 10.244.2.1 dev weft0 onlink proto 87",
		"ip route add 198.51.100.80 via 192.0.2.2 metric 50",
		"ip route add 198.51.100.99 via 169.254.87.1 dev weft0 onlink proto 87",
		"ip route del 198.51.100.91 table 22374",
		"ip -6 route del default table 22373",
	} {
		n.run(damage)
		select {
		case <-events:
		case <-time.After(patience):
			t.Errorf("%s: not reported", damage)
		}
	}
}

// TestForeignRouteToService: a foreign route to a Service's address stays, and does not keep other Services from their
// routes.
func TestForeignRouteToService(t *testing.T) {
	for _, tc := range []struct {
		foreign string
		beside  bool // the kernel accepts it beside Weft's because the metric differs
	}{
		{"198.51.100.90 via 192.0.2.2", false},
		{"198.51.100.90 via 192.0.2.2 metric 50", true},
		{"unreachable 198.51.100.90", false},
		{"blackhole 198.51.100.90 metric 50", true},
		{"2001:db8:80::90 via 2001:db8::2", false},
		{"unreachable 2001:db8:80::90 metric 4096", true},
	} {
		foreign := tc.foreign
		t.Run(strings.ReplaceAll(foreign, "/", "-"), func(t *testing.T) {
			n := newNode(t)
			n.run("ip link set weft0 up")
			n.write(withRoutes())
			n.run("ip route add " + foreign)
			const others = "ip route show proto boot; ip -6 route show proto boot"
			want := n.run(others)
			d := withRoutes()
			d.ServiceCIDRs = append(slices.Clone(d.ServiceCIDRs),
				prefixes("198.51.100.90/32", "198.51.100.91/32", "2001:db8:80::90/128", "2001:db8:80::91/128")...)
			for range 2 {
				done, err := n.h.Sync(t.Context(), d)
				if err != nil {
					t.Fatal(err)
				}
				if done.Unrouted == nil || strings.Count(done.Unrouted.Error(), "a route that is not Weft's exists") != 1 {
					t.Errorf("unrouted: %v", done.Unrouted)
				}
			}
			if got := n.run(others); got != want {
				t.Errorf("others' routes are %q, were %q", got, want)
			}
			all := n.run("ip route show proto 87; ip -6 route show proto 87")
			if strings.Count(all, "198.51.100.9")+strings.Count(all, "2001:db8:80::9") != 3 {
				t.Errorf("want three of four routes:\n%s", all)
			}
			n.run("ip route del " + foreign)
			n.sync(d)
			// Now Weft's route was first. Whether the kernel accepts the other one or not, only Weft's is removed.
			said := n.run("ip route add " + foreign + " 2>&1 || test $? = 2")
			if tc.beside && said != "" || !tc.beside && said != "RTNETLINK answers: File exists\n" {
				t.Errorf("ip route add %s, beside ours: %q; want it taken: %t", foreign, said, tc.beside)
			}
			want = n.run(others)
			n.write(withRoutes())
			if got := n.run(others); got != want {
				t.Errorf("with ours removed, others' routes are %q, were %q", got, want)
			}
			if all := n.run("ip route show proto 87; ip -6 route show proto 87"); strings.Contains(all, "198.51.100.9") ||
				strings.Contains(all, "2001:db8:80::9") {
				t.Errorf("routes are left:\n%s", all)
			}
		})
	}
}

// withRoutes is withServices with Service ranges of one address each.
func withRoutes() Desired {
	d := withServices()
	d.ServiceCIDRs = append(d.ServiceCIDRs, prefixes("198.51.100.80/32", "2001:db8:80::1/128")...)
	return d
}
