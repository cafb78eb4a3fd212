//go:build integration

package host

import (
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// TestTunnelPackets: tunnel packets between nodes bypass conntrack, and so all rules that translate their port. Other
// hosts' are dropped until a Node object has their address.
func TestTunnelPackets(t *testing.T) {
	d := withServices()
	d.Peers[0].Addrs = addrs("192.0.2.2", "2001:db8::2")
	n := newServiceNode(t, d)
	// A hostPort rule of the portmap plugin, and a rule that makes the kernel track everything.
	n.run(`nft 'table inet hostports { chain c { type nat hook prerouting priority dstnat - 10;
fib daddr type local udp dport { 4789, 6081 } dnat ip to 10.244.1.7; fib daddr type local udp dport { 4789, 6081 } dnat ip6 to fd00:10:1::7; }
chain o { type nat hook output priority -110; udp dport { 4789, 6081 } dnat ip to 10.244.1.7; }
chain t { type filter hook input priority 0; ct state established accept; }; }'`)
	here := n.here()
	n.run(`ip link add vx4 type vxlan id 7 dstport 4789 remote 192.0.2.2 local 192.0.2.1; ip addr add 10.7.4.1/24 dev vx4; ip link set vx4 up`)
	n.in(n.out, func() {
		n.run(`ip addr add 192.0.2.3/24 dev out0; ip -6 addr add 2001:db8::3/64 dev out0 nodad
ip link add vx4 type vxlan id 7 dstport 4789 remote 192.0.2.1 local 192.0.2.2; ip addr add 10.7.4.2/24 dev vx4; ip link set vx4 up`)
	})
	if got := (attempt{"", "udp", here, "", "10.7.4.2:9999", n.out, "10.7.4.2:9999", false}).run(n, patience); got !=
		"10.7.4.1" {
		t.Errorf("through a tunnel to a node beside a hostPort: the listener sees %q", got)
	}
	if got := (attempt{"", "udp", n.out, "", "10.7.4.1:9999", here, "10.7.4.1:9999", false}).run(n, patience); got !=
		"10.7.4.2" {
		t.Errorf("through a tunnel from a node beside a hostPort: the listener sees %q", got)
	}
	const ethernet, ipv4 = 0x6558, 0x0800
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		of := strings.TrimSuffix(to, "1")
		for _, tc := range []struct {
			from string
			kind uint16
			want bool
		}{{of + "2", ethernet, true}, {of + "3", ethernet, false}, {of + "3", ipv4, true}} {
			if got := n.gre(tc.from, to, tc.kind); got != tc.want {
				t.Errorf("GRE around %#x from %s: received %t, want %t", tc.kind, tc.from, got, tc.want)
			}
		}
	}
	known, unknown := "192.0.2.2", "192.0.2.3"
	for range 2 {
		for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
			at := net.JoinHostPort(to, "6081")
			if got := (attempt{"", "udp", n.out, known, at, here, at, true}).run(n, patience); got != known {
				t.Errorf("a node's tunnel packet from %s: the listener sees %q", known, got)
			}
			for _, where := range []attempt{
				{"the node", "udp", n.out, unknown, at, here, at, true},
				{"the pod with the hostPort", "udp", n.out, unknown, at, n.pods, ":6081", true},
			} {
				if got := where.run(n, brevity); got != "" {
					t.Errorf("%s receives a tunnel packet from %s, which is not a node", where.what, got)
				}
			}
			known, unknown = "2001:db8::2", "2001:db8::3"
		}
		// A node joins: the other two addresses.
		d.Peers = append(d.Peers, model.Path{Addrs: addrs("192.0.2.3", "2001:db8::3")})
		n.write(d)
		for _, a := range []string{"192.0.2.3", "2001:db8::3"} {
			at := "192.0.2.1:6081"
			if a[3] == '1' {
				at = "[2001:db8::1]:6081"
			}
			if got := (attempt{"", "udp", n.out, a, at, here, at, true}).run(n, patience); got != a {
				t.Errorf("the tunnel packet of a node that joined: the listener sees %q, want %s", got, a)
			}
		}
		d.Peers = d.Peers[:1]
		n.write(d)
		known, unknown = "192.0.2.2", "192.0.2.3"
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		entries, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if port := e.Forward.DstPort; port == 4789 || port == 6081 || e.Forward.Protocol == unix.IPPROTO_GRE &&
				!strings.HasSuffix(
					e.Forward.SrcIP.String(), "3") {
				t.Errorf("a tunnel packet is tracked: %s", e)
			}
		}
	}
}

