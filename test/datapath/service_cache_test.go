//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/podns"
)

var translatedTo = regexp.MustCompile(`nat\(dst=([0-9.]+):`)

// sentTo are the addresses that a node's datapath translates to, in the decisions that it keeps.
func (c *changing) sentTo(node string) []netip.Addr {
	var addrs []netip.Addr
	for _, m := range translatedTo.FindAllStringSubmatch(c.Run("node/"+node, "ovs-appctl", "dpctl/dump-flows"), -1) {
		addrs = append(addrs, netip.MustParseAddr(m[1]))
	}
	return addrs
}

// No decision in the datapath's cache outlives the flows that it came from. Three endpoints and four are told apart by
// different numbers of bits of a connection's hash (see flows.places), so that decisions overlap: then Open vSwitch
// 3.1's userspace datapath changes the wrong ones, and keeps sending connections to an endpoint that is gone for as
// long as they come.
func TestServiceCache(t *testing.T) {
	three := []string{web("a", "node1"), web("b", "node2"), web("c", "node3")}
	four := append(slices.Clone(three), web("d", "node1"))
	c := upChanging(t, "svccache", "", three...)
	from := c.clients[0]
	to := c.at(from, podns.TCP)
	const rounds = 5
	seen := 0
	for range rounds {
		for range 30 { // a few of 256 decisions
			from.ask(t, podns.TCP, to)
		}
		c.become(t, four...)
		var gone netip.Addr
		for _, p := range c.Status().Pods {
			if p.Name == "d" {
				gone = p.IPs[0]
			}
		}
		// Most of 16, and for longer than the datapath takes to look there first.
		for range 75 {
			from.ask(t, podns.TCP, to)
			time.Sleep(20 * time.Millisecond)
		}
		if slices.Contains(c.sentTo("node1"), gone) {
			seen++
		}
		c.replace(t, three...)
		// It forgets what was not used for ten seconds.
		testenv.Eventually(t, 2*time.Second, func() error {
			if left := slices.DeleteFunc(c.sentTo("node1"), func(a netip.Addr) bool { return a != gone }); len(left) > 0 {
				return fmt.Errorf("node1 keeps %d decisions to send to %s, which is gone", len(left), gone)
			}
			return nil
		})
		for range 100 {
			from.ask(t, podns.TCP, to)
		}
	}
	if seen == 0 {
		t.Errorf("in %d rounds the fourth endpoint was never among the decisions: the test looks for the wrong thing", rounds)
	}
}

// A node that connects to one endpoint from one port again and again is served again and again, also when the endpoint
// has closed its side first. (Translated to the address that it has, such a connection ends Open vSwitch 3.1's
// userspace datapath: "assertion conn->conn_type == CT_CONN_TYPE_DEFAULT failed".) A client from outside, which has
// another address on its way, may use that same port meanwhile.
func TestSamePortAgain(t *testing.T) {
	c := upChanging(t, "svcport", "", web("a", "node1"))
	var endpoint netip.Addr
	for _, p := range c.Status().Pods {
		if p.Name == "a" {
			endpoint = p.IPs[0]
		}
	}
	host, outside := c.clients[1], c.clients[2]
	direct, service := netip.AddrPortFrom(endpoint, 8080), c.at(host, podns.TCP)
	for round := range 10 {
		// The port of an ephemeral connection, and one that a program chose.
		for _, port := range []int{40000, 2000} {
			for _, one := range []struct {
				from *client
				to   netip.AddrPort
			}{{host, direct}, {outside, c.at(outside, podns.TCP)}, {host, service}} {
				if err := one.from.connectFrom(port, one.to); err != nil {
					t.Fatalf("round %d, from %s port %d to %s: %v", round, one.from.name, port, one.to, err)
				}
			}
		}
	}
	for _, n := range c.Status().Nodes {
		if n.Problem != "" {
			t.Errorf("%s: %s", n.Name, n.Problem)
		}
	}
}

