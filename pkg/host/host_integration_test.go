//go:build integration

package host

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/model"
)

func TestFromNothing(t *testing.T) {
	n := newNode(t)
	d := withServices()
	t.Logf("%q", n.sync(d))
	got := strings.Join(n.state(), "\n")
	for _, want := range []string{
		"mtu 1450",
		"link/ether " + model.GatewayMAC.String(),
		"inet 10.244.1.1/24 brd 10.244.1.255 scope global noprefixroute weft0",
		"inet6 fd00:10:1::1/64 scope global nodad noprefixroute",
		"10.244.1.0/24 dev weft0 proto 87 scope link src 10.244.1.1",
		"10.244.2.0/24 via 10.244.2.1 dev weft0 proto 87 src 10.244.1.1 onlink",
		"10.244.3.0/24 via 10.244.3.1 dev weft0 proto 87 src 10.244.1.1 onlink",
		"fd00:10:1::/64 dev weft0 proto 87 src fd00:10:1::1 metric 1024",
		"10.96.0.0/16 via 169.254.87.1 dev weft0 proto 87 src 10.244.1.1 onlink",
		"169.254.87.1 dev weft0 proto 87 scope link src 10.244.1.1",
		"169.254.87.2 dev weft0 proto 87 scope link src 10.244.1.1",
		"unreachable 169.254.87.3 proto 87",
		"default via 169.254.87.1 dev weft0 proto 87 src 10.244.1.1 onlink",
		"870:	from all fwmark 0x1000/0x1000 lookup 22373 proto 87",
		"32900:	from all lookup 22374 proto 87",
		"198.51.100.80 via 169.254.87.1 dev weft0 proto 87 src 10.244.1.1 onlink",
		"2001:db8:80::1 via fd57:6566:7400::1 dev weft0 proto 87 src fd00:10:1::1 metric 1024 onlink",
		"fd00:96::/112 via fd57:6566:7400::1 dev weft0 proto 87 src fd00:10:1::1 metric 1024 onlink",
		"fd57:6566:7400::1 dev weft0 proto 87 src fd00:10:1::1 metric 1024",
		"fd57:6566:7400::2 dev weft0 proto 87 src fd00:10:1::1 metric 1024",
		"unreachable fd57:6566:7400::3 dev lo proto 87",
		"default via fd57:6566:7400::1 dev weft0 proto 87 src fd00:10:1::1 metric 1024 onlink",
		"240.87.0.0/16 via 169.254.87.1 dev weft0 proto 87 src 10.244.1.1 onlink",
		"fd57:6566:7400:1::/112 via fd57:6566:7400::1 dev weft0 proto 87 src fd00:10:1::1 metric 1024 onlink",
		"udp . 30053 : 240.87.117.101 . 30053",
		"sctp . 30100 : fd57:6566:7400::1 . 30100",
		"198.51.100.80 . tcp . 80 : 169.254.87.1 . 30080",
		"type nat hook prerouting priority dstnat",
		"fd00:10:2::/64 via fd00:10:2::1 dev weft0 proto 87 src fd00:10:1::1 metric 1024 onlink",
		"elements = { 10.244.1.0/24, 10.244.2.0/24,\n\t\t\t     10.244.3.0/24, 192.168.0.0/16,\n\t\t\t     198.51.100.7 }",
		"elements = { fd00:10:1::/64,\n\t\t\t     fd00:10:2::/64,\n\t\t\t     fd00:10:3::/64 }",
		"type nat hook postrouting priority srcnat",
		"\n1\n1\n0",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
	if tentative := n.run("ip -6 addr show dev weft0 tentative"); strings.Contains(tentative, "fd00") {
		t.Errorf("the gateway address has to wait for duplicate address detection: %s", tentative)
	}
}

// When nothing differs, Sync writes no route, address, link or nftables element; not even the first Sync after a
// restart.
func TestSecondSyncIsSilent(t *testing.T) {
	n := newNode(t)
	n.sync(withServices())
	handles := n.run("nft -a list ruleset")
	n.nft.runs = 0
	sub, err := subscribe()
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan []string)
	go func() {
		var seen []string
		for {
			select {
			case e := <-sub.links:
				if strings.HasPrefix(e.Attrs().Name, "marker") {
					events <- seen
					return
				}
				seen = append(seen, "link "+e.Attrs().Name)
			case e := <-sub.addrs:
				seen = append(seen, "address "+e.LinkAddress.String())
			case m := <-sub.settings:
				if settingRelevant(m, n.h.gatewayIndex()) {
					seen = append(seen, fmt.Sprintf("setting %#x", m.Header.Type))
				}
			case m := <-sub.tables:
				seen = append(seen, fmt.Sprintf("nftables %#x", m.Header.Type))
			case e := <-sub.routes:
				seen = append(seen, "route "+e.Route.String())
			}
		}
	}()
	if changed := n.sync(withServices()); len(changed) > 0 {
		t.Errorf("second Sync changed %q", changed)
	}
	restarted := New(n.nft, "/proc/sys", slog.New(slog.DiscardHandler))
	if done, err := restarted.Sync(t.Context(), withServices()); err != nil || done.Unrouted != nil ||
		len(done.Changed) > 0 {
		t.Errorf("Sync of a restarted agent changed %q, %v, %v", done.Changed, done.Unrouted, err)
	}
	n.run("ip link add marker type veth peer name marker1")
	if seen := <-events; len(seen) > 0 {
		t.Errorf("Sync caused netlink events: %q", seen)
	}
	_ = sub.end() // always an error, because the sockets are closed
	if n.nft.runs > 0 {
		t.Errorf("Sync ran %d nftables transactions", n.nft.runs)
	}
	if now := n.run("nft -a list ruleset"); now != handles {
		t.Errorf("nftables (-want +got):\n%s", cmp.Diff(handles, now))
	}
}

