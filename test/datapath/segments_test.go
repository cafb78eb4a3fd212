//go:build integration

package datapath

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab"
)

// TestSegments: node1 and node2 are in one subnet, node3 in another, with a router between them. hybrid is direct
// within a subnet and a tunnel beyond. direct leaves the other subnet unreachable, for a reason. With directRoutes none
// the router leads packets to all pods. Services and policies work, and policies see the same sources.
func TestSegments(t *testing.T) {
	m := up(t, lab.Dual, model.Geneve, "--segments=2", "--set=transport=hybrid", "--set=mtu=1400")
	m.mtu = 1400
	across := func(a, b string) bool { return (a == "node3") != (b == "node3") }
	const why = "node %s is in the subnet 172.31."
	t.Run("hybrid", func(t *testing.T) {
		m.wantPaths(t, func(from, to string) (model.Mode, string) {
			if across(from, to) {
				return model.ModeOverlay, fmt.Sprintf(why, to)
			}
			return model.ModeDirect, ""
		})
		m.transport(t)
		m.hosts(t)
		m.sourcesSeen(t)
	})
	t.Run("direct", func(t *testing.T) {
		m.configureAll(t, "transport", string(model.ModeDirect))
		m.wantPaths(t, func(from, to string) (model.Mode, string) {
			if across(from, to) {
				return "", fmt.Sprintf(why, to)
			}
			return model.ModeDirect, ""
		})
	})
	t.Run("routes of the network", func(t *testing.T) {
		for name, n := range m.nodes {
			for _, v4 := range []bool{true, false} {
				m.Run("router", "ip", "route", "add", m.podCIDR(name, v4).String(), "via", of(n.Addrs, v4).String())
			}
		}
		m.configureAll(t, "directRoutes", string(model.RoutesNone))
		m.configureAll(t, "mtu", "1500")
		m.mtu = 1500
		m.wantPaths(t, func(_, _ string) (model.Mode, string) { return model.ModeDirect, "" })
		for name := range m.nodes {
			testenv.Eventually(t, 30*time.Second, func() error {
				if got := m.Run("node/"+name, "ip", "route", "show", "proto", "87"); strings.Contains(got, "via 172.31.") {
					return fmt.Errorf("%s has routes of the agent: %s", name, got)
				}
				if got := m.Run("node/"+name, "cat", "/sys/class/net/"+model.GatewayName+"/mtu"); got != "1500" {
					return fmt.Errorf("the gateway of %s has the MTU %s", name, got)
				}
				return nil
			})
		}
		delete(m.pods, "c") // its policy denies most pods
		m.sizes(t)
		m.hosts(t)
		m.pods["c"] = m.Pod("c")
		m.wantSources(t)
	})
}

// wantPaths waits until every node reaches every other one as said: by a mode, "" for not at all, with a reason that
// contains a text.
func (m mesh) wantPaths(t *testing.T, want func(from, to string) (model.Mode, string)) {
	t.Helper()
	for name := range m.nodes {
		testenv.Eventually(t, 30*time.Second, func() error {
			s := m.status(t, name)
			if len(s.Nodes) != len(m.nodes)-1 {
				return fmt.Errorf("%s has %d peer nodes", name, len(s.Nodes))
			}
			for _, n := range s.Nodes {
				mode, why := want(name, n.Name)
				if got := n.Why + n.Unreachable; n.Transport != mode || !strings.Contains(got, why) || why == "" && got != "" {
					return fmt.Errorf("%s sends to %s by %q (%s), want %q (%s)", name, n.Name, n.Transport, got, mode, why)
				}
			}
			return nil
		})
	}
}

// configureAll changes a setting of all nodes' agents.
func (m mesh) configureAll(t *testing.T, key, value string) {
	t.Helper()
	for _, n := range m.nodes {
		m.configure(t, n, key, value)
	}
}
