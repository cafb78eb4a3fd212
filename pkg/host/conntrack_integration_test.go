//go:build integration

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// udp is a UDP socket in a namespace.
func (n *node) udp(ns netns.NsHandle, address string) *net.UDPConn {
	n.t.Helper()
	var c net.PacketConn
	var err error
	n.in(ns, func() { c, err = net.ListenPacket("udp", address) })
	if err != nil {
		n.t.Fatal(err)
	}
	socket, ok := c.(*net.UDPConn)
	if !ok {
		n.t.Fatalf("a UDP socket is a %T", c)
	}
	n.t.Cleanup(func() { socket.Close() })
	return socket
}

// hears returns the source address of a datagram that one socket sends to an address and the other receives; invalid
// when none arrives.
func (n *node) hears(listener, speaker *net.UDPConn, to string, within time.Duration) netip.AddrPort {
	n.t.Helper()
	if _, err := speaker.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort(to)); err != nil {
		n.t.Fatal(err)
	}
	if err := listener.SetReadDeadline(time.Now().Add(within)); err != nil {
		n.t.Fatal(err)
	}
	_, from, err := listener.ReadFromUDPAddrPort(make([]byte, 9))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		n.t.Fatal(err)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func (n *node) flush() int {
	n.t.Helper()
	count, err := n.h.FlushConnections(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return count
}

// newTrackingNode is a node on which a foreign table makes the kernel track all connections, in addition to the rules
// of Weft's table.
func newTrackingNode(t *testing.T, d Desired) *node {
	n := newServiceNode(t, d)
	n.run(`nft add table inet foreign
nft 'add chain inet foreign c { type filter hook forward priority 10; policy accept; }'
nft 'add chain inet foreign in { type filter hook input priority 10; policy accept; }'
nft add rule inet foreign c ct state established accept`)
	n.flush()
	return n
}

// TestFlushNodePorts: sockets that are older than the node port, or the node's external address, reach it from their
// next datagram on, and the node again after it is deleted.
func TestFlushNodePorts(t *testing.T) {
	before := withServices()
	before.NodePorts, before.ExternalIPs = nil, nil
	after := before
	after.NodePorts = []NodePort{{Protocol: model.UDP, Port: 30053}, {IPv6: true, Protocol: model.UDP, Port: 30053}}
	after.ExternalIPs = []ExternalIP{{Addr: netip.MustParseAddr("192.0.2.50"), Protocol: model.UDP, Port: 53,
		To: netip.MustParseAddrPort("10.96.0.10:53")}}
	n := newTrackingNode(t, before)
	here := n.here()
	for _, tt := range []struct {
		what               string
		from               netns.NsHandle
		source, dest, ours string
	}{
		{"from outside", n.out, "192.0.2.2:40001", "192.0.2.1:30053", "240.87.117.101:30053"},
		{"from outside, IPv6", n.out, "[2001:db8::2]:40001", "[2001:db8::1]:30053", "[fd57:6566:7400:1::7565]:30053"},
		{"from the node", here, "192.0.2.1:40001", "192.0.2.1:30053", "240.87.117.101:30053"},
		{"from a pod", n.pods, "10.244.1.7:40001", "192.0.2.1:30053", "240.87.117.101:30053"},
		{"to an external address", n.out, "192.0.2.2:40001", "192.0.2.50:53", "10.96.0.10:53"},
	} {
		speaker, node, ours := n.udp(tt.from, tt.source), n.udp(here, tt.dest), n.udp(n.pods, tt.ours)
		for round := range 2 { // the node port is added a second time
			if !n.hears(node, speaker, tt.dest, patience).IsValid() {
				t.Fatalf("%s, round %d: without a node port, the node does not hear it: the test sees nothing", tt.what, round)
			}
			n.write(after)
			if got := n.hears(ours, speaker, tt.dest, brevity); got.IsValid() {
				t.Errorf("%s, round %d: served although nothing was forgotten: the test is about nothing", tt.what, round)
			}
			if n.flush() == 0 {
				t.Errorf("%s, round %d: nothing was forgotten", tt.what, round)
			}
			if got := n.hears(ours, speaker, tt.dest, patience); !got.IsValid() {
				t.Errorf("%s, round %d: the node port does not serve a socket that began before it", tt.what, round)
			}
			if count := n.flush(); count != 0 {
				t.Errorf("%s, round %d: %d connections forgotten although nothing has changed", tt.what, round, count)
			}
			n.write(before)
			n.flush()
		}
		for _, c := range []*net.UDPConn{speaker, node, ours} {
			c.Close()
		}
	}
}

// TestFlushOwnNewAddress: an external address is added to the node and removed.
func TestFlushOwnNewAddress(t *testing.T) {
	d := withServices()
	d.ServicePorts = ports("198.51.100.80:53/UDP")
	d.ExternalIPs = []ExternalIP{{Addr: netip.MustParseAddr("198.51.100.80"), Protocol: model.UDP, Port: 53,
		To: netip.MustParseAddrPort("10.96.0.10:53")}}
	n := newTrackingNode(t, d)
	here := n.here()
	speaker := n.udp(here, "192.0.2.1:40001")
	elsewhere, service := n.udp(n.pods, "198.51.100.80:53"), n.udp(n.pods, "10.96.0.10:53")
	for round := range 2 {
		if !n.hears(elsewhere, speaker, "198.51.100.80:53", patience).IsValid() {
			t.Fatalf("round %d: the switch does not hear what is for an address that is not the node's", round)
		}
		n.run("ip addr add 198.51.100.80/32 dev eth0")
		if n.flush() == 0 || !n.hears(service, speaker, "198.51.100.80:53", patience).IsValid() {
			t.Error("the Service does not hear what is for an address that has come to the node")
		}
		n.run("ip addr del 198.51.100.80/32 dev eth0")
		n.sync(d)
		n.flush()
	}
}

// TestFlushAfterFlush: a pod's socket, and its ping, from a time without Weft's table are masqueraded once an agent,
// the same or a new one, has restored it. Established TCP connections, foreign translations and other zones stay.
func TestFlushAfterFlush(t *testing.T) {
	d := withServices()
	d.ServicePorts = nil
	n := newTrackingNode(t, d)
	n.in(n.out, func() { n.run("ip route add 10.244.1.0/24 via 192.0.2.1") })
	n.run(`nft add chain inet foreign nat '{ type nat hook postrouting priority srcnat; }'
nft add rule inet foreign nat ip daddr 192.0.2.2 udp dport 9998 snat ip to 192.0.2.50
nft add chain inet foreign raw '{ type filter hook prerouting priority raw; }'
nft add rule inet foreign raw udp dport 9997 ct zone set 7`)
	outside := map[int]*net.UDPConn{}
	for _, port := range []int{9997, 9998, 9999} {
		outside[port] = n.udp(n.out, fmt.Sprintf("192.0.2.2:%d", port))
	}
	for _, restarted := range []bool{false, true} {
		speaker := n.udp(n.pods, "10.244.1.7:0")
		n.run("nft delete table inet weft")
		var server net.Listener
		n.in(n.out, func() {
			var err error
			if server, err = net.Listen("tcp", "192.0.2.2:9990"); err != nil {
				t.Fatal(err)
			}
		})
		var client net.Conn
		n.in(n.pods, func() {
			var err error
			if client, err = (&net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP("10.244.1.7")}}).Dial("tcp",
				"192.0.2.2:9990"); err != nil {
				t.Fatal(err)
			}
		})
		accepted, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		server.Close()
		for port, want := range map[int]string{9997: "10.244.1.7", 9998: "192.0.2.50", 9999: "10.244.1.7"} {
			if got := n.hears(outside[port], speaker, fmt.Sprintf("192.0.2.2:%d", port), patience); got.Addr().String() != want {
				t.Fatalf("without our table, port %d hears %s, want %s", port, got, want)
			}
		}
		if restarted {
			n.h = New(n.nft, "/proc/sys", n.h.log)
		}
		n.sync(d)
		if count := n.flush(); count != 1 {
			t.Errorf("restarted %t: %d connections forgotten, want 1", restarted, count)
		}
		for port, want := range map[int]string{9997: "10.244.1.7", 9998: "192.0.2.50", 9999: "192.0.2.1"} {
			if got := n.hears(outside[port], speaker, fmt.Sprintf("192.0.2.2:%d", port), patience); got.Addr().String() != want {
				t.Errorf("restarted %t: afterwards port %d hears %s, want %s", restarted, port, got, want)
			}
		}
		for _, way := range [][2]net.Conn{{client, accepted}, {accepted, client}} {
			if _, err := way[0].Write([]byte("x")); err != nil {
				t.Error(err)
			}
			if err := way[1].SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := way[1].Read(make([]byte, 1)); err != nil {
				t.Errorf("restarted %t: established TCP was cut: %v", restarted, err)
			}
		}
		client.Close()
		accepted.Close()
	}
}

