//go:build integration

package datapath

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/test/lab"
)

// wrong is what is not as it was expected after a repair: traffic, or the agent's own report.
func (m mesh) wrong(t *testing.T, before report.Status) error {
	t.Helper()
	now, err := agentOf(m.nodes["node1"].Files).Status(t.Context())
	if err != nil {
		return err
	}
	if len(now.Problems) > 0 || !now.Ready {
		return fmt.Errorf("ready %t, problems %q", now.Ready, now.Problems)
	}
	for i, p := range now.Pods {
		if i >= len(before.Pods) || p.Pod != before.Pods[i].Pod || !slices.Equal(p.IPs, before.Pods[i].IPs) ||
			p.OFPort != before.Pods[i].OFPort {
			return fmt.Errorf("pods %+v, before %+v", now.Pods, before.Pods)
		}
	}
	return m.mismatches()
}

func (m mesh) mismatches() error {
	var wrong []string
	for _, p := range m.Probe().Probes {
		if p.State == lab.Differs {
			wrong = append(wrong, fmt.Sprintf("%+v", p))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d probes, such as %s", len(wrong), wrong[0])
	}
	return nil
}

// TestBridgeLost: what OVSDB has of Weft's is lost, with an agent running and without; and others block pods' ports,
// clear their records and change them. Running pods keep their addresses and ports, and traffic is back by itself.
func TestBridgeLost(t *testing.T) {
	m := up(t, lab.Dual, model.Geneve)
	before := m.status(t, "node1")
	if err := m.wrong(t, before); err != nil {
		t.Fatal(err)
	}
	port := before.Pods[0].Port
	vsctl := func(args ...string) {
		t.Helper()
		m.Run("node/node1", append([]string{"ovs-vsctl", "--no-wait"}, args...)...)
	}
	for _, tc := range []struct {
		name   string
		damage func()
		alive  bool // the agent runs meanwhile
	}{
		{"bridge, with an agent", func() { vsctl("del-br", model.BridgeName) }, true},
		{"bridge, without an agent", func() { vsctl("del-br", model.BridgeName) }, false},
		{"record cleared", func() { vsctl("clear", "Interface", port, "external_ids") }, true},
		{"record changed", func() { vsctl("set", "Interface", port, "external_ids:weft.ofport=99") }, true},
		{"record cleared, without an agent", func() { vsctl("clear", "Interface", port, "external_ids") }, false},
		{"port blocked", func() {
			m.Run("node/node1", "ovs-ofctl", "-O", "OpenFlow13", "mod-port", model.BridgeName, port, "no-forward")
		}, true},
		{"link down", func() { m.Run("node/node1", "ip", "link", "set", port, "down") }, true},
		{"link down, without an agent", func() { m.Run("node/node1", "ip", "link", "set", port, "down") }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.alive {
				tc.damage()
			} else {
				node := m.Status().Nodes[slices.IndexFunc(m.Status().Nodes, func(n lab.NodeStatus) bool {
					return n.Name == "node1"
				})]
				for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
					if err := node.Agent.Signal(signal); err != nil {
						t.Fatal(err)
					}
					if signal == syscall.SIGSTOP {
						tc.damage()
						time.Sleep(time.Second)
					}
				}
			}
			testenv.Eventually(t, 60*time.Second, func() error {
				return m.wrong(t, before)
			})
		})
	}
}
