//go:build integration

package host

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/weft-cni/weft/pkg/model"
)

// The source address of a datagram as a listener sees it.
func TestSourceAddresses(t *testing.T) {
	for _, masquerade := range []bool{true, false} {
		n := newNode(t)
		d := dualStack()
		d.Masquerade = masquerade
		d.NoMasquerade = prefixes("192.0.2.3/32", "2001:db8::3/128")
		n.sync(d)
		n.in(n.out, func() {
			n.run(`ip link set lo up; ip link set out0 up
ip addr add 192.0.2.2/24 dev out0; ip addr add 192.0.2.3/32 dev out0
ip -6 addr add 2001:db8::2/64 dev out0 nodad; ip -6 addr add 2001:db8::3/128 dev out0 nodad
ip route add 10.244.0.0/16 via 192.0.2.1; ip -6 route add fd00:10::/32 via 2001:db8::1`)
		})
		// The other end's namespace has the addresses of a local and a remote pod, and answers in place of the routers.
		n.in(n.pods, func() {
			n.run(fmt.Sprintf(`ip link set lo up; ip link set switch0 address %s up
ip addr add 10.244.1.7/24 dev switch0; ip addr add 10.244.2.9/32 dev switch0
ip -6 addr add fd00:10:1::7/64 dev switch0 nodad; ip -6 addr add fd00:10:2::9/128 dev switch0 nodad
ip route add default via 10.244.1.1; ip -6 route add default via fd00:10:1::1`, model.RouterMAC))
		})
		n.run(fmt.Sprintf("ip neigh replace 10.244.2.1 lladdr %[1]s dev weft0; ip neigh replace fd00:10:2::1 lladdr %[1]s "+
			"dev weft0",
			model.RouterMAC))
		here, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { here.Close() })
		node4, node6 := "192.0.2.1", "2001:db8::1"
		if !masquerade {
			node4, node6 = "10.244.1.7", "fd00:10:1::7"
		}
		for _, tt := range []struct {
			what         string
			from, to     netns.NsHandle
			source, dest string
			want         string
		}{
			{"pod to the world", n.pods, n.out, "10.244.1.7", "192.0.2.2", node4},
			{"pod to an exception", n.pods, n.out, "10.244.1.7", "192.0.2.3", "10.244.1.7"},
			{"pod to its node", n.pods, here, "10.244.1.7", "192.0.2.1", "10.244.1.7"},
			{"node to a remote pod", here, n.pods, "", "10.244.2.9", "10.244.1.1"},
			{"node's other address to a remote pod", here, n.pods, "192.0.2.1", "10.244.2.9", "10.244.1.1"},
			{"node's other address to a local pod", here, n.pods, "192.0.2.1", "10.244.1.7", "192.0.2.1"},
			{"world to a remote pod through this node", n.out, n.pods, "192.0.2.2", "10.244.2.9", "192.0.2.2"},
			{"pod to the world, IPv6", n.pods, n.out, "fd00:10:1::7", "2001:db8::2", node6},
			{"pod to an exception, IPv6", n.pods, n.out, "fd00:10:1::7", "2001:db8::3", "fd00:10:1::7"},
			{"node's other address to a remote pod, IPv6", here, n.pods, "2001:db8::1", "fd00:10:2::9", "fd00:10:1::1"},
		} {
			if got := n.source(tt.from, tt.to, tt.source, tt.dest); got != tt.want {
				t.Errorf("masquerade %t, %s: the listener sees %s, want %s", masquerade, tt.what, got, tt.want)
			}
		}
	}
}

// TestPodsDoNotReachTunnelPorts: a Service proxy translates an address to a node's tunnel port after the switch has
// allowed the packet. Masqueraded, the packet would look like the node's own.
func TestPodsDoNotReachTunnelPorts(t *testing.T) {
	n := newNode(t)
	d := dualStack()
	d.Masquerade = true
	n.sync(d)
	n.in(n.out, func() { n.run("ip link set lo up; ip link set out0 up; ip addr add 192.0.2.2/24 dev out0") })
	n.in(n.pods, func() {
		n.run(fmt.Sprintf("ip link set lo up; ip link set switch0 address %s up; ip addr add 10.244.1.7/24 dev switch0; "+
			"ip route add default via 10.244.1.1",
			model.RouterMAC))
	})
	n.run(`nft add table ip proxy
nft 'add chain ip proxy prerouting { type nat hook prerouting priority dstnat; }'
nft add rule ip proxy prerouting ip daddr 10.96.0.9 udp dport 1000-9999 dnat to 192.0.2.2`)
	listeners := map[int]*net.UDPConn{}
	for _, port := range []int{4789, 6081, 6082} { // the last is an ordinary port
		n.in(n.out, func() {
			c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP("192.0.2.2"), Port: port})
			if err != nil {
				t.Fatal(err)
			}
			listeners[port] = c
		})
		t.Cleanup(func() { listeners[port].Close() })
		n.in(n.pods, func() {
			c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.ParseIP("10.96.0.9"), Port: port})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		})
	}
	received := func(port int, within time.Duration) bool {
		if err := listeners[port].SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		_, _, err := listeners[port].ReadFromUDPAddrPort(make([]byte, 1))
		return err == nil
	}
	if !received(6082, 5*time.Second) {
		t.Fatal("the translated datagram to another port did not arrive: the test sees nothing")
	}
	// These were sent before the one that has arrived.
	for _, port := range []int{4789, 6081} {
		if received(port, 50*time.Millisecond) {
			t.Errorf("a pod's datagram reached tunnel port %d", port)
		}
	}
}

// source sends a datagram from one namespace to another and returns its source address there.
func (n *node) source(from, to netns.NsHandle, source, dest string) string {
	n.t.Helper()
	var listener, sender *net.UDPConn
	var err error
	n.in(to, func() { listener, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(dest)}) })
	if err != nil {
		n.t.Fatal(err)
	}
	defer listener.Close()
	addressee := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(listener.LocalAddr().String()))
	n.in(from, func() { sender, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(source)}, addressee) })
	if err != nil {
		n.t.Fatal(err)
	}
	defer sender.Close()
	if _, err := sender.Write([]byte("x")); err != nil {
		n.t.Fatal(err)
	}
	if err := listener.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		n.t.Fatal(err)
	}
	_, addr, err := listener.ReadFromUDPAddrPort(make([]byte, 1))
	if err != nil {
		n.t.Errorf("%s to %s: %v", source, dest, err)
	}
	return addr.Addr().Unmap().String()
}
