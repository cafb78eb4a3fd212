//go:build integration

package datapath

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

// hasIPIP reports whether this machine's kernel has IPIP: the emulated one does.
func hasIPIP(t *testing.T) bool {
	t.Helper()
	ns, err := podns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return ns.Do(host.CheckIPIP) == nil
}

// TestIPIP: in IPIP every pod reaches every pod with packets of the underlay's size but for one header, Services and
// node ports work, and policies see the sources that they see in other tunnels. What a node sends in the name of
// another node's pod is dropped and counted. A change to it and from it on a cluster that runs loses no packet, and no
// moment allows what a policy denies. Over IPv6 the same packets arrive. On a kernel without IPIP, the lab refuses it;
// agents name what is missing and send by Geneve.
func TestIPIP(t *testing.T) {
	if !hasIPIP(t) {
		file := labtest.Write(t, map[string]string{"m.yaml": manifests()})
		out, err := labtest.Command(t, "up", "--name=ipip", "-f", file, "--tunnel=ipip").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--tunnel ipip: this node's kernel has no IPIP device of the type") {
			t.Errorf("a lab with IPIP: %v, %s", err, out)
		}
		return
	}
	t.Run("dual", func(t *testing.T) {
		m := up(t, lab.Dual, model.IPIP)
		m.wantIPIP(t)
		t.Run("transport", m.transport)
		t.Run("sizes", m.largest)
		t.Run("sources", m.sourcesSeen)
		t.Run("forged", m.forgedInIPIP)
		t.Run("change", m.changeToIPIP)
	})
	t.Run("ipv6", func(t *testing.T) {
		m := up(t, lab.IPv6, model.IPIP)
		m.wantIPIP(t)
		t.Run("transport", m.transport)
		t.Run("sizes", m.largest)
	})
}

// wantIPIP waits until all nodes send so, and the pods' MTU follows.
func (m mesh) wantIPIP(t *testing.T) {
	t.Helper()
	m.wantTransport(t, model.ModeOverlay, model.ModeIPIP)
	for name := range m.pods {
		testenv.Eventually(t, 30*time.Second, func() error {
			if got := m.Run(name, "cat", "/sys/class/net/eth0/mtu"); got != fmt.Sprint(m.mtu) {
				return fmt.Errorf("the MTU of pod %s is %s, want %d", name, got, m.mtu)
			}
			return nil
		})
	}
}

// largest sends packets of the pods' whole MTU, which must not be fragmented, between the pods of all pairs of nodes.
func (m mesh) largest(t *testing.T) {
	for _, pair := range nodePairs {
		var targets []wire.Target
		for _, to := range m.pods[pair[1]].IPs {
			header := 28 // IPv4 and ICMP
			if to.Is6() {
				header = 48
			}
			targets = append(targets, wire.Target{Name: pair[1], Proto: wire.ICMP, Addr: to, DontFragment: true, Attempts: 3,
				Timeout: 2 * time.Second, Size: m.mtu - header})
		}
		var reply wire.DialReply
		m.Ask(pair[0], wire.DialRequest{Targets: targets}, &reply, "dial")
		for _, r := range reply.Results {
			if !r.OK() {
				t.Errorf("%d bytes from %s to %s at %s: %s", r.Target.Size, pair[0], pair[1], r.Target.Addr, r.Error)
			}
		}
	}
}

// forgedInIPIP: node3 sends to a pod of node1 with the address of a pod of node2.
func (m mesh) forgedInIPIP(t *testing.T) {
	counted := func() int { return m.forged(t, "IPIP") }
	m.Run("node/node3", "nft", "add table inet forge; add chain inet forge out { type filter hook output priority -350; }; "+
		"add rule inet forge out notrack")
	defer m.Run("node/node3", "nft", "delete table inet forge")
	for _, v4 := range []bool{true, false} {
		source, to := m.podCIDR("node2", v4).Addr(), of(m.pods["a-node1"].IPs, v4)
		for range 77 {
			source = source.Next()
		}
		own := fmt.Sprintf("%s/%d", source, source.BitLen())
		m.Run("node/node3", "ip", "addr", "add", own, "dev", "lo")
		before := counted()
		out := m.Run("node/node3", "sh", "-c", fmt.Sprintf("ping -c5 -i0.2 -W1 -I %s %s; true", source, to))
		m.Run("node/node3", "ip", "addr", "del", own, "dev", "lo")
		if !strings.Contains(out, "5 packets transmitted, 0 received") {
			t.Errorf("as %s: %s", source, out)
		}
		if now := counted(); now != before+5 {
			t.Errorf("as %s: %d drops counted, then %d", source, before, now)
		}
	}
}

// changeToIPIP changes node by node from Geneve to IPIP, to direct and back, while pods ping each other.
func (m mesh) changeToIPIP(t *testing.T) {
	m.guard(t)
	for _, n := range m.nodes {
		m.configure(t, n, "mtu", "1400")
	}
	m.mtu = 1400
	m.wantIPIP(t)
	change := func(key, value string, setting, mode model.Mode) {
		for _, n := range m.nodes {
			m.configure(t, n, key, value)
		}
		m.wantTransport(t, setting, mode)
	}
	change("tunnelType", "geneve", model.ModeOverlay, model.ModeOverlay)
	pings := m.pingAll(t)
	denied := m.start(t, "a-node3", "ping", pingInterval(), m.pods["c"].IPs[0].String())
	change("tunnelType", "ipip", model.ModeOverlay, model.ModeIPIP)
	change("transport", "direct", model.ModeDirect, model.ModeDirect)
	change("transport", "overlay", model.ModeOverlay, model.ModeIPIP)
	change("tunnelType", "geneve", model.ModeOverlay, model.ModeOverlay)
	for name := range m.nodes { // after the grace
		testenv.Eventually(t, 30*time.Second, func() error {
			if links := m.Run("node/"+name, "ip", "-brief", "link"); strings.Contains(links, model.IPIPName) ||
				strings.Contains(links, model.SITName) {
				return fmt.Errorf("%s still has the devices: %s", name, links)
			}
			return nil
		})
	}
	wantAnswered(t, pings, onDatapath(0.01, 0))
	var reply wire.SteadyReply
	denied.stop(t, &reply)
	if s := reply.Series[0]; s.Received > 0 || s.Sent < 100 {
		t.Errorf("of %d pings that a policy denies, %d were answered", s.Sent, s.Received)
	}
}
