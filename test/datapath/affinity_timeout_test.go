//go:build integration

package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

// stickyTimeout is the affinity of the test's Service.
const stickyTimeout = 8 * time.Second

// stickyWay is one of the ways in which a client asks the Service; the switch remembers each by itself.
type stickyWay struct {
	kind  targetKind
	v4    bool
	proto podns.Proto
}

func (w stickyWay) String() string { return fmt.Sprintf("%s %s %s", w.kind, familyName(w.v4), w.proto) }

// stickyClient is a client with what it has seen. It belongs to one goroutine at a time.
type stickyClient struct {
	*client
	had    map[stickyWay]string
	last   map[stickyWay]time.Time // when it had asked last
	rounds atomic.Int64
	port   atomic.Int32 // the next source port
}

// ask makes a connection from a source port that no other has, of this client or of one that a gateway hides behind
// the same address, and returns who answers. How soon a port may be used again is another test's matter.
func (c *stickyClient) ask(w stickyWay, to netip.AddrPort) (string, error) {
	port := int(c.port.Add(1))
	deadline := time.Now().Add(testenv.Patience(5 * time.Second))
	dialer := net.Dialer{Deadline: deadline, LocalAddr: &net.TCPAddr{Port: port}}
	if w.proto == podns.UDP {
		dialer.LocalAddr = &net.UDPAddr{Port: port}
	}
	var conn net.Conn
	if err := c.ns.Do(func() (err error) {
		conn, err = dialer.Dial(strings.ToLower(string(w.proto)), to.String())
		return err
	}); err != nil {
		return "", fmt.Errorf("%s by %s: %w", c.name, w, err)
	}
	defer conn.Close()
	if udp, ok := conn.(*net.UDPConn); ok {
		for {
			if name, err := askAgain(udp); err == nil || time.Now().After(deadline) {
				return name, err
			}
		}
	}
	if err := conn.SetReadDeadline(deadline); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%s by %s: %w", c.name, w, err)
	}
	answer, err := podns.ParseAnswer(strings.TrimSpace(line))
	return answer.Name, err
}

// stickyLab is a lab with a Service that has affinity.
type stickyLab struct {
	*changing
	node1   []netip.Addr
	keepers []*stickyClient // they come back often
	leavers []*stickyClient // they stay away for longer than the timeout
}

func upSticky(t *testing.T, timeout time.Duration, endpoints ...string) *stickyLab {
	t.Helper()
	c := &changing{now: slices.Clone(endpoints), service: tableService{name: "web"}}
	keepers, leavers := []string{"k0", "k1", "k2"}, []string{"l0", "l1", "l2", "l3", "l4"}
	for _, name := range slices.Concat(keepers, leavers) {
		c.base += podManifest(name, "client", "node1", 9, "")
	}
	c.base += fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: %d}}
  ports: [{name: tcp, port: 80, targetPort: tcp}, {name: udp, port: 80, targetPort: udp, protocol: UDP}]
