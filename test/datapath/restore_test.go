//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// TestStartWithoutTheAPI: a node loses the API server, Open vSwitch its bridge, ports and flows, and the agent ends.
// The agent that starts works from the copy: the bridge is repaired, and traffic within and between nodes is as
// expected. When the API server is back it replaces the copy.
func TestStartWithoutTheAPI(t *testing.T) {
	m := up(t, lab.Dual, model.Geneve)
	if err := m.wrong(t, m.status(t, "node1")); err != nil {
		t.Fatal(err)
	}
	before := m.status(t, "node1")
	const file = "/run/weft/objects.json.gz"
	testenv.Eventually(t, 60*time.Second, func() error {
		out, err := labtest.Run(m.Exec("node/node1", "stat", "-c", "%a %u", file))
		if err == nil && strings.TrimSpace(out) != "600 0" {
			err = fmt.Errorf("mode and owner %s", out)
		}
		return err
	})
	run := func(command string) { t.Helper(); m.Run("node/node1", "sh", "-ec", command) }
	run(`nft add table inet away
nft add chain inet away output '{ type filter hook output priority 0; }'
nft add rule inet away output tcp dport 6443 reject with tcp reset`)
	node := m.Status().Nodes[slices.IndexFunc(m.Status().Nodes, func(n lab.NodeStatus) bool { return n.Name == "node1" })]
	if err := node.Agent.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	run("ovs-vsctl --no-wait del-br " + model.BridgeName)
	if err := node.Agent.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	report := func(fromCopy bool) error {
		out, err := labtest.Run(m.Exec("node/node1", labtest.Program(t, "weftctl"), "status"))
		var exit *exec.ExitError
		if problem := errors.As(err, &exit) && exit.ExitCode() == 1; problem != fromCopy || err != nil && !problem {
			return fmt.Errorf("weftctl found a problem: %t (%w): %s", problem, err, out)
		}
		if named := strings.Contains(out, "from a copy of 20"); named != fromCopy {
			return fmt.Errorf("status names a copy: %t:\n%s", named, out)
		}
		now := m.status(t, "node1")
		other := slices.DeleteFunc(slices.Clone(now.Problems), func(p string) bool {
			return fromCopy && strings.HasPrefix(p, "API server: ")
		})
		if !now.Ready || (now.FromCopy != nil) != fromCopy || len(other) > 0 || fromCopy == (len(now.Problems) == 0) {
			return fmt.Errorf("ready %t (%s), from copy %v, problems %q", now.Ready, now.NotReady, now.FromCopy, now.Problems)
		}
		if len(now.Pods) != len(before.Pods) {
			return fmt.Errorf("pods %+v, before %+v", now.Pods, before.Pods)
		}
		for i, p := range now.Pods {
			if p.OFPort != before.Pods[i].OFPort || !slices.Equal(p.IPs, before.Pods[i].IPs) {
				return fmt.Errorf("pods %+v, before %+v", now.Pods, before.Pods)
			}
		}
		return m.mismatches()
	}
	testenv.Eventually(t, 60*time.Second, func() error { return report(true) })
	run("nft delete table inet away")
	testenv.Eventually(t, 60*time.Second, func() error { return report(false) })
}