func TestRepair(t *testing.T) {
	n := newNode(t)
	n.sync(withServices())
	right := n.state()
	rule := `nft -a list chain inet weft postrouting | sed -n 's/.*pods to the world.*# handle //p' | head -1`
	// Another rule with the comment of Weft's.
	sameComment := `nft replace rule inet weft postrouting handle $(` + rule +
		`) counter comment "$(nft list chain inet weft postrouting | sed -n 's/.*comment \("pods to the world: .*\)/\1/p' | head -1)"`
	for _, damage := range []string{
		"ip link set weft0 down",
		"ip link set weft0 mtu 1300",
		"ip link set weft0 down && ip link set weft0 address 02:00:00:00:00:01 && ip link set weft0 up",
		"ip addr del 10.244.1.1/24 dev weft0",
		"ip -6 addr del fd00:10:1::1/64 dev weft0",
		"ip addr flush dev weft0",
		"ip addr del 10.244.1.1/24 dev weft0 && ip addr add 10.244.1.1/24 dev weft0", // with the kernel's own route
		"ip addr del 10.244.1.1/24 dev weft0 && ip addr add 10.244.1.1/16 dev weft0",
		"ip addr add 10.88.0.1/24 dev weft0", // of an earlier pod CIDR of the node
		"ip route del 10.244.1.0/24",
		"ip route del 10.244.2.0/24",
		"ip -6 route del fd00:10:2::/64",
		"ip -6 route del fd00:10:1::/64",
		"ip route replace 10.244.1.0/24 dev weft0 proto kernel scope link src 10.244.1.1",
		"ip route replace 10.244.2.0/24 via 10.244.3.1 dev weft0 onlink proto 87 src 10.244.1.1",
		"ip route change 10.244.2.0/24 via 10.244.2.1 dev weft0 onlink proto 87",
		"ip route append 10.244.2.0/24 via 10.244.3.1 dev weft0 onlink proto 87 src 10.244.1.1",
		"ip route prepend 10.244.2.0/24 via 10.244.3.1 dev weft0 onlink proto 87 src 10.244.1.1",
		"ip -6 route append fd00:10:2::/64 via fd00:10:3::1 dev weft0 onlink proto 87 metric 1024",
		"ip route add 10.99.0.0/24 dev weft0 proto 87", // of a deleted node
		"ip route add 10.244.2.0/24 dev weft0 proto 87 metric 50",
		"ip route add unreachable 10.98.0.0/24 proto 87",
		"ip -6 route add fd00:99::/64 dev weft0 proto 87",
		"ip route del 169.254.87.1",
		"ip route flush table 22373",
		"ip route flush table 22374; ip rule del table 22374",
		"ip route add 198.51.100.99 via 169.254.87.1 dev weft0 onlink proto 87 table 22374",
		"ip -6 route replace default via fd00:10:2::1 dev weft0 onlink proto 87 table 22373",
		"ip route add 192.0.2.0/24 dev weft0 proto 87 table 22373",
		"ip rule del fwmark 0x1000/0x1000 table 22373; ip -6 rule del fwmark 0x1000/0x1000 table 22373",
		"ip rule add fwmark 0x1000 table 22373 priority 900 protocol 87",
		"echo 1 > /proc/sys/net/ipv4/conf/weft0/rp_filter",
		"ip route del 169.254.87.2",
		"ip route del 240.87.0.0/16; ip -6 route del fd57:6566:7400:1::/112",
		"ip route del unreachable 169.254.87.3",
		"ip -6 route del fd57:6566:7400::1",
		"ip -6 route del unreachable fd57:6566:7400::3",
		"ip route replace 169.254.87.3 dev weft0 proto 87",
		"ip route del 10.96.0.0/16",
		"ip route add 198.51.100.81 via 169.254.87.1 dev weft0 onlink proto 87", // of a deleted Service
		// as agents before November 2026 added them
		"ip route add 198.51.100.80 via 169.254.87.1 dev weft0 onlink proto 87",
		"echo 0 > /proc/sys/net/ipv4/ip_forward",
		"echo 64 > /proc/sys/net/ipv4/ipfrag_max_dist",
		"echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
		"echo 1 > /proc/sys/net/ipv6/conf/weft0/accept_dad",
		"echo 1 > /proc/sys/net/ipv6/conf/weft0/disable_ipv6",
		"ip -6 addr flush dev weft0 scope link",
		"nft delete table inet weft",
		"nft flush ruleset",
		"nft flush chain inet weft postrouting",
		"nft flush chain inet weft postrouting && nft delete chain inet weft postrouting",
		"nft flush chain inet weft postrouting && nft flush chain inet weft arrived && nft delete set inet weft direct-v4",
		"nft delete rule inet weft postrouting handle $(" + rule + ")",
		"nft insert rule inet weft postrouting masquerade",
		"nft flush chain inet weft prerouting",
		"nft flush chain inet weft services",
		"nft flush chain inet weft arrived",
		"nft flush map inet weft node-ports-v4",
		"nft delete element inet weft node-ports-v6 '{ sctp . 30100 }'",
		"nft add element inet weft node-ports-v4 '{ tcp . 22 : 169.254.87.1 . 22 }'",
		"nft add element inet weft node-ports-v4 '{ icmp . 8 : 169.254.87.1 . 8 }'",
		"nft delete element inet weft external-v4 '{ 198.51.100.80 . tcp . 80 }'",
		"nft delete element inet weft external-v4 '{ 198.51.100.80 . tcp . 80 }' && nft add element inet weft external-v4 " +
			"'{ 198.51.100.80 . tcp . 80 : 10.96.0.10 . 80 }'",
		"nft add element inet weft external-v6 '{ 2001:db8::7 . udp . 53 : fd57:6566:7400::1 . 53 }'",
		`nft replace rule inet weft postrouting handle $(` + rule + `) counter comment '"pods to the world"'`,
		"nft flush set inet weft direct-v4",
		"nft 'add table inet weft { flags dormant; }'",
		"nft 'chain inet weft arrived { policy drop; }'",
		sameComment,
		"nft delete element inet weft direct-v6 '{ fd00:10:2::/64 }'",
		"nft add element inet weft direct-v4 '{ 203.0.113.0/24, 10.245.0.0-10.245.1.5 }'",
	} {
		n.run(damage)
		if changed := n.sync(withServices()); len(changed) == 0 {
			t.Errorf("%s: not noticed", damage)
		}
		if diff := cmp.Diff(right, n.state()); diff != "" {
			t.Errorf("%s: not repaired (-want +got):\n%s", damage, diff)
		}
		if again := n.sync(withServices()); len(again) > 0 {
			t.Errorf("%s: Sync after the repair changed %q", damage, again)
		}
	}

	n.run("ip link del weft0")
	if _, err := n.h.Sync(t.Context(), withServices()); err == nil ||
		!strings.Contains(err.Error(), "gateway interface weft0 does not exist") {
		t.Errorf("without a gateway interface: error %v", err)
	}
	n.gateway() // ovs-vswitchd recreates it when it restarts
	n.sync(withServices())
	if diff := cmp.Diff(right, n.state()); diff != "" {
		t.Errorf("recreated gateway interface: not repaired (-want +got):\n%s", diff)
	}
}

