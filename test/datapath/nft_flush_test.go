//go:build integration

package datapath

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// Another program flushes the node's nftables, disables our table or turns forwarding off: the agent repairs it
// within two seconds.
func TestNodeRepairs(t *testing.T) {
	file := filepath.Join(labtest.Write(t, map[string]string{"f.yaml": podManifest("web", "web", "node1", 8080, "")}),
		"f.yaml")
	l := labtest.Up(t, "repairs", "-f", file, "--nodes=1", "--ip-family=dual")
	const state = `nft list table inet weft | sed 's/counter packets [0-9]* bytes [0-9]*/counter/'
cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding; ip -6 -o addr show dev weft0 | awk '{print $4}' | sort; ip link show weft0 | grep -o ',UP'
ip rule; ip -6 rule`
	look := func() string {
		out, err := labtest.Run(l.Exec("node/node1", "sh", "-c", state))
		if err != nil {
			return err.Error()
		}
		return out
	}
	right := look()
	if !strings.Contains(right, "chain from-pod-links") || !strings.Contains(right, "tunnels") {
		t.Fatalf("the table is not there: %s", right)
	}
	for _, damage := range []string{
		"nft flush ruleset",
		"nft 'add table inet weft { flags dormant; }'",
		"echo 0 > /proc/sys/net/ipv4/ip_forward",
		"echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
		"ip link set weft0 down",
		"ip addr flush dev weft0",
		"ip -6 addr flush dev weft0 scope link",
		"ip rule del priority 870; ip -6 rule del priority 870",
	} {
		l.Run("node/node1", "sh", "-ec", damage)
		began := time.Now()
		testenv.Eventually(t, testenv.Patience(2*time.Second), func() error {
			if now := look(); now != right {
				return fmt.Errorf("%s: not repaired:\n%s\nwant:\n%s", damage, now, right)
			}
			return nil
		})
		t.Logf("%s: repaired after at most %s", damage, time.Since(began))
	}
}