`, int(timeout.Seconds()))
	dir := labtest.Write(t, map[string]string{"f.yaml": c.base + strings.Join(endpoints, "")})
	c.file = filepath.Join(dir, "f.yaml")
	c.Lab = labtest.Up(t, "svcends", "-f", c.file, "--nodes=2", "--ip-family=dual")
	s := c.Status()
	c.service.take(t, s)
	l := &stickyLab{changing: c}
	for _, n := range s.Nodes {
		if n.Name == "node1" {
			l.node1 = n.Addrs
		}
	}
	// The agent writes node ports to nftables after the flows by which the lab counts as programmed.
	testenv.Eventually(t, 30*time.Second, func() error {
		table := c.Run("node/node1", "nft", "list", "table", "inet", "weft")
		for proto, port := range c.service.ports {
			element := fmt.Sprintf("%s . %d : ", strings.ToLower(string(proto)), port)
			if n := strings.Count(table, element); n < 2 {
				return fmt.Errorf("nftables has node port %d/%s in %d of 2 families", port, proto, n)
			}
		}
		return nil
	})
	opened := 0
	open := func(name, node, kind string) *stickyClient {
		c := &stickyClient{client: openClient(t, s, name, node, kind), had: map[stickyWay]string{},
			last: map[stickyWay]time.Time{}}
		opened++
		c.port.Store(int32(3000 * opened))
		return c
	}
	for _, name := range keepers {
		l.keepers = append(l.keepers, open(name, "node1", "pod"))
	}
	for _, name := range leavers {
		l.leavers = append(l.leavers, open(name, "node1", "pod"))
	}
	l.leavers = append(l.leavers, open("outside", "", "outside"))
	return l
}

// ways are the ways of a client: from outside only the node port is served.
func (l *stickyLab) ways(c *stickyClient) []stickyWay {
	var ways []stickyWay
	for _, kind := range []targetKind{clusterIP, nodePort} {
		for _, v4 := range []bool{true, false} {
			for _, proto := range []podns.Proto{podns.TCP, podns.UDP} {
				if kind == nodePort || c.kind == "pod" {
					ways = append(ways, stickyWay{kind, v4, proto})
				}
			}
		}
	}
	return ways
}

func (l *stickyLab) to(w stickyWay) netip.AddrPort {
	if w.kind == nodePort {
		return netip.AddrPortFrom(of(l.node1, w.v4), l.service.ports[w.proto])
	}
	return netip.AddrPortFrom(of(l.service.ips, w.v4), 80)
}

// burst opens many connections of each client at once and returns the one endpoint that each of them met.
func (l *stickyLab) burst(w stickyWay, clients []*stickyClient) (map[*stickyClient]string, error) {
	const connections = 6
	var mu sync.Mutex
	var errs []error
	met := map[*stickyClient]string{}
	begin := make(chan struct{})
	var asking sync.WaitGroup
	for _, c := range clients {
		if !slices.Contains(l.ways(c), w) {
			continue
		}
		for range connections {
			asking.Go(func() {
				<-begin
				name, err := c.ask(w, l.to(w))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					errs = append(errs, err)
				case met[c] == "":
					met[c] = name
				case met[c] != name:
					errs = append(errs, fmt.Errorf("connections of %s by %s that began at once met %s and %s", c.name, w, met[c],
						name))
				}
			})
		}
	}
	close(begin)
	asking.Wait()
	return met, errors.Join(errs...)
}

// keepComing asks by each way again and again, and finds the endpoint that was there before.
func (l *stickyLab) keepComing(t *testing.T, c *stickyClient, done *atomic.Bool) {
	for !done.Load() {
		for _, w := range l.ways(c) {
			begun := time.Now()
			name, err := c.ask(w, l.to(w))
			switch away := begun.Sub(c.last[w]); {
			case err != nil:
				t.Error(err)
				return
			case name != c.had[w] && away < stickyTimeout-time.Second:
				t.Errorf("%s by %s came back after %s: met %s, had %s", c.name, w, away, name, c.had[w])
				return
			case name != c.had[w]: // the machine was too slow to keep coming
				t.Logf("%s by %s was away for %s: from %s to %s", c.name, w, away, c.had[w], name)
			}
			c.had[w], c.last[w] = name, time.Now()
		}
		c.rounds.Add(1)
		time.Sleep(stickyTimeout / 16) // others need the processor, too
	}
}

// cameBack waits until every keeper has come back twice from now on.
func (l *stickyLab) cameBack(t *testing.T) {
	t.Helper()
	for _, c := range l.keepers {
		begun := c.rounds.Load()
		testenv.Eventually(t, 30*time.Second, func() error {
			if n := c.rounds.Load() - begun; n < 2 {
				return fmt.Errorf("%s has come back %d times", c.name, n)
			}
			return nil
		})
	}
}

// forgotten waits until the switch remembers nothing of those who stay away.
func (l *stickyLab) forgotten(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, 3*stickyTimeout, func() error {
		learned := l.Run("node/node1", "ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "weft", "table=35")
		for _, c := range l.leavers {
			for _, ip := range c.ips {
				if strings.Contains(learned, "_src="+ip.String()+",") {
					return fmt.Errorf("%s is remembered", c.name)
				}
			}
		}
		return nil
	})
}

// TestAffinityEnds: all connections of a client meet one endpoint, those of a burst, too, for as long as it comes
// back within the timeout: while time passes, endpoints come and the agents are restarted. Clients that stay away for
// longer may meet others, by every way.
func TestAffinityEnds(t *testing.T) {
	endpoints := []string{web("a", "node1"), web("b", "node2"), web("c", "node2")}
	l := upSticky(t, stickyTimeout, endpoints...)
	all := slices.Concat(l.keepers, l.leavers)
	for _, w := range l.ways(l.keepers[0]) {
		met, err := l.burst(w, all)
		if err != nil {
			t.Fatal("at the start: ", err)
		}
		for c, name := range met {
			c.had[w], c.last[w] = name, time.Now()
		}
	}
	var done atomic.Bool
	var coming sync.WaitGroup
	for _, c := range l.keepers {
		coming.Go(func() { l.keepComing(t, c, &done) })
	}
	defer coming.Wait()
	defer done.Store(true)

	moved := map[stickyWay]int{}
	begun := time.Now()
	testenv.Eventually(t, 10*stickyTimeout, func() error {
		l.forgotten(t)
		for _, w := range l.ways(l.keepers[0]) {
			met, err := l.burst(w, l.leavers)
			if err != nil {
				t.Fatal("after a pause: ", err)
			}
			for c, name := range met {
				if name != c.had[w] {
					moved[w]++
				}
				c.had[w] = name
			}
		}
		for _, w := range l.ways(l.keepers[0]) {
			if moved[w] == 0 {
				return fmt.Errorf("by %s no client has met another endpoint in %s although all were forgotten", w,
					time.Since(begun).Round(time.Second))
			}
		}
		return nil
	})
	t.Logf("after pauses clients met other endpoints: %v", moved)

	for i := range 6 {
		endpoints = append(endpoints, web(fmt.Sprintf("d%d", i), fmt.Sprintf("node%d", 1+i%2)))
	}
	l.become(t, endpoints...)
	l.cameBack(t)
	l.restartAgents(t, func() { l.cameBack(t) })
	// Until time has passed for the new agents, too.
	restarted := time.Now()
	testenv.Eventually(t, 4*stickyTimeout, func() error {
		l.cameBack(t)
		if age := time.Since(restarted); age < 2*stickyTimeout {
			return fmt.Errorf("the agents came back %s ago", age)
		}
		return nil
	})
	done.Store(true)
	coming.Wait()
	for _, c := range l.keepers {
		t.Logf("%s came back %d times", c.name, c.rounds.Load())
	}
}

// TestAffinityForgotten: what the switch remembers of clients ends with the Service's affinity, long before its
// timeout, also while clients ask.
func TestAffinityForgotten(t *testing.T) {
	endpoints := []string{web("a", "node1"), web("b", "node2")}
	l := upSticky(t, 3*time.Hour, endpoints...)
	learned := func() int {
		return strings.Count(l.Run("node/node1", "ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "weft", "table=35"),
			"cookie=")
	}
	ways := l.ways(l.keepers[0])
	ask := func() {
		t.Helper()
		for _, w := range ways {
			if _, err := l.burst(w, l.keepers); err != nil {
				t.Fatal(err)
			}
		}
	}
	ask()
	if n, want := learned(), len(ways)*len(l.keepers); n != want {
		t.Fatalf("the switch remembers %d flows, want %d", n, want)
	}
	before, after, ok := strings.Cut(l.base, "  sessionAffinity: ClientIP\n")
	_, after, ok2 := strings.Cut(after, "\n") // its timeout
	if !ok || !ok2 {
		t.Fatalf("no affinity in %s", l.base)
	}
	l.base = before + after
	l.become(t, endpoints...)
	testenv.Eventually(t, 10*time.Second, func() error {
		if n := learned(); n > 0 {
			return fmt.Errorf("the switch still remembers %d flows", n)
		}
		return nil
	})
	for _, w := range ways {
		_, _ = l.burst(w, l.keepers) // which meet different endpoints now
	}
	if n := learned(); n > 0 {
		t.Errorf("the switch remembers %d flows again", n)
	}
}