// TestFlushMasquerade: destinations become exceptions from masquerading, and cease to be.
func TestFlushMasquerade(t *testing.T) {
	d := withServices()
	d.ServicePorts = nil
	n := newTrackingNode(t, d)
	n.in(n.out, func() { n.run("ip route add 10.244.1.0/24 via 192.0.2.1") })
	outside, speaker := n.udp(n.out, "192.0.2.2:9999"), n.udp(n.pods, "10.244.1.7:0")
	hear := func(what, want string) {
		t.Helper()
		n.flush()
		if got := n.hears(outside, speaker, "192.0.2.2:9999", patience); got.Addr().String() != want {
			t.Errorf("%s: heard from %s, want %s", what, got, want)
		}
	}
	hear("masqueraded", "192.0.2.1")
	exception := d
	exception.NoMasquerade = prefixes("192.0.2.2/32")
	n.write(exception)
	hear("an exception", "10.244.1.7")
	n.write(d)
	hear("no exception any more", "192.0.2.1")
	off := d
	off.Masquerade = false
	n.write(off)
	hear("no masquerade", "10.244.1.7")
	n.write(d)
	hear("masquerade again", "192.0.2.1")
}

// TestFlushServiceRoutes: a socket of the node sends to an address that a Service gets and loses.
func TestFlushServiceRoutes(t *testing.T) {
	d := withServices()
	without := d
	without.ServicePorts, without.ExternalIPs = nil, nil
	n := newTrackingNode(t, without)
	n.in(n.out, func() { n.run("ip addr add 198.51.100.80/32 dev out0") })
	speaker := n.udp(n.here(), "0.0.0.0:0")
	world, service := n.udp(n.out, "198.51.100.80:53"), n.udp(n.pods, "198.51.100.80:53")
	for range 2 {
		if got := n.hears(world, speaker, "198.51.100.80:53", patience); got.Addr().String() != "192.0.2.1" {
			t.Errorf("the world hears the node as %s", got)
		}
		n.write(d)
		n.flush()
		if got := n.hears(service, speaker, "198.51.100.80:53", patience); got.Addr().String() != "10.244.1.1" {
			t.Errorf("the Service hears the node as %s", got)
		}
		n.write(without)
		n.flush()
	}
}

// BenchmarkFlush is the cost of a pass over many connections.
func BenchmarkFlush(b *testing.B) {
	n := newNode(b)
	d := withServices()
	n.sync(d)
	const entries = 100_000
	for i := range entries {
		from, to := net.IPv4(203, 0, byte(i>>16), byte(i>>8)).To4(), net.IPv4(192, 0, 2, byte(i)).To4()
		flow := &netlink.ConntrackFlow{
			FamilyType: unix.AF_INET, TimeOut: 600,
			Forward: netlink.IPTuple{SrcIP: from, DstIP: to, SrcPort: 4000, DstPort: 53, Protocol: unix.IPPROTO_UDP},
			Reverse: netlink.IPTuple{SrcIP: to, DstIP: from, SrcPort: 53, DstPort: 4000, Protocol: unix.IPPROTO_UDP},
		}
		if err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, flow); err != nil {
			b.Fatal(err)
		}
	}
	if count, _, err := Connections("/proc/sys"); err != nil || count < entries {
		b.Fatalf("the kernel has %d connections, want %d: %v", count, entries, err)
	}
	for b.Loop() {
		n.h.flushing.due, n.h.flushing.took = true, 0
		n.flush()
	}
}
