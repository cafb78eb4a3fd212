//go:build integration

package host

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// arrives reports whether a packet with this source, a datagram or a TCP SYN, sent by a host in one namespace, arrives
// in another.
func (n *node) arrives(network string, from netns.NsHandle, source string, at netns.NsHandle, dest string) bool {
	n.t.Helper()
	family := "ip6"
	if netip.MustParseAddr(source).Is4() {
		family = "ip"
	}
	n.in(at, func() {
		n.run(fmt.Sprintf(`nft 'table inet seen; delete table inet seen; table inet seen { chain c {
type filter hook prerouting priority -310; %s saddr %s %s dport 7777 counter; }; }'`, family, source, network))
	})
	defer n.in(at, func() { n.run("nft delete table inet seen") })
	n.in(from, func() {
		d := net.Dialer{Timeout: brevity, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(source)}
		}
		c, err := d.DialContext(n.t.Context(), network, net.JoinHostPort(dest, "7777"))
		if err != nil {
			return // a SYN needs no reply to be seen
		}
		defer c.Close()
		_, _ = c.Write([]byte("x"))
	})
	for end := time.Now().Add(brevity); ; time.Sleep(20 * time.Millisecond) {
		var seen bool
		n.in(at, func() { seen = !strings.Contains(n.run("nft list table inet seen"), "counter packets 0 ") })
		if seen || time.Now().After(end) {
			return seen
		}
	}
}

// TestForgedByHostOutside: a packet that arrives on an uplink must not have a source address of pods, gateways or this
// node, with any rp_filter; IPv6 has none.
func TestForgedByHostOutside(t *testing.T) {
	d := withServices()
	n := newServiceNode(t, d)
	n.in(n.out, func() {
		n.run(`for a in 10.244.2.5/32 10.244.1.8/32 10.244.1.1/32 10.244.2.1/32 192.0.2.1/32 192.0.2.50/32 192.168.7.7/32; do ip addr add $a dev lo; done
for a in fd00:10:2::5/128 fd00:10:1::8/128 fd00:10:1::1/128 fd00:10:2::1/128 2001:db8::1/128 2001:db8::50/128; do ip -6 addr add $a dev lo nodad; done`)
	})
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	n.in(n.out, func() { // a host with the node's addresses, which does not resolve them
		n.run(fmt.Sprintf(
			`ip neigh replace 192.0.2.9 lladdr %[1]s dev out0; ip -6 neigh replace 2001:db8::9 lladdr %[1]s dev out0
ip route add 10.244.1.7/32 via 192.0.2.9; ip -6 route add fd00:10:1::7/128 via 2001:db8::9`, eth0.HardwareAddr))
	})
	for _, filter := range []int{0, 2} {
		n.run(fmt.Sprintf("for f in all eth0 weft0; do echo %d > /proc/sys/net/ipv4/conf/$f/rp_filter; done", filter))
		for _, network := range []string{"udp", "tcp"} {
			for _, tt := range []struct{ what, source, dest string }{
				{"a pod of another node", "10.244.2.5", "10.244.1.7"},
				{"a pod of this node", "10.244.1.8", "10.244.1.7"},
				{"this node's gateway", "10.244.1.1", "10.244.1.7"},
				{"another node's gateway", "10.244.2.1", "10.244.1.7"},
				{"this node", "192.0.2.1", "10.244.1.7"},
				{"this node's other address", "192.0.2.50", "10.244.1.7"},
				{"a pod of another node", "fd00:10:2::5", "fd00:10:1::7"},
				{"a pod of this node", "fd00:10:1::8", "fd00:10:1::7"},
				{"this node's gateway", "fd00:10:1::1", "fd00:10:1::7"},
				{"another node's gateway", "fd00:10:2::1", "fd00:10:1::7"},
				{"this node", "2001:db8::1", "fd00:10:1::7"},
				{"this node's other address", "2001:db8::50", "fd00:10:1::7"},
			} {
				if n.arrives(network, n.out, tt.source, n.pods, tt.dest) {
					t.Errorf("rp_filter %d, %s: the pod receives a packet from outside in the name of %s, %s", filter, network,
						tt.what, tt.source)
				}
			}
			for _, tt := range []struct{ what, source, dest string }{
				{"a host outside", "192.0.2.2", "10.244.1.7"},
				{"a host in a range without masquerade", "192.168.7.7", "10.244.1.7"},
				{"a host outside", "2001:db8::2", "fd00:10:1::7"},
			} {
				if !n.arrives(network, n.out, tt.source, n.pods, tt.dest) {
					t.Errorf("rp_filter %d, %s: the pod does not receive the packet of %s, %s", filter, network, tt.what, tt.source)
				}
			}
		}
	}
}

// TestOwnTraffic: packets that the node sends to itself at any of its addresses, and multicast that is looped back.
func TestOwnTraffic(t *testing.T) {
	n := newServiceNode(t, withServices())
	here := n.here()
	for _, a := range []string{"127.0.0.1", "10.244.1.1", "192.0.2.1", "192.0.2.50", "::1", "fd00:10:1::1",
		"2001:db8::1"} {
		at := net.JoinHostPort(a, "8080")
		if got := (attempt{"", "tcp", here, a, at, here, at, false}).run(n, patience); got != a {
			t.Errorf("the node to itself at %s: the listener sees %q", a, got)
		}
	}
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range []string{"224.0.0.251", "ff02::fb"} {
		to := &net.UDPAddr{IP: net.ParseIP(group), Port: 5399}
		if to.IP.To4() == nil {
			to.Zone = link.Name
		}
		l, err := net.ListenMulticastUDP("udp", link, to)
		if err != nil {
			t.Fatal(err)
		}
		// mDNS responders use this: their own host receives them, too.
		n.run(fmt.Sprintf(`python3 -c 'import socket as s
v6 = ":" in "%[1]s"
c = s.socket(s.AF_INET6 if v6 else s.AF_INET, s.SOCK_DGRAM)
i = s.if_nametoindex("eth0")
if v6: c.setsockopt(s.IPPROTO_IPV6, s.IPV6_MULTICAST_IF, i)
else: c.setsockopt(s.IPPROTO_IP, s.IP_MULTICAST_IF, s.inet_aton("192.0.2.1"))
c.sendto(b"x", ("%[1]s", 5399))'`, group))
		if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := l.ReadFrom(make([]byte, 1)); err != nil {
			t.Errorf("the node does not hear its own multicast to %s: %v", group, err)
		}
		l.Close()
	}
}
