//go:build integration

package datapath

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab"
)

// TestAgentEnds: an agent that the kubelet tells to end does so within seconds, its parts one after another, and what
// it leaves is right for the next one.
func TestAgentEnds(t *testing.T) {
	m := up(t, lab.Dual, model.Geneve)
	before := m.status(t, "node1")
	node := func() lab.NodeStatus {
		nodes := m.Status().Nodes
		return nodes[slices.IndexFunc(nodes, func(n lab.NodeStatus) bool { return n.Name == "node1" })]
	}
	ended := node().Agent
	if err := ended.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	testenv.Eventually(t, 10*time.Second, func() error {
		if node().Agent == ended {
			return errors.New("the agent runs still")
		}
		return nil
	})
	t.Logf("another agent after %v", time.Since(begun).Round(time.Millisecond))
	testenv.Eventually(t, 60*time.Second, func() error { return m.wrong(t, before) })
}
