//go:build integration

package host

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// patience bounds the wait for something that must arrive, brevity for something that must not.
const (
	patience = 5 * time.Second
	brevity  = 300 * time.Millisecond
)

// newServiceNode is a node whose gateway interface's other end answers as the switch would: it has the target addresses
// of Services, and their source addresses. rp_filter is strict everywhere, except where one namespace is in place of
// both the switch and the pods.
func newServiceNode(t *testing.T, d Desired) *node {
	t.Helper()
	n := newNode(t)
	n.run("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 1 > /proc/sys/net/ipv4/conf/weft0/rp_filter; ip -6 " +
		"route add default via 2001:db8::2")
	n.run("ip addr add 192.0.2.50/32 dev eth0; ip -6 addr add 2001:db8::50/128 dev eth0 nodad preferred_lft 0")
	n.sync(d)
	n.in(n.out, func() {
		n.run(`ip link set lo up; ip link set out0 up
ip addr add 192.0.2.2/24 dev out0; ip -6 addr add 2001:db8::2/64 dev out0 nodad
ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1`)
	})
	n.in(n.pods, func() {
		n.run(fmt.Sprintf(`ip link set lo up; ip link set switch0 address %s up
echo 1 > /proc/sys/net/ipv4/conf/switch0/accept_local
for a in 10.244.1.7/24 169.254.87.1/32 240.87.117.101/32 169.254.87.2/32 198.51.100.80/32 10.96.0.10/32; do ip addr add $a dev switch0; done
for a in fd00:10:1::7/64 fd57:6566:7400::1/128 fd57:6566:7400:1::7565/128 fd57:6566:7400::2/128 2001:db8:80::1/128 fd00:96::10/128; do ip -6 addr add $a dev switch0 nodad; done
ip route add default via 10.244.1.1; ip -6 route add default via fd00:10:1::1`, model.RouterMAC))
	})
	return n
}

// here is the node's own namespace.
func (n *node) here() netns.NsHandle {
	n.t.Helper()
	h, err := netns.Get()
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { h.Close() })
	return h
}

// attempt is a client that sends "x" to a destination, and the listener's address.
type attempt struct {
	what    string
	network string // "tcp", "udp"
	from    netns.NsHandle
	source  string // may be empty
	dest    string
	at      netns.NsHandle
	listen  string
	oneWay  bool // replies have no route back in this setup
}

// run returns the client's address as the listener sees it, or "" when nothing arrives. The client must get its reply,
// too.
func (a attempt) run(n *node, wait time.Duration) string {
	n.t.Helper()
	seen, stop := a.serve(n)
	defer stop()
	n.in(a.from, func() {
		d := net.Dialer{Timeout: wait}
		if a.source != "" && a.network == "tcp" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(a.source)}
		} else if a.source != "" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(a.source)}
		}
		c, err := d.DialContext(n.t.Context(), a.network, a.dest)
		if err != nil {
			n.t.Logf("%s: %v", a.what, err)
			return
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			n.t.Errorf("%s: %v", a.what, err)
		}
		if a.oneWay {
			return
		}
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			n.t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			n.t.Logf("%s: no answer: %v", a.what, err)
		} else {
			seen <- "answered"
		}
	})
	var source string
	for {
		select {
		case s := <-seen:
			if s != "answered" {
				source = s
				if a.oneWay {
					return source
				}
				continue
			}
			return source
		case <-time.After(wait):
			if source != "" && !a.oneWay {
				source += " without an answer"
			}
			return source
		}
	}
}

// serve answers packets.
func (a attempt) serve(n *node) (chan string, func()) {
	n.t.Helper()
	seen := make(chan string, 4)
	host := func(addr net.Addr) string {
		return netip.MustParseAddrPort(addr.String()).Addr().Unmap().String()
	}
	var closer io.Closer
	n.in(a.at, func() {
		if a.network == "udp" {
			l, err := net.ListenPacket("udp", a.listen)
			if err != nil {
				n.t.Fatal(err)
			}
			closer = l
			go func() {
				buf := make([]byte, 1)
				for {
					_, from, err := l.ReadFrom(buf)
					if err != nil {
						return
					}
					seen <- host(from)
					_, _ = l.WriteTo(buf, from) // the client notices a lost reply
				}
			}()
			return
		}
		l, err := net.Listen("tcp", a.listen)
		if err != nil {
			n.t.Fatal(err)
		}
		closer = l
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				seen <- host(c.RemoteAddr())
				_, _ = c.Write([]byte("y"))
				c.Close()
			}
		}()
	})
	return seen, func() { closer.Close() }
}

