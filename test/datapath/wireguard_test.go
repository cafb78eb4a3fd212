//go:build integration

package datapath

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/podns"
)

// TestWireGuard: encryption is turned on and off node by node on a cluster that runs, without losing a packet but those
// that Open vSwitch loses whenever a route of the kernel changes (see changeTransport). While it
// is strict, no header of a pod's packet is on the underlay in clear, whatever pods, nodes and clients outside do, and
// policies see the sources that they see through tunnels. A pod's address that is another node's is refused; a node
// that does not encrypt is unreachable and named, and what it sends is dropped and counted; a node that comes back with
// a new key is reached again within seconds: 0.6 to 0.8 on a machine of its own, 1.9 beside other work.
func TestWireGuard(t *testing.T) {
	m := up(t, lab.Dual, model.Geneve, "--set=mtu=1400", "--set=encryptionStrict=false")
	m.mtu = 1400
	underlay := m.listenUnderlay(t)
	m.Run("a-node1", "ping", "-c1", of(m.pods["a-node2"].IPs, true).String())
	if inClear, _ := underlay.counts(); inClear == 0 {
		t.Fatal("packets in a tunnel are not seen in clear, so nothing would be")
	}
	pings := m.pingAll(t)
	for _, n := range m.nodes {
		m.configure(t, n, "encryption", "wireguard")
	}
	for name := range m.nodes {
		m.wantDevice(t, name)
	}
	m.wantTransport(t, model.ModeOverlay, model.ModeWireGuard)
	m.encryptAll(t, "encryptionStrict", "true", "wireguard, strict")
	m.wantTransport(t, model.ModeOverlay, model.ModeWireGuard)
	wantAnswered(t, pings, onDatapath(0.01, 0))

	clearBefore, encryptedBefore := underlay.counts()
	t.Run("transport", m.transport)
	t.Run("sizes", m.sizes)
	t.Run("hosts", m.hosts)
	t.Run("sources", m.sourcesSeen)
	t.Run("forged", m.forgedInside)
	t.Run("key", m.newKey)
	clearAfter, encryptedAfter := underlay.counts()
	if clearAfter > clearBefore || encryptedAfter < encryptedBefore+1000 {
		t.Errorf("on the underlay: %d packets of pods in clear, %d encrypted", clearAfter-clearBefore, encryptedAfter-encryptedBefore)
	}
	t.Logf("on the underlay: %d packets of pods in clear, %d encrypted", clearAfter-clearBefore, encryptedAfter-encryptedBefore)
	t.Run("no key", m.notEncrypting)

	m.encryptAll(t, "encryptionStrict", "false", "wireguard")
	pings = m.pingAll(t)
	m.encryptAll(t, "encryption", "none", "")
	m.wantTransport(t, model.ModeOverlay, model.ModeOverlay)
	for name := range m.nodes { // after the grace
		testenv.Eventually(t, 30*time.Second, func() error {
			if links := m.Run("node/"+name, "ip", "-brief", "link"); strings.Contains(links, model.WireGuardName) {
				return fmt.Errorf("%s still has the device: %s", name, links)
			}
			return nil
		})
	}
	wantAnswered(t, pings, onDatapath(0.01, 0))
}

// wantDevice waits for the device of a node that is to encrypt. Where the kernel has no WireGuard, the agent says so,
// and takes the device that another program makes.
func (m mesh) wantDevice(t *testing.T, node string) {
	t.Helper()
	missing := false
	testenv.Eventually(t, 30*time.Second, func() error {
		s := m.status(t, node)
		missing = slices.ContainsFunc(s.Problems, func(p string) bool {
			return strings.HasPrefix(p, "WireGuard: this node's kernel has no WireGuard")
		})
		if !missing && !strings.Contains(m.Run("node/"+node, "ip", "-brief", "link"), model.WireGuardName) {
			return fmt.Errorf("%s has no device and no problem: %v", node, s.Problems)
		}
		return nil
	})
	if missing {
		m.standIn(t, node)
	}
}

// standIn makes the device of a node without the kernel, until it is deleted.
func (m mesh) standIn(t *testing.T, node string) {
	t.Helper()
	repo, err := testenv.Repository()
	if err != nil {
		t.Fatal(err)
	}
	program, err := testenv.Program(t.Context(), repo, "./test/lab/weft-wg", filepath.Dir(m.manifests))
	if err != nil {
		t.Fatal(err)
	}
	cmd := m.Exec("node/"+node, program)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // it ends with the device or with the lab
}

