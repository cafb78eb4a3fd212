//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/test/lab/datapath"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// agentFaults lose nothing: the switch goes on with what it has.
func agentFaults() []fault {
	const away = `nft add table inet chaos; nft 'add chain inet chaos out { type filter hook output priority 0; }'
nft add rule inet chaos out tcp dport 6443 drop`
	return []fault{
		{name: "nothing", cause: "none", do: func(c *chaos) { time.Sleep(3 * time.Second) }},
		{name: "one is killed", cause: "agent", do: func(c *chaos) { agentKilled(c, "node1") }},
		{name: "all are killed", cause: "agent", do: func(c *chaos) { agentKilled(c, "node1", "node2") }},
		{name: "one is killed while it sends a bundle", cause: "agent", do: func(c *chaos) {
			c.listen()
			for _, after := range []int{300, 600, 900} { // milliseconds; the lab looks at its manifests twice a second
				c.write(c.t, "b.yaml", idlePolicies(40))
				time.Sleep(time.Duration(after) * time.Millisecond)
				agentKilled(c, "node1")
				c.write(c.t, "b.yaml", "")
			}
		}},
		{name: "one stands still", cause: "agent", do: func(c *chaos) {
			process := c.nodeStatus("node1").Agent
			for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT} {
				if err := process.Signal(signal); err != nil {
					c.t.Error(err)
				}
				time.Sleep(3 * time.Second)
			}
		}},
		{name: "away", cause: "API server", do: func(c *chaos) {
			c.damage("node1", away)
			time.Sleep(5 * time.Second)
			c.damage("node1", "nft delete table inet chaos")
		}},
		{name: "away while an agent starts", cause: "API server", do: func(c *chaos) {
			c.damage("node1", away)
			agentKilled(c, "node1")
			time.Sleep(5 * time.Second)
			if r, err := c.ask("node1"); err == nil && r.Ready {
				c.t.Error("the agent is ready without the API server: it is not away")
			}
			c.damage("node1", "nft delete table inet chaos")
		}},
	}
}

// agentKilled ends the agents of nodes, and returns when the lab has started others.
func agentKilled(c *chaos, nodes ...string) {
	c.t.Helper()
	killed := map[string]sandbox.Process{}
	for _, node := range nodes {
		process, err := agentProcess(c.files[node])
		if err != nil {
			c.t.Fatalf("the agent of %s: %v", node, err)
		}
		if err := process.Signal(syscall.SIGKILL); err != nil {
			c.t.Error(err)
		}
		killed[node] = process
	}
	for node, process := range killed {
		testenv.Eventually(c.t, 10*time.Second, func() error {
			now, err := agentProcess(c.files[node])
			if err == nil && now == process {
				err = errors.New("the old one listens")
			}
			return err
		})
	}
}

// idlePolicies are about the servers and allow nothing that is not allowed anyway.
func idlePolicies(n int) string {
	var text strings.Builder
	for i := range n {
		text.WriteString(policyManifest("chaos", fmt.Sprintf("more-%d", i),
			fmt.Sprintf("podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: "+
				"{cidr: 192.0.2.%d/32}}], ports: [{port: %d}]}]", i, 1000+i)))
	}
	return text.String()
}

// objectFaults are changes that are none of the traffic's business. But Open vSwitch 3.1.0 has to forget its cache
// after each in the userspace datapath (see refresh in pkg/ofswitch), whose queues are short.
func objectFaults() []fault {
	change := func(name, text string) fault {
		return fault{name: name, cause: "objects", bound: onDatapath(500*time.Millisecond, 0), do: func(c *chaos) {
			c.listen()
			before := c.objects()
			for range 3 {
				for _, there := range []bool{true, false} {
					c.write(c.t, "b.yaml", map[bool]string{true: text}[there])
					testenv.Eventually(c.t, 10*time.Second, func() error {
						if now := c.objects(); (now != before) != there {
							return fmt.Errorf("the agents have %s, before %s", now, before)
						}
						return nil
					})
				}
			}
		}}
	}
	var services strings.Builder
	for i := range 20 {
		services.WriteString(walledService("chaos", fmt.Sprintf("more-%d", i), "role: server", 8080))
	}
	return []fault{
		change("policies come and go", idlePolicies(40)),
		change("Services come and go", services.String()),
		change("pods come and go", walledPod("chaos", "guest-1", "node1", "role: guest")+walledPod("chaos", "guest-2",
			"node2", "role: guest")),
	}
}

// nodeFaults are repaired within two seconds of what the kernel reports.
func nodeFaults() []fault {
	var list []fault
	for _, script := range []string{
		"nft flush ruleset",
		"ip link set weft0 down",
		// Without its link-local address the node could not ask for pods' MAC addresses in the name of others.
		"ip addr flush dev weft0; ip neigh flush dev weft0; ip -6 neigh flush dev weft0",
		"echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
		"ip route flush dev weft0; ip -6 route flush dev weft0",
		"ip rule del priority 870; ip -6 rule del priority 870",
	} {
		list = append(list, fault{
			name: script, cause: "node", bound: 2500 * time.Millisecond,
			unmasked: strings.HasPrefix(script, "nft ") || strings.HasPrefix(script, "ip addr "),
			do:       func(c *chaos) { c.damage("node1", script) },
		})
	}
	return list
}

// flushConntrack ends all connections of the datapath. The kernel's datapath has them in one table with those that the
// node's kernel translates.
const flushConntrack = "ovs-appctl dpctl/flush-conntrack"

