//go:build integration

package datapath

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/podns"
)

// ask makes one connection and returns who answered.
func (c *client) ask(t *testing.T, proto podns.Proto, to netip.AddrPort) string {
	t.Helper()
	answer, err := c.outcome(proto, to, 5*time.Second)
	if err != nil || answer.Outcome != podns.Answered {
		t.Fatalf("from %s to %s/%s: %s (%s), %v", c.name, to, proto, answer.Outcome, answer.Detail, err)
	}
	return answer.Name
}

// A client comes back to the endpoint that it had: from its second connection on, while endpoints are added, while its
// node's agent is restarted; and to another when its own is gone.
func TestServiceAffinity(t *testing.T) {
	endpoints := []string{web("a", "node1"), web("b", "node2"), web("c", "node3")}
	c := upChanging(t, "svcaff", "\n  sessionAffinity: ClientIP", endpoints...)
	had := map[string]string{}
	key := func(from *client, proto podns.Proto) string { return fmt.Sprintf("%s %s", from.name, proto) }
	each := func(f func(from *client, proto podns.Proto)) {
		for _, from := range c.clients {
			for _, proto := range []podns.Proto{podns.TCP, podns.UDP} {
				f(from, proto)
			}
		}
	}
	stays := func(when string) {
		t.Helper()
		each(func(from *client, proto podns.Proto) {
			to := c.at(from, proto)
			for range 20 {
				if got := from.ask(t, proto, to); got != had[key(from, proto)] {
					t.Fatalf("%s: %s is sent to %s, was sent to %s before", when, key(from, proto), got, had[key(from, proto)])
				}
			}
		})
	}
	each(func(from *client, proto podns.Proto) { had[key(from, proto)] = from.ask(t, proto, c.at(from, proto)) })
	t.Logf("endpoints: %v", had)
	stays("from the second connection on")
	for i, node := range []string{"node1", "node2", "node3"} {
		endpoints = append(endpoints, web(fmt.Sprintf("d%d", i), node), web(fmt.Sprintf("e%d", i), node))
	}
	c.become(t, endpoints...)
	stays("after six endpoints more")
	c.restartAgents(t, func() { stays("while the agents are away") })
	stays("after the agents came back")
	// What the clients had goes; they choose again, and stay there.
	endpoints = slices.DeleteFunc(endpoints, func(text string) bool {
		for _, name := range had {
			if isOf(text, strings.TrimPrefix(name, "default/")) {
				return true
			}
		}
		return false
	})
	c.replace(t, endpoints...)
	each(func(from *client, proto podns.Proto) {
		now := from.ask(t, proto, c.at(from, proto))
		if now == had[key(from, proto)] {
			t.Errorf("%s is still sent to %s, which is gone", key(from, proto), now)
		}
		had[key(from, proto)] = now
	})
	stays("after the endpoint was gone")
}

