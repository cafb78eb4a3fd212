//go:build integration

package datapath

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// TestSecondNodeAddress: a node with a second address on its underlay, which comes first, still sends tunnel packets
// from its InternalIP, which is all that its peers accept. Where Open vSwitch ignores what the flows say, the agent
// names the two addresses, until the second one goes.
func TestSecondNodeAddress(t *testing.T) {
	for _, tc := range []struct {
		family    lab.Family
		add, drop string // on the node's link
		second    string
	}{
		{lab.IPv4, "ip addr del 172.31.0.12/24 dev $dev; ip addr add 172.31.0.99/24 dev $dev; ip addr add 172.31.0.12/24 " +
			"dev $dev",
			"ip addr del 172.31.0.99/24 dev $dev; ip addr replace 172.31.0.12/24 dev $dev", "172.31.0.99"},
		{lab.IPv6, "ip -6 addr add fd57:6566:7461::99/64 dev $dev nodad", "ip -6 addr del fd57:6566:7461::99/64 dev $dev",
			"fd57:6566:7461::99"},
	} {
		t.Run(string(tc.family), func(t *testing.T) {
			m := up(t, tc.family, model.Geneve)
			link := map[bool]string{true: "br-phy", false: "eth0"}[labtest.Datapath() == config.DatapathNetdev]
			m.Run("node/node2", "sh", "-ec", "dev="+link+"; "+tc.add)
			version := m.Run("node/node2", "ovs-appctl", "version")
			ignored := tc.family == lab.IPv6 && link == "br-phy" && strings.Contains(version, ") 3.1.0")
			named := func() string {
				for _, p := range m.status(t, "node2").Problems {
					if strings.HasPrefix(p, "tunnel source: ") {
						return p
					}
				}
				return ""
			}
			if ignored {
				testenv.Eventually(t, 75*time.Second, func() error {
					if p := named(); !strings.Contains(p, "tunnel packets to 2 nodes, as node1 leave from "+tc.second+
						", and only those from ") {
						return fmt.Errorf("named is %q", p)
					}
					return nil
				})
				m.Run("node/node2", "sh", "-ec", "dev="+link+"; "+tc.drop)
				testenv.Eventually(t, 75*time.Second, func() error {
					if p := named(); p != "" {
						return fmt.Errorf("without the second address: %s", p)
					}
					return nil
				})
			}
			before := m.drops(t, "node1")["tunnel-source"]
			m.transport(t)
			if drops := m.drops(t, "node1")["tunnel-source"] - before; drops > 0 {
				t.Errorf("node1 dropped %d tunnel packets for their source", drops)
			}
			if p := named(); p != "" {
				t.Errorf("a problem that is none: %s", p)
			}
		})
	}
}