// switchFaults damage what Open vSwitch has, and Open vSwitch itself.
func switchFaults() []fault {
	var list []fault
	for _, script := range []string{
		"ovs-ofctl -O OpenFlow15 del-flows weft",
		"ovs-ofctl -O OpenFlow15 del-groups weft",
		"ovs-ofctl -O OpenFlow15 --strict del-flows weft table=60,priority=0",
		"for p in $(ovs-vsctl list-ports weft | grep -v weft); do ovs-ofctl -O OpenFlow15 mod-port weft $p no-forward; done",
		"for p in $(ovs-vsctl list-ports weft | grep -v weft); do ip link set $p down; done",
		"for p in $(ovs-vsctl list-ports weft | grep -v weft); do ovs-vsctl --no-wait clear Interface $p external_ids; done",
		flushConntrack,
		"ovs-ofctl -O OpenFlow15 set-frags weft drop",
	} {
		list = append(list, fault{
			name: script, cause: "switch", bound: 2500 * time.Millisecond,
			untracked: script == flushConntrack, unmasked: script == flushConntrack && onDatapath(false, true),
			do: func(c *chaos) { c.damage("node1", script) },
		})
	}
	return append(list,
		fault{name: "ovs-vsctl del-br weft", cause: "switch", bound: 5 * time.Second, do: func(c *chaos) {
			c.damage("node1", "ovs-vsctl --no-wait del-br weft")
		}},
		// Without the database, ovs-vswitchd 3.1 does not poll the ports of the userspace datapath. It tries to
		// connect after a second, and two and four seconds later.
		fault{name: "ovsdb-server is killed", cause: "Open vSwitch", bound: onDatapath(9*time.Second, 0), do: func(c *chaos) {
			ovsEnds(c, "ovsdb-server")
			ovsStarts(c, false, "ovsdb-server")
		}},
		fault{
			name: "ovs-vswitchd is killed", cause: "Open vSwitch", bound: onDatapath(5*time.Second, 3*time.Second),
			untracked: onDatapath(true, false), do: func(c *chaos) {
				ovsEnds(c, "ovs-vswitchd")
				ovsStarts(c, false, "ovs-vswitchd")
			}},
		fault{
			name: "both are killed and the database is gone", cause: "Open vSwitch", bound: 15 * time.Second,
			untracked: onDatapath(true, false), do: func(c *chaos) {
				ovsEnds(c, "ovs-vswitchd", "ovsdb-server")
				c.Run("node/node1", "sh", "-ec",
					"rm -f /run/openvswitch/conf.db; ovsdb-tool create /run/openvswitch/conf.db "+
						"/usr/share/openvswitch/vswitch.ovsschema")
				ovsStarts(c, true, "ovsdb-server", "ovs-vswitchd")
			}},
	)
}

// onDatapath is the value of the datapath that the tests use.
func onDatapath[T any](userspace, kernel T) T {
	if labtest.Datapath() == config.DatapathSystem {
		return kernel
	}
	return userspace
}

// ovsEnds kills daemons of node1's.
func ovsEnds(c *chaos, programs ...string) {
	for _, p := range programs {
		c.Run("node/node1", "sh", "-ec",
			fmt.Sprintf("pid=$(cat /run/openvswitch/%s.pid); kill -9 $pid; while [ -e /proc/$pid ]; do sleep 0.05; done", p))
	}
}

// ovsStarts starts them again as the lab did, and gives the node's uplink its addresses, which is what a real node's
// network configuration does when the physical bridge appears. When the database was wiped, it makes that bridge, too.
func ovsStarts(c *chaos, wiped bool, programs ...string) {
	c.t.Helper()
	const run = "/run/openvswitch"
	arguments := map[string][]string{
		"ovsdb-server": {"ovsdb-server", run + "/conf.db", "--remote=punix:" + run + "/db.sock"},
		"ovs-vswitchd": {"ovs-vswitchd", "unix:" + run + "/db.sock"},
	}
	node := c.nodeStatus("node1")
	for _, p := range programs {
		if _, err := node.Sandbox.StartDaemon(sandbox.Daemon{
			Args: append(arguments[p], "--pidfile", "-vconsole:info", "-vsyslog:off"),
			Log:  c.t.ArtifactDir() + "/node1-" + p + ".log", Nice: sandbox.OVSNice,
		}); err != nil {
			c.t.Fatal(err)
		}
		if p == "ovsdb-server" {
			testenv.Eventually(c.t, 10*time.Second, func() error {
				_, err := labtest.Run(c.Exec("node/node1", "ovs-vsctl", "--no-wait", "--timeout=2", "init"))
				return err
			})
			continue
		}
		at := datapath.Datapath(labtest.Datapath())
		var up datapath.Uplink
		for _, addr := range node.Addrs {
			up.Addrs = append(up.Addrs, netip.PrefixFrom(addr, map[bool]int{true: 24, false: 64}[addr.Is4()]))
		}
		if wiped {
			up.MAC = net.HardwareAddr{0x02, 0x57, 0x65, 0x66, 0x74, 0x0b}
			if err := at.Connect(c.t.Context(), node.Sandbox, up); err != nil {
				c.t.Fatal(err)
			}
			continue
		}
		testenv.Eventually(c.t, 10*time.Second, func() error { return at.Readdress(node.Sandbox, up) })
	}
}