// connectFrom makes a connection from a port, reads the answer, and closes it when the server has.
func (c *client) connectFrom(port int, to netip.AddrPort) error {
	return c.ns.Do(func() (err error) {
		patience := testenv.Patience(5 * time.Second)
		dialer := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{Port: port}, Control: reuseAddr}
		conn, err := dialer.Dial("tcp", to.String())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conn.Close()) }()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		answer, err := io.ReadAll(conn)
		if err == nil && len(answer) == 0 {
			err = errors.New("an empty answer")
		}
		return err
	})
}

func reuseAddr(_, _ string, raw syscall.RawConn) error {
	var set error
	err := raw.Control(func(fd uintptr) {
		set = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	})
	return errors.Join(err, set)
}

// When a node has forgotten a connection to its node port, the endpoint's next words do not leave it: they would have
// an address that means nothing beyond the node, or the pod's. The client's next words make the connection known again.
func TestForgottenNodePort(t *testing.T) {
	c := upChanging(t, "svcforgt", "", web("a", "node1"))
	endpoint, outside := openClient(t, c.Status(), "a", "node1", "pod"), c.clients[2]
	var l net.Listener
	if err := endpoint.ns.Do(func() (err error) { l, err = net.Listen("tcp", ":7100"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	to := netip.AddrPortFrom(c.at(outside, podns.TCP).Addr(), c.echoPort)
	patience := testenv.Patience(5 * time.Second)
	var client net.Conn
	if err := outside.ns.Do(func() (err error) {
		client, err = net.DialTimeout("tcp", to.String(), patience)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	say := func(from, to net.Conn) {
		t.Helper()
		if _, err := from.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := to.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := to.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	say(client, server)
	say(server, client)

	strangers := outside.listen(t, "", func(h heard) bool {
		return h.src.Port() != 0 && h.src.Addr() != to.Addr() && !slices.Contains(outside.ips, h.src.Addr())
	})
	forgetAll(t, c, "node2")
	if _, err := server.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	// It leaves the endpoint a second and a third time, since it is not acknowledged.
	testenv.Eventually(t, 10*time.Second, func() error {
		if n := repeated(t, server); n < 2 {
			return fmt.Errorf("the endpoint has repeated its words %d times", n)
		}
		return nil
	})
	for _, h := range strangers.heard(func(heard) bool { return true }) {
		t.Errorf("beyond the node: a packet from %s to %s", h.src, h.dst)
	}
	say(client, server)
	if err := client.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Errorf("what the endpoint said meanwhile does not arrive any more: %v", err)
	}
}

// repeated is how many segments the kernel has sent again on a TCP connection.
func repeated(t *testing.T, conn net.Conn) uint32 {
	t.Helper()
	socket, ok := conn.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T is not a TCP connection", conn)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var asked error
	if err := raw.Control(func(fd uintptr) {
		info, asked = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO)
	}); err != nil {
		t.Fatal(err)
	}
	if asked != nil {
		t.Fatal(asked)
	}
	return info.Total_retrans
}

// forgetAll empties connection tracking in a node's kernel, as its timeouts would, but not the zones of a switch that
// is there, too.
func forgetAll(t *testing.T, c *changing, node string) {
	t.Helper()
	for _, n := range c.Status().Nodes {
		if n.Name != node {
			continue
		}
		ns, err := podns.Open(fmt.Sprintf("/proc/%d/ns/net", n.Sandbox.Holder.PID))
		if err == nil {
			err = errors.Join(ns.Do(func() error {
				var hosts netlink.ConntrackFilter
				if err := hosts.AddZone(0); err != nil {
					return err
				}
				forgotten, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, &hosts)
				if err == nil && forgotten == 0 {
					err = errors.New("there is nothing to forget")
				}
				return err
			}), ns.Close())
		}
		if err != nil {
			t.Fatalf("empty connection tracking of %s: %v", node, err)
		}
	}
}