// TestWayToServices: packets to a Service leave by the gateway interface, with a destination that the switch serves and
// a source address that policies can match.
func TestWayToServices(t *testing.T) {
	d := withServices()
	d.NodePorts = append(d.NodePorts, NodePort{IPv6: true, Protocol: model.UDP, Port: 30053})
	d.ExternalIPs = append(d.ExternalIPs,
		ExternalIP{Addr: netip.MustParseAddr("192.0.2.50"), Protocol: model.TCP, Port: 80,
			To: netip.MustParseAddrPort("169.254.87.1:30080")},
		// Has precedence over the node port of that number.
		ExternalIP{Addr: netip.MustParseAddr("192.0.2.50"), Protocol: model.UDP, Port: 30053,
			To: netip.MustParseAddrPort("10.96.0.10:53")},
		ExternalIP{Addr: netip.MustParseAddr("2001:db8::50"), Protocol: model.TCP, Port: 80,
			To: netip.MustParseAddrPort("[fd57:6566:7400::1]:30080")})
	n := newServiceNode(t, d)
	here := n.here()
	const np4, np6, udp4, udp6 = "169.254.87.1", "[fd57:6566:7400::1]", "240.87.117.101", "[fd57:6566:7400:1::7565]"
	for _, tt := range []struct {
		attempt
		want string
	}{
		{attempt{"client outside to a node port", "tcp", n.out, "", "192.0.2.1:30080", n.pods, np4 + ":30080", false},
			"192.0.2.2"},
		{attempt{"client outside to a node port", "udp", n.out, "", "192.0.2.1:30053", n.pods, udp4 + ":30053", false},
			"192.0.2.2"},
		{attempt{"client outside to a node port", "tcp", n.out, "", "[2001:db8::1]:30080", n.pods, np6 + ":30080", false},
			"2001:db8::2"},
		{attempt{"client outside to a node port", "udp", n.out, "", "[2001:db8::1]:30053", n.pods, udp6 + ":30053", false},
			"2001:db8::2"},
		{attempt{"another protocol", "udp", n.out, "", "192.0.2.1:30080", here, "192.0.2.1:30080", false}, "192.0.2.2"},
		{attempt{"another port", "tcp", n.out, "", "192.0.2.1:30081", here, "192.0.2.1:30081", false}, "192.0.2.2"},
		{attempt{"the node to its own node port", "tcp", here, "", "192.0.2.1:30080", n.pods, np4 + ":30080", false},
			"192.0.2.1"},
		{attempt{"the node to its own node port", "udp", here, "", "192.0.2.1:30053", n.pods, udp4 + ":30053", false},
			"192.0.2.1"},
		{attempt{"the node's other address to its own node port", "tcp", here, "192.0.2.50", "192.0.2.1:30080", n.pods,
			np4 + ":30080", false}, "10.244.1.1"},
		{attempt{"the node to its own node port", "udp", here, "", "[2001:db8::1]:30053", n.pods, udp6 + ":30053", false},
			"fd00:10:1::1"},
		{attempt{"the node to the node port at its gateway address", "tcp", here, "", "10.244.1.1:30080", n.pods,
			np4 + ":30080", false}, "10.244.1.1"},
		{attempt{"the node to a node port at loopback", "tcp", here, "", "127.0.0.1:30080", here, "127.0.0.1:30080", false},
			"127.0.0.1"},
		{attempt{"the node to a node port at loopback", "tcp", here, "", "[::1]:30080", here, "[::1]:30080", false}, "::1"},
		{attempt{"pod to its node's node port", "udp", n.pods, "10.244.1.7", "192.0.2.1:30053", n.pods, udp4 + ":30053",
			true}, "10.244.1.7"},
		{attempt{"pod to the node port at the gateway address", "udp", n.pods, "10.244.1.7", "10.244.1.1:30053", n.pods,
			udp4 + ":30053", true}, "10.244.1.7"},
		{attempt{"pod to its node's node port", "udp", n.pods, "fd00:10:1::7", "[2001:db8::1]:30053", n.pods, udp6 + ":30053",
			true}, "fd00:10:1::7"},
		{attempt{"pod to a node port of another node", "udp", n.pods, "10.244.1.7", "192.0.2.2:30053", n.out,
			"192.0.2.2:30053", false}, "192.0.2.1"},

		{attempt{"client outside to an external address of the node", "tcp", n.out, "", "192.0.2.50:80", n.pods,
			np4 + ":30080", false}, "192.0.2.2"},
		{attempt{"client outside to an external address of the node", "tcp", n.out, "", "[2001:db8::50]:80", n.pods,
			np6 + ":30080", false}, "2001:db8::2"},
		{attempt{"another port at an external address of the node", "tcp", n.out, "", "192.0.2.50:81", here, "192.0.2.50:81",
			false}, "192.0.2.2"},
		{attempt{"an external address before a node port", "udp", n.out, "", "192.0.2.50:30053", n.pods, "10.96.0.10:53",
			false}, "192.0.2.2"},
		{attempt{"the node to an external address of its own", "tcp", here, "", "192.0.2.50:80", n.pods, np4 + ":30080",
			false}, "10.244.1.1"},
		{attempt{"client outside to a load balancer's address", "tcp", n.out, "", "198.51.100.80:80", n.pods,
			"198.51.100.80:80", false}, "192.0.2.2"},
		{attempt{"client outside to a load balancer's address", "tcp", n.out, "", "[2001:db8:80::1]:80", n.pods,
			"[2001:db8:80::1]:80", false}, "2001:db8::2"},
		{attempt{"the node to a load balancer's address", "tcp", here, "", "198.51.100.80:80", n.pods, "198.51.100.80:80",
			false}, "10.244.1.1"},
		{attempt{"the node to a ClusterIP", "tcp", here, "", "10.96.0.10:443", n.pods, "10.96.0.10:443", false},
			"10.244.1.1"},
		{attempt{"the node to a ClusterIP", "udp", here, "", "[fd00:96::10]:53", n.pods, "[fd00:96::10]:53", false},
			"fd00:10:1::1"},
		{attempt{"the node's other address to a ClusterIP", "tcp", here, "192.0.2.1", "10.96.0.10:443", n.pods,
			"10.96.0.10:443", false}, "10.244.1.1"},
		{attempt{"client outside to a ClusterIP", "tcp", n.out, "", "10.96.0.10:443", n.pods, "10.96.0.10:443", false},
			"192.0.2.2"},

		{attempt{"out of a Service to this node", "tcp", n.pods, "169.254.87.2", "192.0.2.1:8080", here, "192.0.2.1:8080",
			false}, "169.254.87.2"},
		{attempt{"out of a Service to this node", "udp", n.pods, "fd57:6566:7400::2", "[2001:db8::1]:8080", here,
			"[2001:db8::1]:8080", false}, "fd57:6566:7400::2"},
		{attempt{"out of a Service to a hostNetwork pod at its node port", "tcp", n.pods, "169.254.87.2", "192.0.2.1:30080",
			here, "192.0.2.1:30080", false}, "169.254.87.2"},
		{attempt{"out of a Service to a hostNetwork pod at its node port", "tcp", n.pods, "fd57:6566:7400::2",
			"[2001:db8::1]:30080", here, "[2001:db8::1]:30080", false}, "fd57:6566:7400::2"},
		{attempt{"out of a Service to a hostNetwork pod at its external address", "tcp", n.pods, "169.254.87.2",
			"192.0.2.50:80", here, "192.0.2.50:80", false}, "169.254.87.2"},
		{attempt{"out of a Service to another node", "tcp", n.pods, "169.254.87.2", "192.0.2.2:8080", n.out, "192.0.2.2:8080",
			false}, "192.0.2.1"},
		{attempt{"out of a Service to another node", "udp", n.pods, "169.254.87.2", "192.0.2.2:8080", n.out, "192.0.2.2:8080",
			false}, "192.0.2.1"},
		{attempt{"out of a Service to another node", "tcp", n.pods, "fd57:6566:7400::2", "[2001:db8::2]:8080", n.out,
			"[2001:db8::2]:8080", false}, "2001:db8::1"},
	} {
		if got := tt.run(n, patience); got != tt.want {
			t.Errorf("%s, %s, %s: the listener sees %q, want %q", tt.what, tt.network, tt.dest, got, tt.want)
		}
	}
	for _, tt := range []attempt{
		{"out of a Service to a tunnel port", "udp", n.pods, "169.254.87.2", "192.0.2.2:6081", n.out, "192.0.2.2:6081", true},
		{"out of a Service to a tunnel port", "udp", n.pods, "fd57:6566:7400::2", "[2001:db8::2]:4789", n.out,
			"[2001:db8::2]:4789", true},
	} {
		if got := tt.run(n, brevity); got != "" {
			t.Errorf("%s: arrived from %s", tt.what, got)
		}
	}
	// Even when pods keep their own addresses outside, the Masquerade address must not appear there.
	d.Masquerade, d.NoMasquerade = false, prefixes("0.0.0.0/0", "::/0")
	n.sync(d)
	for _, tt := range []struct{ source, dest, want string }{
		{"169.254.87.2", "192.0.2.2:8080", "192.0.2.1"},
		{"fd57:6566:7400::2", "[2001:db8::2]:8080", "2001:db8::1"},
	} {
		if got := (attempt{"", "udp", n.pods, tt.source, tt.dest, n.out, tt.dest, false}).run(n, patience); got != tt.want {
			t.Errorf("out of a Service to another node, without masquerade of pods: the listener sees %q, want %q", got, tt.want)
		}
	}
	n.in(n.pods, func() {
		if got := received(t, "InRedirects"); got != 0 {
			t.Errorf("the pods were told %d times of a shorter way", got)
		}
	})
}

