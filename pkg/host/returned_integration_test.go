//go:build integration

package host

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/weft-cni/weft/pkg/model"
)

// TestReturned: what a Service returns to the node from a client outside reaches the node's process with the client's
// address, and the answers go to the switch, also where a connection of the same client, port and endpoint exists that
// no Service translated. Filters by reverse path let it pass. The namespace in place of the switch has the client's
// address.
func TestReturned(t *testing.T) {
	n := newServiceNode(t, withServices())
	n.in(n.pods, func() {
		n.run(fmt.Sprintf("ip link set switch0 address %s mtu 1450; ip addr add 192.0.2.2/32 dev switch0; "+
			"ip -6 addr add 2001:db8::2/128 dev switch0 nodad", model.ReturnedMAC))
	})
	n.run("ip neigh flush dev weft0; nft add table ip6 firewall; " +
		"nft 'add chain ip6 firewall pre { type filter hook prerouting priority -140; }'; " +
		"nft add rule ip6 firewall pre meta nfproto ipv6 icmpv6 type != '{ nd-neighbor-solicit, nd-neighbor-advert }' " +
		"fib saddr . mark . iif oif missing drop; nft add rule ip6 firewall pre tcp dport 1-65535 fib saddr . mark . iif " +
		"oif missing drop")
	here := n.here()
	for _, tt := range []struct{ network, source, dest string }{
		{"tcp", "192.0.2.2", "192.0.2.1:8080"},
		{"udp", "192.0.2.2", "192.0.2.1:8080"},
		{"tcp", "192.0.2.2", "192.0.2.1:30080"}, // the number of a node port
		{"udp", "192.0.2.2", "192.0.2.1:30053"},
		{"tcp", "192.0.2.2", "192.0.2.50:80"}, // an external address of the node
		{"tcp", "2001:db8::2", "[2001:db8::1]:8080"},
		{"udp", "2001:db8::2", "[2001:db8::1]:8080"},
		{"tcp", "2001:db8::2", "[2001:db8::1]:30080"},
	} {
		a := attempt{"returned by a Service", tt.network, n.pods, tt.source, tt.dest, here, tt.dest, false}
		if got := a.run(n, patience); got != tt.source {
			t.Errorf("returned by a Service, %s to %s: the process sees %q, want %q", tt.network, tt.dest, got, tt.source)
		}
	}
	for _, tt := range []struct{ network, source, dest string }{
		{"tcp", "192.0.2.2:40001", "192.0.2.1:8081"},
		{"udp", "192.0.2.2:40001", "192.0.2.1:8081"},
		{"tcp", "[2001:db8::2]:40001", "[2001:db8::1]:8081"},
		{"udp", "[2001:db8::2]:40001", "[2001:db8::1]:8081"},
	} {
		a := attempt{network: tt.network, dest: tt.dest, at: here, listen: tt.dest}
		stop := a.echo(n)
		direct, returned := a.dial(n, n.out, tt.source), a.dial(n, n.pods, tt.source)
		for i, c := range []net.Conn{direct, returned, direct, returned} {
			for _, size := range []int{1, 1400, 8000} { // also above the MTU, both ways
				if err := exchange(c, slices.Repeat([]byte("x"), size)); err != nil {
					t.Errorf("%s, from %s to %s, turn %d, %d bytes: %v", tt.network, tt.source, tt.dest, i, size, err)
				}
			}
		}
		stop()
	}
}

// dial connects from a namespace with an address and port.
func (a attempt) dial(n *node, from netns.NsHandle, source string) (c net.Conn) {
	n.t.Helper()
	n.in(from, func() {
		d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source))}
		if a.network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(source))
		}
		var err error
		if c, err = d.DialContext(n.t.Context(), a.network, a.dest); err != nil {
			n.t.Fatalf("%s from %s to %s: %v", a.network, source, a.dest, err)
		}
	})
	n.t.Cleanup(func() { c.Close() })
	return c
}

// exchange sends bytes and wants them back.
func exchange(c net.Conn, sent []byte) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(sent); err != nil {
		return err
	}
	var got []byte
	for buf := make([]byte, len(sent)); len(got) < len(sent); {
		n, err := c.Read(buf)
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", len(got), err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("%d bytes came back changed", len(got))
	}
	return nil
}

// echo answers with what it receives.
func (a attempt) echo(n *node) (stop func()) {
	n.t.Helper()
	n.in(a.at, func() {
		if a.network == "udp" {
			l, err := net.ListenPacket("udp", a.listen)
			if err != nil {
				n.t.Fatal(err)
			}
			stop = func() { l.Close() }
			go func() {
				buf := make([]byte, 1<<16)
				for {
					size, from, err := l.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = l.WriteTo(buf[:size], from) // the client misses what is lost
				}
			}()
			return
		}
		l, err := net.Listen("tcp", a.listen)
		if err != nil {
			n.t.Fatal(err)
		}
		stop = func() { l.Close() }
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					buf := make([]byte, 1<<16)
					for {
						size, err := c.Read(buf)
						if err != nil {
							return
						}
						_, _ = c.Write(buf[:size])
					}
				}()
			}
		}()
	})
	return stop
}
