//go:build integration

package datapath

import (
	"fmt"
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
	"github.com/weft-cni/weft/test/lab/labtest"
)

// The tunnel type changes on nodes that run, one after the other, through all types and back: not one ping is lost, and
// packets leave through the type that is configured.
func TestTunnelChange(t *testing.T) {
	// GRE's header is shorter, and a change of the MTU of ports costs the userspace datapath a packet.
	m := up(t, lab.IPv4, model.Geneve, "--set=mtu=1400")
	var pings []*session
	for _, pair := range [][2]string{{"a-node1", "a-node2"}, {"b-node2", "b-node3"}, {"a-node3", "b-node1"}} {
		pings = append(pings, m.start(t, pair[0], "ping", "--interval=20ms", m.pods[pair[1]].IPs[0].String()))
	}
	m.wantSentThrough(t, model.Geneve)
	for _, to := range []model.Encapsulation{model.VXLAN, model.GRE, model.Geneve} {
		for _, n := range m.nodes {
			m.configure(t, n, "tunnelType", string(to))
		}
		for name := range m.nodes {
			testenv.Eventually(t, 30*time.Second, func() error {
				if got := m.status(t, name).Tunnel; got != to {
					return fmt.Errorf("%s still sends %s", name, got)
				}
				return nil
			})
		}
		m.wantSentThrough(t, to)
	}
	for _, p := range pings {
		var reply wire.SteadyReply
		p.stop(t, &reply)
		s := reply.Series[0]
		if s.Sent < 100 || s.Received != s.Sent || s.SendErrors > 0 {
			t.Errorf("ping to %s: %d of %d answered, lost %v, %d send errors (%s)", s.Addr, s.Received, s.Sent, s.Lost,
				s.SendErrors, s.FirstError)
		}
		t.Logf("ping to %s: %d sent, none lost, longest gap %s", s.Addr, s.Sent, s.LongestGap.Round(time.Millisecond))
	}
}

// configure changes a setting of a node's agent, in its configuration file.
func (m mesh) configure(t *testing.T, n lab.NodeStatus, key, value string) {
	t.Helper()
	path := filepath.Join(n.Files, "run/weft/config.yaml")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^` + key + `:.*\n`)
	text := line.ReplaceAllString(string(b), "") + key + ": " + value + "\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

var transmitted = regexp.MustCompile(`tx pkts=(\d+)`)

// sent counts the packets that left through a tunnel port.
func (m mesh) sent(t *testing.T, node string, tunnel model.Encapsulation) int {
	t.Helper()
	out := m.Run("node/"+node, "ovs-ofctl", "-O", "OpenFlow15", "dump-ports", model.BridgeName, tunnel.PortName())
	match := transmitted.FindStringSubmatch(strings.ReplaceAll(out, "\n", " "))
	if match == nil {
		t.Fatalf("ovs-ofctl dump-ports says %q", out)
	}
	n, err := strconv.Atoi(match[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// wantSentThrough waits until every node sends through one tunnel and not through the others. The switch renews its
// counters about once a second, so what it counts may be older: a window in which nothing came is what is waited for.
func (m mesh) wantSentThrough(t *testing.T, used model.Encapsulation) {
	t.Helper()
	const window = 2 * time.Second
	for name := range m.nodes {
		testenv.Eventually(t, 30*time.Second, func() error {
			before := map[model.Encapsulation]int{}
			for _, e := range model.Encapsulations {
				before[e] = m.sent(t, name, e)
			}
			time.Sleep(window) // the measurement's length
			for _, e := range model.Encapsulations {
				sent := m.sent(t, name, e) - before[e]
				if e == used && sent < 20 || e != used && sent != 0 {
					return fmt.Errorf("%s sent %d packets through %s within %s, want at least 20 through %s alone", name, sent, e,
						window, used)
				}
			}
			return nil
		})
	}
}

// A change of the configured MTU reaches the nodes' gateways, the pods that run and those to come.
func TestMTUFollowsConfiguration(t *testing.T) {
	m := up(t, lab.IPv4, model.VXLAN)
	for _, n := range m.nodes {
		m.configure(t, n, "mtu", "1300")
	}
	for name := range m.nodes {
		testenv.Eventually(t, 30*time.Second, func() error {
			if got := m.Run("node/"+name, "cat", "/sys/class/net/"+model.GatewayName+"/mtu"); got != "1300" {
				return fmt.Errorf("the gateway of %s has the MTU %s, want 1300", name, got)
			}
			return nil
		})
	}
	for name := range m.pods {
		testenv.Eventually(t, 30*time.Second, func() error {
			if got := m.Run(name, "cat", "/sys/class/net/eth0/mtu"); got != "1300" {
				return fmt.Errorf("the pod %s has the MTU %s, want 1300", name, got)
			}
			return nil
		})
	}
	text := strings.ReplaceAll(manifests(), "metadata: {name: b}", "metadata: {name: new}") // other pods for those of b
	if err := os.WriteFile(m.manifests, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for name := range m.nodes {
		testenv.Eventually(t, 30*time.Second, func() error {
			out, err := labtest.Run(m.Exec("new-"+name, "cat", "/sys/class/net/eth0/mtu"))
			if got := strings.TrimSpace(out); err == nil && got != "1300" {
				t.Errorf("the new pod on %s has the MTU %s, want 1300", name, got)
			}
			return err
		})
	}
}