// Affinity ends with its timeout, and not before as long as the client comes back.
func TestServiceAffinityTimeout(t *testing.T) {
	const timeout = 4 * time.Second
	endpoints := []string{web("a", "node1"), web("b", "node2"), web("c", "node3")}
	c := upChanging(t, "svcexp",
		fmt.Sprintf("\n  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: %d}}",
			int(timeout.Seconds())), endpoints...)
	from := c.clients[0]
	to := c.at(from, podns.TCP)
	had := from.ask(t, podns.TCP, to)
	for i := range 12 {
		endpoints = append(endpoints, web(fmt.Sprintf("d%d", i), "node2"))
	}
	c.become(t, endpoints...)
	learned := func() int {
		return strings.Count(c.Run("node/node1", "ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "weft", "table=35"),
			"cookie=")
	}
	for end := time.Now().Add(3 * timeout); time.Now().Before(end); time.Sleep(timeout / 4) {
		if got := from.ask(t, podns.TCP, to); got != had {
			t.Fatalf("a client that comes back every %s is sent to %s, was sent to %s before", timeout/4, got, had)
		}
		if learned() == 0 {
			t.Fatalf("affinity of %s ended although the client came back every %s", timeout, timeout/4)
		}
	}
	testenv.Eventually(t, 3*timeout, func() error {
		if n := learned(); n > 0 {
			return fmt.Errorf("%d learned flows", n)
		}
		return nil
	})
}

// A datagram socket goes on after its endpoint is gone: the next datagrams of the same socket reach another.
func TestServiceUDPEndpointGone(t *testing.T) {
	endpoints := map[string]string{"default/a": web("a", "node1"), "default/b": web("b", "node2"),
		"default/c": web("c", "node3")}
	c := upChanging(t, "svcudp", "", endpoints["default/a"], endpoints["default/b"], endpoints["default/c"])
	type socket struct {
		from *client
		conn *net.UDPConn
		had  string
	}
	var sockets []socket
	for _, from := range c.clients {
		to := net.UDPAddrFromAddrPort(c.at(from, podns.UDP))
		s := socket{from: from}
		if err := from.ns.Do(func() (err error) { s.conn, err = net.DialUDP("udp", nil, to); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.conn.Close() })
		testenv.Eventually(t, 5*time.Second, func() (err error) { s.had, err = askAgain(s.conn); return err })
		for range 5 {
			if got, err := askAgain(s.conn); err != nil || got != s.had {
				t.Fatalf("a socket of %s reaches %s (%v), and reached %s before", from.name, got, err, s.had)
			}
		}
		sockets = append(sockets, s)
	}
	// The endpoints go one after the other, until one is left.
	for _, gone := range []string{sockets[0].had, "default/a", "default/b", "default/c"} {
		if len(endpoints) == 1 || endpoints[gone] == "" {
			continue
		}
		delete(endpoints, gone)
		var left []string
		for _, text := range endpoints {
			left = append(left, text)
		}
		c.become(t, left...)
		for i := range sockets {
			s := &sockets[i]
			before := s.had
			begin := time.Now()
			testenv.Eventually(t, 5*time.Second, func() (err error) { s.had, err = askAgain(s.conn); return err })
			switch {
			case s.had == gone:
				t.Errorf("a socket of %s is answered by %s, which is gone", s.from.name, gone)
			case before != gone && s.had != before:
				t.Errorf("a socket of %s is sent from %s to %s when %s goes", s.from.name, before, s.had, gone)
			case before == gone:
				t.Logf("a socket of %s goes from %s to %s, %s after it is gone", s.from.name, before, s.had,
					time.Since(begin).Round(time.Millisecond))
			}
		}
	}
}

// askAgain sends a datagram from a socket and reads who answers. Answers that came too late for the datagram before are
// not meant.
func askAgain(conn *net.UDPConn) (string, error) {
	buf := make([]byte, 512)
	late := conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	for late == nil {
		_, late = conn.Read(buf)
	}
	if err := conn.SetReadDeadline(time.Now().Add(testenv.Patience(300 * time.Millisecond))); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("?")); err != nil {
		return "", err
	}
	n, err := conn.Read(buf)
	if err != nil {
		return "", err
	}
	answer, err := podns.ParseAnswer(strings.TrimSpace(string(buf[:n])))
	return answer.Name, err
}