// encryptAll changes a setting on all nodes, whose agents find it at different times, and waits until each encrypts so.
func (m mesh) encryptAll(t *testing.T, key, value, encryption string) {
	t.Helper()
	for _, n := range m.nodes {
		m.configure(t, n, key, value)
	}
	for name := range m.nodes {
		testenv.Eventually(t, 30*time.Second, func() error {
			if s := m.status(t, name); s.Encryption != encryption {
				return fmt.Errorf("the encryption of %s is %q, want %q", name, s.Encryption, encryption)
			}
			return nil
		})
	}
}

// nodePairs are pods of each pair of nodes.
var nodePairs = [][2]string{{"a-node1", "a-node2"}, {"b-node2", "b-node3"}, {"a-node3", "b-node1"}}

// pingInterval is the flag for 100 pings a second, fewer on a slow machine: there, more would keep agents from their
// work.
func pingInterval() string { return "--interval=" + testenv.Patience(10*time.Millisecond).String() }

// pingAll starts pings between pods of all pairs of nodes, in both families.
func (m mesh) pingAll(t *testing.T) (pings []*session) {
	t.Helper()
	for _, pair := range nodePairs {
		for _, to := range m.pods[pair[1]].IPs {
			pings = append(pings, m.start(t, pair[0], "ping", pingInterval(), to.String()))
		}
	}
	return pings
}

// wantAnswered ends pings, of which at most this part may be lost.
func wantAnswered(t *testing.T, pings []*session, mostLost float64) {
	t.Helper()
	for _, p := range pings {
		var reply wire.SteadyReply
		p.stop(t, &reply)
		s := reply.Series[0]
		if lost := s.Sent - s.Received; s.Sent < 100 || s.SendErrors > 0 || float64(lost) > float64(s.Sent)*mostLost {
			t.Errorf("ping to %s: %d of %d answered, lost %v, longest gap %s, %d send errors (%s)", s.Addr, s.Received, s.Sent,
				s.Lost, s.LongestGap, s.SendErrors, s.FirstError)
		}
		t.Logf("ping to %s: %d sent, %d lost", s.Addr, s.Sent, s.Sent-s.Received)
	}
}

// underlayTap counts what is on the links of all nodes.
type underlayTap struct{ clear, encrypted atomic.Int64 }

func (u *underlayTap) counts() (inClear, encrypted int64) { return u.clear.Load(), u.encrypted.Load() }

// listenUnderlay counts packets of WireGuard, and all others with the header of a packet from a pod or gateway to a pod
// or gateway anywhere in them: fragments, ICMP errors and packets in tunnels, too.
func (m mesh) listenUnderlay(t *testing.T) *underlayTap {
	t.Helper()
	u := &underlayTap{}
	var v4, v6 []byte
	for _, n := range m.nodes {
		for _, c := range n.PodCIDRs { // what those of all nodes begin with
			if c.Addr().Is4() {
				v4 = c.Addr().AsSlice()[:2]
			} else {
				v6 = c.Addr().AsSlice()[:4]
			}
		}
	}
	header := func(frame, prefix []byte, length int) bool {
		for i := 0; ; i++ {
			next := bytes.Index(frame[i:], prefix)
			if next < 0 {
				return false
			}
			if i += next; len(frame) >= i+2*length && bytes.HasPrefix(frame[i+length:], prefix) {
				return true
			}
		}
	}
	port := []byte{51871 >> 8, 51871 & 0xff}
	for name, n := range m.nodes {
		ns, err := podns.Open(fmt.Sprintf("/proc/%d/ns/net", n.Sandbox.Holder.PID))
		if err != nil {
			t.Fatal(err)
		}
		c := &client{name: name, ns: ns}
		t.Cleanup(func() { c.ns.Close() })
		c.raw(t, "eth0", func(frame []byte) {
			switch {
			case header(frame, v4, 4) || header(frame, v6, 16):
				u.clear.Add(1)
			case len(frame) > 40 && bytes.Equal(frame[36:38], port):
				u.encrypted.Add(1)
			}
		})
	}
	return u
}