// received is the sum of the namespace's counters of ICMP messages of both families with a name such as InRedirects.
func received(t *testing.T, name string) (sum int) {
	t.Helper()
	add := func(value string) {
		n, err := strconv.Atoi(value)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	lines := func(file string) []string {
		data, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(string(data), "\n")
	}
	var names []string
	for _, line := range lines("snmp") {
		switch fields := strings.Fields(line); {
		case len(fields) == 0 || fields[0] != "Icmp:":
		case names == nil:
			names = fields
		default:
			add(fields[slices.Index(names, name)])
		}
	}
	for _, line := range lines("snmp6") {
		if value, ok := strings.CutPrefix(line, "Icmp6"+name); ok {
			add(strings.TrimSpace(value))
		}
	}
	return sum
}

// TestReject: packets to the Reject address are rejected at once, also while a process of the node listens at all
// addresses.
func TestReject(t *testing.T) {
	n := newServiceNode(t, withServices())
	_, stop := attempt{network: "tcp", at: n.here(), listen: ":80"}.serve(n)
	defer stop()
	_, stopUDP := attempt{network: "udp", at: n.here(), listen: ":80"}.serve(n)
	defer stopUDP()
	for _, tt := range []struct{ network, source, dest string }{
		{"tcp", "169.254.87.2", "169.254.87.3:80"},
		{"tcp", "169.254.87.2", "169.254.87.3:30080"}, // also a node port
		{"tcp", "10.244.1.7", "169.254.87.3:80"},
		{"udp", "169.254.87.2", "169.254.87.3:80"},
		{"udp", "10.244.1.7", "169.254.87.3:80"},
		{"tcp", "fd57:6566:7400::2", "[fd57:6566:7400::3]:80"},
		{"tcp", "fd00:10:1::7", "[fd57:6566:7400::3]:80"},
		{"udp", "fd57:6566:7400::2", "[fd57:6566:7400::3]:80"},
		{"udp", "fd00:10:1::7", "[fd57:6566:7400::3]:80"},
	} {
		n.in(n.pods, func() {
			d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(tt.source)}}
			if tt.network == "udp" {
				d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(tt.source)}
			}
			began, before := time.Now(), received(t, "InDestUnreachs")
			c, err := d.DialContext(t.Context(), tt.network, tt.dest)
			if err == nil {
				defer c.Close()
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				_, err = c.Read(make([]byte, 1))
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s from %s to %s: error %v after %s, want connection refused", tt.network, tt.source, tt.dest, err,
					time.Since(began))
			}
			if unreachable := received(t, "InDestUnreachs") > before; unreachable != (tt.network == "udp") {
				t.Errorf("%s from %s to %s: ICMP unreachable: %t; TCP wants a reset", tt.network, tt.source, tt.dest, unreachable)
			}
		})
	}
	// Without nftables, nothing follows the default route.
	n.run("nft flush ruleset")
	for _, addr := range []string{"169.254.87.3", "fd57:6566:7400::3"} {
		dest := net.JoinHostPort(addr, "80")
		if c, err := net.DialTimeout("tcp", dest, patience); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("the node to %s: %v, %v, want no route to host", dest, c, err)
		}
	}
}