// Connections to an endpoint that terminates go on, and new ones go to others, as long as there are others.
func TestServiceTerminatingEndpoint(t *testing.T) {
	c := upChanging(t, "svcterm", "", web("a", "node1"), web("b", "node2"))
	s := c.Status()
	for _, name := range []string{"a", "b"} {
		pod := openClient(t, s, name, "", "pod")
		var l net.Listener
		if err := pod.ns.Do(func() (err error) { l, err = net.Listen("tcp", ":7100"); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go echo(l, name)
	}
	from := c.clients[0]
	to := netip.AddrPortFrom(c.service.ips[0], 81).String()
	open := map[string]net.Conn{}
	for len(open) < 2 {
		var conn net.Conn
		if err := from.ns.Do(func() (err error) {
			conn, err = net.DialTimeout("tcp", to, 5*time.Second)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		name, err := sayTo(conn)
		if err != nil {
			t.Fatal(err)
		}
		open[name] = conn
	}
	talk := func(when string) {
		t.Helper()
		for name, conn := range open {
			for range 10 {
				if got, err := sayTo(conn); err != nil || got != name {
					t.Fatalf("%s, the connection to %s: %q, %v", when, name, got, err)
				}
			}
		}
	}
	goTo := func(when string, want ...string) {
		t.Helper()
		seen := map[string]bool{}
		// The agents learn of it a moment after the lab has said so.
		testenv.Eventually(t, 5*time.Second, func() error {
			clear(seen)
			for range 30 {
				name := from.ask(t, podns.TCP, c.at(from, podns.TCP))
				if !slices.Contains(want, name) {
					return fmt.Errorf("%s, a new connection went to %s, want %v", when, name, want)
				}
				seen[name] = true
			}
			if len(seen) != len(want) {
				return fmt.Errorf("%s, new connections went to %v, want %v", when, seen, want)
			}
			return nil
		})
	}
	goTo("at first", "default/a", "default/b")
	c.become(t, leaving("a", "node1"), web("b", "node2"))
	goTo("while a terminates", "default/b")
	talk("while a terminates")
	c.become(t, leaving("a", "node1"), leaving("b", "node2"))
	goTo("while both terminate", "default/a", "default/b")
	talk("while both terminate")
}

// echo says who it is for every byte that it gets.
func echo(l net.Listener, name string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			for b := make([]byte, 1); ; {
				if _, err := conn.Read(b); err != nil {
					return
				}
				if _, err := conn.Write([]byte(name)); err != nil {
					return
				}
			}
		}()
	}
}

func sayTo(conn net.Conn) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return "", err
	}
	b := make([]byte, 16)
	n, err := conn.Read(b)
	return string(b[:n]), err
}

// All endpoints are replaced by others, again and again, while clients inside and outside make new connections all the
// while: not one fails.
func TestServiceRollingReplacement(t *testing.T) {
	generation := func(n int) []string {
		var texts []string
		for i, node := range []string{"node1", "node2", "node3", "node1"} {
			texts = append(texts, web(fmt.Sprintf("g%d-%d", n, i), node))
		}
		return texts
	}
	c := upChanging(t, "svcroll", "", generation(0)...)
	var done atomic.Bool
	var mu sync.Mutex
	reached, failed := map[string]int{}, []string(nil)
	var loops sync.WaitGroup
	for _, from := range c.clients {
		for _, proto := range []podns.Proto{podns.TCP, podns.UDP} {
			to := c.at(from, proto)
			loops.Go(func() {
				// With pauses: the agents need the processor, too.
				for ; !done.Load(); time.Sleep(testenv.Patience(5 * time.Millisecond)) {
					answer, err := from.outcome(proto, to, 5*time.Second)
					mu.Lock()
					if err != nil || answer.Outcome != podns.Answered {
						failed = append(failed, fmt.Sprintf("%s from %s to %s/%s: %s %s %v", time.Now().Format("15:04:05.000"), from.name,
							to, proto, answer.Outcome, answer.Detail, err))
					}
					reached[answer.Name]++
					mu.Unlock()
				}
			})
		}
	}
	for n := range 4 {
		c.replace(t, generation(n+1)...)
		t.Logf("%s generation %d stands", time.Now().Format("15:04:05.000"), n+1)
	}
	done.Store(true)
	loops.Wait()
	total := 0
	for _, n := range reached {
		total += n
	}
	t.Logf("%d connections to %d endpoints, %d failed", total, len(reached), len(failed))
	for _, text := range failed[:min(20, len(failed))] {
		t.Error(text)
	}
	if len(reached) < 12 {
		t.Errorf("only %d of 20 endpoints were reached: %v", len(reached), reached)
	}
}

// rewrite replaces the manifest of a lab in a directory that labtest.Write made.
func rewrite(t *testing.T, dir, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