func TestForeignSurvives(t *testing.T) {
	n := newNode(t)
	n.sync(withServices())
	n.run(`ip addr add 10.50.0.9/24 dev weft0
ip addr add 169.254.20.10/32 dev weft0
ip route add 10.51.0.0/16 via 192.0.2.2
ip route add 10.52.0.0/16 dev weft0
ip route add 10.244.2.0/25 dev eth0
nft add table inet theirs
nft add chain inet theirs post '{ type nat hook postrouting priority 90; }'
nft add rule inet theirs post oifname eth9 masquerade`)
	right := n.state()
	n.sync(withServices())
	if diff := cmp.Diff(right, n.state()); diff != "" {
		t.Errorf("Sync changed what is not ours (-want +got):\n%s", diff)
	}
	n.run("nft delete table inet weft; ip route del 10.244.3.0/24; ip addr del 10.244.1.1/24 dev weft0")
	n.sync(withServices())
	slices.Sort(right)
	now := n.state()
	slices.Sort(now)
	if diff := cmp.Diff(right, now); diff != "" {
		t.Errorf("a repair changed what is not ours (-want +got):\n%s", diff)
	}
}

func TestNodeRemoved(t *testing.T) {
	n := newNode(t)
	d := dualStack()
	n.sync(d)
	d.setPeerPodCIDRs("10.244.2.0/24", "fd00:10:2::/64")
	want := []string{
		"route to 10.244.3.0/24 removed", "route to fd00:10:3::/64 removed",
		"nftables set direct-v4: 10.244.3.0/24 removed", "nftables set direct-v6: fd00:10:3::/64 removed",
		"nftables set pods-v4: 10.244.3.0/24 removed", "nftables set pods-v6: fd00:10:3::/64 removed",
	}
	got := n.sync(d)
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}
	if all := strings.Join(n.state(), "\n"); strings.Contains(all, "10.244.3.") || strings.Contains(all, "fd00:10:3:") {
		t.Errorf("the removed node is still there:\n%s", all)
	}
}

