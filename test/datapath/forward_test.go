//go:build integration

package datapath

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

// Every pod reaches every pod on every protocol that the kernel has, in every family, through all tunnels, with packets
// of every size up to the MTU and none above it; and so do the nodes and their pods.
func TestForwarding(t *testing.T) {
	for _, family := range []lab.Family{lab.IPv4, lab.IPv6, lab.Dual} {
		for _, tunnel := range model.Encapsulations {
			// The kernel's datapath has no GRE over IPv6; dual stack is over IPv4.
			if tunnel == model.GRE && family != onDatapath(lab.IPv6, lab.Dual) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", family, tunnel), func(t *testing.T) {
				m := up(t, family, tunnel)
				t.Run("transport", m.transport)
				t.Run("sizes", m.sizes)
				t.Run("hosts", m.hosts)
				t.Run("bulk", m.bulk)
			})
		}
	}
}

func (m mesh) transport(t *testing.T) {
	r := m.Probe()
	addrs := 0
	for _, p := range m.pods {
		addrs += len(p.IPs)
	}
	if want := len(m.pods) * addrs * 3; len(r.Probes) != want {
		t.Errorf("%d probes, want %d", len(r.Probes), want)
	}
	for _, p := range r.Probes {
		target := r.Targets[p.To]
		if p.State == lab.NoProtocol && target.Proto == podns.SCTP {
			continue // this kernel has none; the responder could not listen
		}
		if p.State != lab.AsExpected || p.Expected != lab.Allow || p.Reached != target.Name {
			t.Errorf("%s to %s at %s: %s, reached %q, %s\n%s", p.From, target, target.Addr, p.State, p.Reached, p.Detail,
				p.Trace)
		}
	}
	t.Logf("%v in %.2f s", r.Counts, r.Seconds)
}

// sizes pings with packets that must not be fragmented.
func (m mesh) sizes(t *testing.T) {
	for name, from := range m.pods {
		link := m.Run(name, "cat", "/sys/class/net/eth0/mtu")
		if link != fmt.Sprint(m.mtu) {
			t.Errorf("the MTU of pod %s is %s, want %d", name, link, m.mtu)
		}
		var fits, above []wire.Target
		for other, to := range m.pods {
			for _, addr := range to.IPs {
				if other == name {
					continue
				}
				header := 28 // IPv4 and ICMP
				if addr.Is6() {
					header = 48
				}
				target := wire.Target{Name: other, Proto: wire.ICMP, Addr: addr, DontFragment: true, Attempts: 3,
					Timeout: 2 * time.Second}
				for _, size := range []int{8, 1000, m.mtu - header} {
					target.Size = size
					fits = append(fits, target)
				}
				target.Size, target.Attempts, target.Timeout = m.mtu-header+1, 1, 200*time.Millisecond
				above = append(above, target)
			}
		}
		var reply wire.DialReply
		m.Ask(name, wire.DialRequest{Targets: fits}, &reply, "dial")
		for _, r := range reply.Results {
			if !r.OK() {
				t.Errorf("ping with %d bytes from %s on %s to %s: %s", r.Target.Size, name, from.Node, r.Target.Name, r.Error)
			}
		}
		m.Ask(name, wire.DialRequest{Targets: above}, &reply, "dial")
		for _, r := range reply.Results {
			if r.OK() {
				t.Errorf("ping with %d bytes, more than fits, from %s to %s is answered", r.Target.Size, name, r.Target.Name)
			}
		}
	}
}

// hosts: every node to every pod, and every pod to every node.
func (m mesh) hosts(t *testing.T) {
	reach := func(from string, names map[string][]netip.Addr) {
		t.Helper()
		var request wire.DialRequest
		for name, addrs := range names {
			for _, addr := range addrs {
				request.Targets = append(request.Targets, wire.Target{Name: name, Proto: wire.ICMP, Addr: addr, Size: 56,
					Attempts: 3, Timeout: 2 * time.Second})
			}
		}
		var reply wire.DialReply
		m.Ask(from, request, &reply, "dial")
		for _, r := range reply.Results {
			if !r.OK() {
				t.Errorf("ping from %s to %s at %s: %s", from, r.Target.Name, r.Target.Addr, r.Error)
			}
		}
	}
	pods, nodes := map[string][]netip.Addr{}, map[string][]netip.Addr{}
	for name, p := range m.pods {
		pods[name] = p.IPs
	}
	for name, n := range m.nodes {
		nodes[name] = n.Addrs
		for _, cidr := range n.PodCIDRs {
			nodes[name] = append(nodes[name], model.GatewayAddr(cidr))
		}
	}
	for name := range m.nodes {
		reach("node/"+name, pods)
	}
	for name := range m.pods {
		reach(name, nodes)
	}
}

// bulk sends many bytes through one TCP connection to a pod on the same node and to one on another, and compares
// digests.
func (m mesh) bulk(t *testing.T) {
	server := m.Exec("a-node1", labtest.Program(t, "probe"), "serve", "--echo=7100", "--http=7080")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill() // weft-lab; its child ends with it
		_ = server.Wait()
	}()
	for _, from := range []string{"b-node1", "a-node2"} {
		for _, addr := range m.pods["a-node1"].IPs {
			var out string
			testenv.Eventually(t, time.Minute, func() (err error) {
				out, err = labtest.Run(m.Exec(from, labtest.Program(t, "probe"), "transfer", "--to="+netip.AddrPortFrom(addr,
					7080).String(), "--bytes=20000000"))
				return err
			})
			var r wire.Transfer
			if err := json.Unmarshal([]byte(out), &r); err != nil || r.Bytes != 20000000 {
				t.Errorf("transfer from %s to %s: %q, %v", from, addr, out, err)
			}
			t.Logf("%s to a-node1 at %s: %.0f Mbit/s", from, addr, float64(r.Bytes)*8/1e6/r.Seconds)
		}
	}
}

// The tests run on what they say they run on.
func TestDatapath(t *testing.T) {
	m := up(t, lab.IPv4, model.Geneve)
	if got := m.Run("node/node1", "ovs-vsctl", "get", "bridge", model.BridgeName, "datapath_type"); got != string(
		labtest.Datapath()) {
		t.Errorf("datapath_type is %s, want %s", got, labtest.Datapath())
	}
	t.Logf("kernel %s; %s; datapath %s", m.Run("node/node1", "uname", "-r"),
		strings.Split(m.Run("node/node1", "ovs-vswitchd", "--version"), "\n")[0], labtest.Datapath())
}
