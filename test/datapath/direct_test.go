//go:build integration

package datapath

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab"
)

// TestDirect: without tunnels every pod reaches every pod with packets of the underlay's whole size, Services and
// policies work, and policies see the sources that they see through tunnels. Routes are repaired, foreign ones stay.
// What another node or a host sends in the name of a pod is dropped and counted. A change of the transport on a cluster
// that runs, to every other one, loses no packet but those that Open vSwitch loses whenever a route of the kernel
// changes, and no moment allows what a policy denies.
func TestDirect(t *testing.T) {
	m := up(t, lab.Dual, model.Geneve, "--set=transport=direct")
	m.wantTransport(t, model.ModeDirect, model.ModeDirect)
	m.mtu = 1500
	t.Run("transport", m.transport)
	t.Run("sizes", m.sizes)
	t.Run("hosts", m.hosts)
	t.Run("routes", m.routesKept)
	t.Run("restart", m.restartKeepsMTU)
	t.Run("forged", m.forgedByNeighbor)
	t.Run("sources", m.sourcesSeen)
	t.Run("change", m.changeTransport)
}

// restartKeepsMTU: an agent that starts finds at once that packets go to its peers without a tunnel, as before, and so
// never gives pods the MTU that a tunnel leaves.
func (m mesh) restartKeepsMTU(t *testing.T) {
	read := func() string {
		text, err := os.ReadFile(filepath.Join(lab.Root, m.Name, "logs", "node1-weft-agent.log"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := len(read())
	(&changing{Lab: m.Lab}).restartAgents(t, func() {})
	m.wantTransport(t, model.ModeDirect, model.ModeDirect)
	if got := regexp.MustCompile(`msg="MTU of pods" mtu=\d+`).FindAllString(read()[before:], -1); len(got) != 1 ||
		!strings.HasSuffix(got[0], "=1500") {
		t.Errorf("a restarted agent logs %q", got)
	}
}

// wantTransport waits until every node sends to every other one in this way.
func (m mesh) wantTransport(t *testing.T, setting, mode model.Mode) {
	t.Helper()
	for name := range m.nodes {
		testenv.Eventually(t, 30*time.Second, func() error {
			s := m.status(t, name)
			if s.Transport != setting || len(s.Nodes) != len(m.nodes)-1 || s.Flows.Programmed < s.Flows.Desired {
				return fmt.Errorf("%s has transport %s, %d peer nodes and %+v", name, s.Transport, len(s.Nodes), s.Flows.Progress)
			}
			for _, n := range s.Nodes {
				if n.Transport != mode {
					return fmt.Errorf("%s sends to %s by %q, %s%s", name, n.Name, n.Transport, n.Why, n.Unreachable)
				}
			}
			return nil
		})
	}
}

// routesKept: a route that is deleted is back within two seconds; a foreign one stays as it is.
func (m mesh) routesKept(t *testing.T) {
	uplink := onDatapath("br-phy", "eth0")
	foreign := "10.99.0.0/24 via 172.31.0.99 dev " + uplink
	m.Run("node/node1", "sh", "-c", "ip route add "+foreign)
	for _, family := range []string{"-4", "-6"} {
		cidr, via := m.podCIDR("node2", family == "-4"), of(m.nodes["node2"].Addrs, family == "-4")
		begin := time.Now()
		m.Run("node/node1", "ip", family, "route", "del", cidr.String())
		testenv.Eventually(t, testenv.Patience(2*time.Second), func() error {
			if got := m.Run("node/node1", "ip", family, "route", "show", cidr.String()); !strings.Contains(got, "via "+via.String()+" dev "+uplink) {
				return fmt.Errorf("the route to %s is %q", cidr, got)
			}
			return nil
		})
		t.Logf("%s: back after %s", cidr, time.Since(begin).Round(time.Millisecond))
	}
	if got := strings.TrimSpace(m.Run("node/node1", "ip", "route", "show", "10.99.0.0/24")); got != foreign {
		t.Errorf("the foreign route is %q, want %q", got, foreign)
	}
}

// podCIDR is a node's range of a family.
func (m mesh) podCIDR(node string, v4 bool) netip.Prefix {
	for _, c := range m.nodes[node].PodCIDRs {
		if c.Addr().Is4() == v4 {
			return c
		}
	}
	return netip.Prefix{}
}

// forged is how many packets node1 has dropped by rules of the chain entered whose comment begins so.
func (m mesh) forged(t *testing.T, comment string) (sum int) {
	t.Helper()
	counter := regexp.MustCompile(`counter packets (\d+) .*forged: ` + comment)
	for _, c := range counter.FindAllStringSubmatch(m.Run("node/node1", "nft", "list", "chain", "inet", "weft", "entered"), -1) {
		n, err := strconv.Atoi(c[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// forgedByNeighbor: node3, and a host outside, send to a pod of node1 with the address of a pod of node2.
func (m mesh) forgedByNeighbor(t *testing.T) {
	counted := func() int { return m.forged(t, "pods") }
	// Node3's own rules would correct the source.
	m.Run("node/node3", "nft", "add table inet forge; add chain inet forge out { type filter hook output priority -350; }; "+
		"add rule inet forge out notrack")
	defer m.Run("node/node3", "nft", "delete table inet forge")
	for _, v4 := range []bool{true, false} {
		to, source, bits := of(m.pods["a-node1"].IPs, v4), m.podCIDR("node2", v4).Addr(), m.podCIDR("node2", v4).Addr().BitLen()
		for range 77 {
			source = source.Next()
		}
		for _, where := range []string{"node/node3", "outside"} {
			m.Run(where, "ip", "addr", "add", fmt.Sprintf("%s/%d", source, bits), "dev", "lo")
			if where == "outside" {
				m.Run(where, "ip", "route", "replace", m.podCIDR("node1", v4).String(), "via", of(m.nodes["node1"].Addrs, v4).String())
			}
			before := counted()
			out := m.Run(where, "sh", "-c", fmt.Sprintf("ping -c5 -i0.2 -W1 -I %s %s; true", source, to))
			if !strings.Contains(out, "5 packets transmitted, 0 received") {
				t.Errorf("%s as %s: %s", where, source, out)
			}
			if now := counted(); now < before+5 {
				t.Errorf("%s as %s: %d drops counted, then %d", where, source, before, now)
			}
			m.Run(where, "ip", "addr", "del", fmt.Sprintf("%s/%d", source, bits), "dev", "lo")
		}
	}
}

// sourcesSeen: a pod of node2 accepts from the gateway of node1 and from one kind of pods alone, and sees it as the
// source of what node1 sends it for a client outside, for itself, and through a Service.
func (m mesh) sourcesSeen(t *testing.T) {
	m.guard(t)
	m.wantSources(t)
}

// guard adds the pod c and its Service, and isolates it but for what wantSources says. In the manifest of the mesh this
// stays for what follows.
func (m mesh) guard(t *testing.T) {
	t.Helper()
	gateway := func(v4 bool) string {
		a := model.GatewayAddr(m.podCIDR("node1", v4))
		return netip.PrefixFrom(a, a.BitLen()).String()
	}
	text := strings.Replace(manifests(), "---\n", fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: c}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: c}
  ports: [{port: 80, targetPort: 7000, nodePort: 30080}]
---
apiVersion: v1
kind: Pod
metadata: {name: c, labels: {app: c}}
spec:
  nodeName: node2
  containers: [{name: c, ports: [{containerPort: 7000}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: c}
spec:
  podSelector: {matchLabels: {app: c}}
  ingress:
    - from: [{ipBlock: {cidr: %q}}, {ipBlock: {cidr: %q}}, {podSelector: {matchLabels: {app: b}}}]
---
`, gateway(true), gateway(false)), 1)
	if err := os.WriteFile(m.manifests, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		_, err := m.Status().Find("c")
		return err
	})
	m.pods["c"] = m.Pod("c")
}

// wantSources wants what sourcesSeen says, with the objects that it made.
func (m mesh) wantSources(t *testing.T) {
	t.Helper()
	pod := m.pods["c"]
	var service []netip.Addr
	testenv.Eventually(t, 30*time.Second, func() error {
		for _, s := range m.Status().Services {
			if s.Name == "c" || strings.HasSuffix(s.Name, "/c") {
				service = nil
				for _, ip := range s.IPs {
					service = append(service, netip.MustParseAddr(ip))
				}
				return nil
			}
		}
		return fmt.Errorf("no Service c")
	})
	for _, v4 := range []bool{true, false} {
		for _, tc := range []struct {
			from string
			to   netip.AddrPort
			ok   bool
		}{
			{"outside", netip.AddrPortFrom(of(m.nodes["node1"].Addrs, v4), 30080), true},
			{"outside", netip.AddrPortFrom(of(m.nodes["node3"].Addrs, v4), 30080), false},
			{"node/node1", netip.AddrPortFrom(of(pod.IPs, v4), 7000), true},
			{"node/node1", netip.AddrPortFrom(of(service, v4), 80), true},
			{"node/node3", netip.AddrPortFrom(of(pod.IPs, v4), 7000), false},
			{"node/node3", netip.AddrPortFrom(of(service, v4), 80), false},
			{"b-node3", netip.AddrPortFrom(of(service, v4), 80), true},
			{"a-node1", netip.AddrPortFrom(of(service, v4), 80), false},
		} {
			target := wire.Target{Name: tc.from, Proto: wire.Connect, Addr: tc.to.Addr(), Port: tc.to.Port(), Attempts: 1,
				Timeout: 500 * time.Millisecond}
			if tc.ok {
				target.Attempts, target.Timeout = 5, 2*time.Second
			}
			var reply wire.DialReply
			m.Ask(tc.from, wire.DialRequest{Targets: []wire.Target{target}}, &reply, "dial")
			if got := reply.Results[0]; got.OK() != tc.ok {
				t.Errorf("%s to %s: reached %v (%s), want %v", tc.from, tc.to, got.OK(), got.Error, tc.ok)
			}
		}
	}
}

// changeTransport: every change from one transport to another, on one node after the other, while pods ping each other.
func (m mesh) changeTransport(t *testing.T) {
	for _, n := range m.nodes {
		m.configure(t, n, "mtu", "1400")
	}
	for name := range m.pods {
		testenv.Eventually(t, 30*time.Second, func() error {
			if got := m.Run(name, "cat", "/sys/class/net/eth0/mtu"); got != "1400" {
				return fmt.Errorf("the MTU of pod %s is %s", name, got)
			}
			return nil
		})
	}
	var pings []*session
	for _, pair := range nodePairs {
		for _, to := range m.pods[pair[1]].IPs {
			pings = append(pings, m.start(t, pair[0], "ping", pingInterval(), to.String()))
		}
	}
	denied := m.start(t, "a-node3", "ping", pingInterval(), m.pods["c"].IPs[0].String())
	for _, to := range []struct{ setting, mode model.Mode }{
		{model.ModeOverlay, model.ModeOverlay}, {model.ModeHybrid, model.ModeDirect}, {model.ModeDirect, model.ModeDirect},
		{model.ModeOverlay, model.ModeOverlay}, {model.ModeDirect, model.ModeDirect}, {model.ModeHybrid, model.ModeDirect},
		{model.ModeOverlay, model.ModeOverlay},
	} {
		for _, n := range m.nodes {
			m.configure(t, n, "transport", string(to.setting))
		}
		m.wantTransport(t, to.setting, to.mode)
	}
	// With the userspace datapath, Open vSwitch finds the way of a tunnel in a copy of the kernel's routes that it empties
	// and fills again whenever one changes. Of 3,000 pings beside 600 changes of a foreign route, 13 were lost; without
	// them none.
	mostLost, inARow := onDatapath(0.01, 0), onDatapath(10, 0) // of the pings; a tenth of a second
	for _, p := range pings {
		var reply wire.SteadyReply
		p.stop(t, &reply)
		s := reply.Series[0]
		lost := s.Sent - s.Received
		if s.Sent < 500 || s.SendErrors > 0 || float64(lost) > float64(s.Sent)*mostLost || longestRun(s.Lost) > inARow {
			t.Errorf("ping to %s: %d of %d answered, lost %v, longest gap %s, %d send errors (%s)", s.Addr, s.Received, s.Sent,
				s.Lost, s.LongestGap, s.SendErrors, s.FirstError)
		}
		t.Logf("ping to %s: %d sent, %d lost, longest gap %s", s.Addr, s.Sent, lost, s.LongestGap.Round(time.Millisecond))
	}
	var reply wire.SteadyReply
	denied.stop(t, &reply)
	if s := reply.Series[0]; s.Received > 0 || s.Sent < 500 {
		t.Errorf("of %d pings that a policy denies, %d were answered", s.Sent, s.Received)
	}
}

// longestRun is how many of a list of numbers, each larger than the last, follow each other without a gap at most.
func longestRun(numbers []int) (longest int) {
	run := 0
	for i, n := range numbers {
		if i == 0 || n != numbers[i-1]+1 {
			run = 0
		}
		run++
		longest = max(longest, run)
	}
	return longest
}