func TestPodCIDRChanges(t *testing.T) {
	n := newNode(t)
	d := dualStack()
	n.sync(d)
	d.PodCIDRs = prefixes("10.244.9.0/24", "fd00:10:9::/64")
	// Ranges that contain each other replace each other in one set.
	d.NoMasquerade = prefixes("10.244.0.0/16", "fd00:10::/32")
	n.sync(d)
	all := strings.Join(n.state(), "\n")
	if strings.Contains(all, "10.244.1.") || strings.Contains(all, "fd00:10:1:") {
		t.Errorf("the old pod CIDRs are still there:\n%s", all)
	}
	for _, want := range []string{"inet 10.244.9.1/24", "10.244.2.0/24 via 10.244.2.1 dev weft0 proto 87 src 10.244.9.1",
		"elements = { 10.244.0.0/16 }", "elements = { fd00:10::/32 }"} {
		if !strings.Contains(all, want) {
			t.Errorf("lacks %q:\n%s", want, all)
		}
	}
	d.NoMasquerade = nil
	n.sync(d)
	n.sync(dualStack())
	d = dualStack()
	d.PodCIDRs = d.PodCIDRs[:1] // single stack
	d.setPeerPodCIDRs("10.244.2.0/24")
	n.sync(d)
	if all := strings.Join(n.state(), "\n"); strings.Contains(all, "fd00:10") {
		t.Errorf("the IPv6 pod CIDR is still there:\n%s", all)
	}
	if changed := n.sync(d); len(changed) > 0 {
		t.Errorf("then Sync changed %q, want nothing", changed)
	}
}

