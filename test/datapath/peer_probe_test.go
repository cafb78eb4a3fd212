//go:build integration

package datapath

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/test/lab"
)

// TestPeerProbes: nodes know of each other that packets of the full size arrive; one that is cut off is named by the
// others, and no more when it is back. The settings turn this off and on while the agents run.
func TestPeerProbes(t *testing.T) {
	m := up(t, lab.Dual, model.Geneve)
	set := func(on bool) {
		for _, n := range m.Status().Nodes {
			file := n.Files + "/run/weft/config.yaml"
			old, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(string(old), fmt.Sprint("peerProbes: ", !on), fmt.Sprint("peerProbes: ", on))
			if err := os.WriteFile(file+".next", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(file+".next", file); err != nil {
				t.Fatal(err)
			}
		}
	}
	// all waits until each node knows this of each other.
	all := func(limit time.Duration, check func(on string, peer report.Node) error) {
		t.Helper()
		testenv.Eventually(t, limit, func() error {
			for _, n := range m.Status().Nodes {
				s := m.status(t, n.Name)
				if len(s.Nodes) != 2 {
					return fmt.Errorf("%s knows %d peer nodes", n.Name, len(s.Nodes))
				}
				for _, peer := range s.Nodes {
					if err := check(n.Name, peer); err != nil {
						return fmt.Errorf("on %s: node %s: %w", n.Name, peer.Name, err)
					}
				}
			}
			return nil
		})
	}
	reachable := func(_ string, peer report.Node) error {
		if peer.RTTSeconds == 0 || peer.Unreachable != "" {
			return fmt.Errorf("answers after %g s, problem %q", peer.RTTSeconds, peer.Unreachable)
		}
		return nil
	}
	set(true)
	all(30*time.Second, reachable)

	m.Run("node/node2", "ip", "link", "set", "eth0", "down")
	all(90*time.Second, func(on string, peer report.Node) error {
		cutOff := on == "node2" || peer.Name == "node2"
		if !cutOff {
			return reachable(on, peer)
		}
		if !strings.Contains(peer.Unreachable, " has not answered since ") {
			return fmt.Errorf("the problem is %q", peer.Unreachable)
		}
		return nil
	})
	m.Run("node/node2", "ip", "link", "set", "eth0", "up")
	all(60*time.Second, reachable)

	set(false)
	all(10*time.Second, func(_ string, peer report.Node) error {
		if peer.RTTSeconds != 0 || peer.Unreachable != "" {
			return fmt.Errorf("nodes are not asked any more, and it answers after %g s", peer.RTTSeconds)
		}
		return nil
	})
}