// raw hands all frames of an interface on.
func (c *client) raw(t *testing.T, iface string, take func(frame []byte)) {
	t.Helper()
	fd := -1
	if err := c.ns.Do(func() (err error) {
		fd, _, err = rawSocket(iface)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	tick := unix.NsecToTimeval((20 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick); err != nil {
		t.Fatal(err)
	}
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			select {
			case <-end:
				return
			default:
			}
			if n, _, err := unix.Recvfrom(fd, buf, 0); err == nil {
				take(buf[:n])
			}
		}
	}()
	t.Cleanup(func() {
		close(end)
		<-done
		_ = unix.Close(fd)
	})
}

// forgedInside: node3 sends to a pod of node1 with the address of a pod of node2 through WireGuard. The same with an
// address of its own arrives.
func (m mesh) forgedInside(t *testing.T) {
	m.Run("node/node3", "nft", "add table inet forge; add chain inet forge out { type filter hook output priority -350; }; "+
		"add rule inet forge out notrack")
	defer m.Run("node/node3", "nft", "delete table inet forge")
	pod := openClient(t, m.Status(), "a-node1", "node1", "pod")
	for _, v4 := range []bool{true, false} {
		to := of(m.pods["a-node1"].IPs, v4)
		for _, tc := range []struct {
			node    string
			arrives bool
		}{{"node2", false}, {"node3", true}} {
			source := m.podCIDR(tc.node, v4).Addr()
			for range 77 {
				source = source.Next()
			}
			tap := pod.listen(t, "", func(h heard) bool { return h.src.Addr() == source && !h.leaving })
			own := netip.PrefixFrom(source, source.BitLen()).String()
			m.Run("node/node3", "ip", "addr", "add", own, "dev", "lo")
			m.Run("node/node3", "sh", "-c", fmt.Sprintf("ping -c3 -i0.1 -W0.5 -I %s %s; true", source, to))
			m.Run("node/node3", "ip", "addr", "del", own, "dev", "lo")
			if n := tap.count(func(heard) bool { return true }); n > 0 != tc.arrives {
				t.Errorf("node3 as %s of %s: %d packets arrived", source, tc.node, n)
			}
		}
	}
}

// newKey: node2 comes back with another key.
func (m mesh) newKey(t *testing.T) {
	key := filepath.Join(m.nodes["node2"].Files, "run/weft/wireguard.key")
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the private key has the mode %v, %v", info.Mode(), err)
	}
	pings := m.pingAll(t)
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	agent := m.nodes["node2"].Agent
	if err := agent.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		after, err := os.ReadFile(key)
		if err == nil && bytes.Equal(before, after) {
			err = fmt.Errorf("the key is still the same")
		}
		return err
	})
	m.wantTransport(t, model.ModeOverlay, model.ModeWireGuard)
	for _, p := range pings {
		var reply wire.SteadyReply
		p.stop(t, &reply)
		s := reply.Series[0]
		t.Logf("ping to %s: %d sent, %d lost, longest gap %s", s.Addr, s.Sent, s.Sent-s.Received, s.LongestGap)
		if s.Received == 0 || s.LongestGap > testenv.Patience(5*time.Second) {
			t.Errorf("ping to %s: %d of %d answered, longest gap %s", s.Addr, s.Received, s.Sent, s.LongestGap)
		}
	}
}

// notEncrypting: node3 does not encrypt any more.
func (m mesh) notEncrypting(t *testing.T) {
	m.configure(t, m.nodes["node3"], "encryption", "none")
	testenv.Eventually(t, 30*time.Second, func() error {
		for _, n := range m.status(t, "node1").Nodes {
			if n.Name == "node3" && strings.Contains(n.Unreachable, "encryptionStrict allows no other way") {
				return nil
			}
		}
		return fmt.Errorf("node1 does not say that node3 is unreachable: %+v", m.status(t, "node1").Nodes)
	})
	before := m.drops(t, "node1")["tunnel-source"]
	out := m.Run("b-node3", "sh", "-c", "ping -c5 -i0.1 -W0.5 "+of(m.pods["a-node1"].IPs, true).String()+"; true")
	if !strings.Contains(out, "5 packets transmitted, 0 received") {
		t.Errorf("a node that does not encrypt: %s", out)
	}
	if now := m.drops(t, "node1")["tunnel-source"]; now < before+5 {
		t.Errorf("its packets: %d drops counted, then %d", before, now)
	}
	m.configure(t, m.nodes["node3"], "encryption", "wireguard")
	m.wantDevice(t, "node3")
	m.wantTransport(t, model.ModeOverlay, model.ModeWireGuard)
}