func TestUnderlayMTU(t *testing.T) {
	n := newNode(t)
	n.run("ip link set eth0 mtu 1400")
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		if mtu, link, err := UnderlayMTU(netip.MustParseAddr(addr)); err != nil || mtu != 1400 || link != "eth0" {
			t.Errorf("UnderlayMTU(%s) = %d, %s, %v; want 1400, eth0", addr, mtu, link, err)
		}
	}
	if _, _, err := UnderlayMTU(netip.MustParseAddr("192.0.2.9")); err == nil ||
		!strings.Contains(err.Error(), "no link of this host has address 192.0.2.9") {
		t.Errorf("an address that no link has: error %v", err)
	}
}

// A limit of fragments that is higher, or none, stays; the userspace datapath does not depend on it.
func TestFragmentDistance(t *testing.T) {
	for _, c := range []struct {
		kernel     bool
		have, want string
	}{
		{true, "64", "4096"}, {true, "1", "4096"}, {true, "4096", "4096"}, {true, "10000", "10000"}, {true, "0", "0"},
		{false, "64", "64"},
	} {
		n := newNode(t)
		n.run("echo " + c.have + " >/proc/sys/net/ipv4/ipfrag_max_dist")
		d := dualStack()
		d.KernelDatapath = c.kernel
		n.sync(d)
		if got := strings.TrimSpace(n.run("cat /proc/sys/net/ipv4/ipfrag_max_dist")); got != c.want {
			t.Errorf("kernel's datapath %t: %s became %s, want %s", c.kernel, c.have, got, c.want)
		}
	}
}

func TestSysctlRoot(t *testing.T) {
	n := newNode(t)
	n.run("echo 0 >/proc/sys/net/ipv4/ip_forward") // a new namespace inherits the machine's value
	root := t.TempDir()
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv4/ipfrag_max_dist", "net/ipv6/conf/all/forwarding",
		"net/ipv6/conf/weft0/accept_dad", "net/ipv6/conf/weft0/disable_ipv6", "net/ipv4/conf/all/rp_filter",
		"net/ipv4/conf/weft0/rp_filter"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte("0\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n.h = New(n.nft, root, slog.New(slog.DiscardHandler))
	n.sync(dualStack())
	if got, err := os.ReadFile(filepath.Join(root, "net/ipv4/ip_forward")); err != nil || string(got) != "1" {
		t.Errorf("ip_forward below the root = %q, %v", got, err)
	}
	if got := n.run("cat /proc/sys/net/ipv4/ip_forward"); got != "0\n" {
		t.Errorf("ip_forward in /proc/sys = %q: written beside the root", got)
	}
	n.h = New(n.nft, filepath.Join(root, "nothing"), slog.New(slog.DiscardHandler))
	if _, err := n.h.Sync(t.Context(), dualStack()); err == nil || !strings.Contains(err.Error(), "net/ipv4/ip_forward") {
		t.Errorf("without the kernel's settings: error %v", err)
	}
}