// gre reports whether the node receives a GRE packet around what its type says, from an address outside.
func (n *node) gre(from, to string, kind uint16) (received bool) {
	n.t.Helper()
	var listener net.PacketConn
	n.in(n.here(), func() {
		var err error
		if listener, err = net.ListenPacket("ip:47", to); err != nil { //nolint:noctx // it does not wait
			n.t.Fatal(err)
		}
	})
	defer listener.Close()
	n.in(n.out, func() {
		conn, err := net.DialIP("ip:47", &net.IPAddr{IP: net.ParseIP(from)}, &net.IPAddr{IP: net.ParseIP(to)})
		if err != nil {
			n.t.Fatal(err)
		}
		defer conn.Close()
		packet := append(binary.BigEndian.AppendUint16([]byte{0x20, 0}, kind), make([]byte, 60)...) // with a key
		if _, err := conn.Write(packet); err != nil {
			n.t.Fatal(err)
		}
	})
	if err := listener.SetReadDeadline(time.Now().Add(brevity)); err != nil {
		n.t.Fatal(err)
	}
	_, _, err := listener.ReadFrom(make([]byte, 100))
	return err == nil
}

// TestLoopbackIsClosed: portmap sets route_localnet on weft0. Pods must still reach nothing at the node's loopback
// addresses, and a hostPort client at 127.0.0.1 must get its replies.
func TestLoopbackIsClosed(t *testing.T) {
	n := newServiceNode(t, withServices())
	n.run(`for f in all weft0 eth0; do echo 1 > /proc/sys/net/ipv4/conf/$f/route_localnet; done
nft 'table ip hostports { chain o { type nat hook output priority -110; ip daddr 127.0.0.1 tcp dport 8888 dnat to 10.244.1.7:8080; }
chain p { type nat hook postrouting priority 90; ip saddr 127.0.0.1 oifname "weft0" masquerade; }; }'`)
	here := n.here()
	toLoopback := func(from netns.NsHandle, source string, within time.Duration) string {
		const at = "127.0.0.1:9470"
		return (attempt{"", "udp", from, source, at, here, at, true}).run(n, within)
	}
	pod, host := "10.244.1.7", "192.0.2.2"
	for _, ns := range []struct {
		from    netns.NsHandle
		at, via string
	}{{n.pods, "switch0", "10.244.1.1"}, {n.out, "out0", "192.0.2.1"}} {
		n.in(ns.from, func() {
			n.run("ip route flush table local type local match 127.0.0.1; ip route add 127.0.0.0/8 via " + ns.via + " dev " +
				ns.at)
		})
	}
	for source, from := range map[string]netns.NsHandle{pod: n.pods, host: n.out} {
		if got := toLoopback(from, source, brevity); got != "" {
			t.Errorf("a socket at 127.0.0.1 of the node receives a packet from %s", got)
		}
	}
	a := attempt{"", "tcp", here, "127.0.0.1", "127.0.0.1:8888", n.pods, "10.244.1.7:8080", false}
	if got := a.run(n, patience); got != "10.244.1.1" {
		t.Errorf("a hostPort at 127.0.0.1 from the node: the listener sees %q, want the gateway", got)
	}
	n.run("nft flush chain inet weft entered") // shows that the packets above were sent
	for source, from := range map[string]netns.NsHandle{pod: n.pods, host: n.out} {
		if got := toLoopback(from, source, patience); got != source {
			t.Errorf("without the rules the socket at 127.0.0.1 sees %q from %s: the test sees nothing", got, source)
		}
	}
}