// TestForgottenAnswer: a Service's reply is not sent with a virtual address when the kernel has lost the connection.
func TestForgottenAnswer(t *testing.T) {
	n := newServiceNode(t, withServices())
	for _, tt := range []struct {
		source, dest string
		family       netlink.InetFamily
	}{{"169.254.87.2", "192.0.2.1:8080", unix.AF_INET}, {"fd57:6566:7400::2", "[2001:db8::1]:8080", unix.AF_INET6}} {
		server, err := net.ListenPacket("udp", tt.dest)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		var client net.Conn
		n.in(n.pods, func() {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(tt.source)}}
			if client, err = d.DialContext(t.Context(), "udp", tt.dest); err != nil {
				t.Fatal(err)
			}
		})
		t.Cleanup(func() { client.Close() })
		deadline := time.Now().Add(patience)
		if err := errors.Join(server.SetDeadline(deadline), client.SetDeadline(deadline)); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_, from, err := server.ReadFrom(make([]byte, 1))
		if err != nil {
			t.Fatal(err)
		}
		if flushed, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, tt.family, everyFlow{}); err != nil ||
			flushed == 0 {
			t.Fatalf("%d connections forgotten, %v", flushed, err)
		}
		if _, err := server.WriteTo([]byte("y"), from); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(make([]byte, 1)); err != nil {
			t.Errorf("%s has no answer from %s: %v", tt.source, tt.dest, err)
		}
	}
}

// everyFlow matches all connections.
type everyFlow struct{}

func (everyFlow) MatchConntrackFlow(*netlink.ConntrackFlow) bool { return true }

// TestForgedSource: no host outside can send as the switch.
func TestForgedSource(t *testing.T) {
	n := newServiceNode(t, withServices())
	n.run("echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/eth0/rp_filter")
	n.in(n.out, func() {
		n.run("ip addr add 169.254.87.2/32 dev out0; ip -6 addr add fd57:6566:7400::2/128 dev out0 nodad")
	})
	here := n.here()
	for _, tt := range []struct{ source, dest string }{{"169.254.87.2", "192.0.2.1:8080"},
		{"fd57:6566:7400::2", "[2001:db8::1]:8080"}} {
		if got := (attempt{"", "udp", n.out, tt.source, tt.dest, here, tt.dest, true}).run(n, brevity); got != "" {
			t.Errorf("a packet from outside arrived from %s", got)
		}
		if got := (attempt{"", "udp", n.out, "", tt.dest, here, tt.dest, false}).run(n, patience); got == "" {
			t.Errorf("nothing arrives at %s: the test sees nothing", tt.dest)
		}
	}
}
