//go:build integration

package host

import (
	"strings"
	"testing"
	"time"
)

// TestFilteredForwarding: another program's chain that drops forwarded packets by policy is reported by name, until it
// accepts those of the gateway interface or is deleted.
func TestFilteredForwarding(t *testing.T) {
	n := newNode(t)
	d := dualStack()
	filtered := func() string {
		t.Helper()
		n.h.compared = time.Now().Add(-time.Hour)
		done, err := n.h.Sync(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if done.Filtered == nil {
			return ""
		}
		return done.Filtered.Error()
	}
	n.run(`nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy accept; }
chain INPUT { type filter hook input priority 0; policy drop; }; }'`)
	if got := filtered(); got != "" {
		t.Errorf("a chain that drops nothing forwarded is reported: %s", got)
	}
	for _, family := range []string{"ip", "ip6", "inet"} {
		n.run("nft 'table " + family + " fw { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'")
		if got := filtered(); !strings.Contains(got,
			"nftables chain "+family+" fw FORWARD drops forwarded packets by policy") {
			t.Errorf("%s: %q", family, got)
		}
		n.run("nft add rule " + family + " fw FORWARD iifname weft0 accept; nft add rule " + family +
			" fw FORWARD oifname weft0 accept")
		if got := filtered(); got != "" {
			t.Errorf("%s, with weft0 accepted: %q", family, got)
		}
		n.run("nft delete table " + family + " fw")
	}
	d.PodCIDRs = d.PodCIDRs[:1]
	n.run("nft 'table ip6 fw { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'")
	if got := filtered(); got != "" {
		t.Errorf("of a family that pods do not have: %q", got)
	}
}

// TestRouterAdvertisements: a node whose default route comes from a router advertisement keeps it when forwarding is
// enabled, and accepts the next one.
func TestRouterAdvertisements(t *testing.T) {
	n := newNode(t)
	n.run("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding; echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra")
	n.in(n.out, func() {
		n.run("ip link set lo up; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; ip link set out0 up")
	})
	advertise := func() {
		t.Helper()
		for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			n.in(n.out, func() {
				n.run(`python3 -c 'import socket as s, struct
c = s.socket(s.AF_INET6, s.SOCK_RAW, s.IPPROTO_ICMPV6)
c.setsockopt(s.IPPROTO_IPV6, s.IPV6_MULTICAST_HOPS, 255)
c.setsockopt(s.IPPROTO_IPV6, s.IPV6_MULTICAST_IF, s.if_nametoindex("out0"))
try: c.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 600, 0, 0), ("ff02::1", 0, 0, s.if_nametoindex("out0")))
except OSError as e: print(e)'`) // at first the link has no source address
			})
			if strings.Contains(n.run("ip -6 route show default"), "proto ra") {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("no default route from the advertisement: %s",
					n.run("ip -6 route show; cat /proc/sys/net/ipv6/conf/eth0/accept_ra /proc/sys/net/ipv6/conf/eth0/forwarding"))
			}
		}
	}
	advertise()
	n.sync(dualStack())
	if got := n.run("cat /proc/sys/net/ipv6/conf/all/forwarding; ip -6 route show default"); !strings.HasPrefix(got,
		"1\n") || !strings.Contains(got, "proto ra") {
		t.Errorf("with forwarding on, default route: %s", got)
	}
	n.run("ip -6 route flush default")
	advertise()
	if got := n.run("cat /proc/sys/net/ipv6/conf/weft0/accept_ra"); got != "1\n" {
		t.Errorf("accept_ra of a link without advertisements is %s", got)
	}
}
