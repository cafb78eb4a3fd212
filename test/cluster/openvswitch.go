package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/lab/datapath"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// openVSwitch says who starts Open vSwitch on the nodes.
type openVSwitch string

const (
	ofNode      openVSwitch = "node"      // the node, before its kubelet, as a package does
	ofDaemonSet openVSwitch = "daemonset" // deploy/openvswitch.yaml; until then nodes have none
)

func (s openVSwitch) String() string {
	if s == ofDaemonSet {
		return "without Open vSwitch"
	}
	return "with Open vSwitch"
}

// check refuses what cannot work. Tunnels of the userspace datapath leave through a bridge that has the node's address:
// such a node is cut off from its API server while its switch is replaced.
func (s openVSwitch) check(o upOptions) error {
	switch {
	case s != ofNode && s != ofDaemonSet:
		return fmt.Errorf("--openvswitch %s: want %s or %s", string(s), ofNode, ofDaemonSet)
	case s == ofDaemonSet && o.install != "" && o.datapath == datapath.Netdev && o.settings["transport"] != "direct":
		return fmt.Errorf("--openvswitch %s on the userspace datapath works without tunnels only: --set transport=direct",
			ofDaemonSet)
	}
	return nil
}

// connect starts a node's Open vSwitch, if it is the node's own, and gives the node its addresses.
func (s openVSwitch) connect(ctx context.Context, c state.Cluster, n state.Node, up datapath.Uplink) error {
	if s == ofDaemonSet {
		return c.Datapath.Address(n.Sandbox, up.Addrs, up.Gateways)
	}
	if err := startOVS(ctx, paths(c.Dir), n); err != nil {
		return err
	}
	return c.Datapath.Connect(ctx, n.Sandbox, up)
}

// deploy applies the DaemonSet beside Weft's manifest, and returns when Open vSwitch runs on all nodes.
func (s openVSwitch) deploy(ctx context.Context, p *progress, c state.Cluster, install string) error {
	if s != ofDaemonSet {
		return nil
	}
	const namespace = "weft-openvswitch"
	manifest := filepath.Join(filepath.Dir(install), "openvswitch.yaml")
	return p.step("kubectl apply -f "+manifest, func(func(string)) error {
		if _, err := kubectl(ctx, c, "apply", "-f", manifest); err != nil {
			return err
		}
		if _, err := kubectl(ctx, c, "--namespace="+namespace, "rollout", "status", "daemonset",
			"--timeout="+deployTimeout.String()); err != nil {
			return fmt.Errorf("wait for Open vSwitch: %w\n%s", err, diagnose(context.WithoutCancel(ctx), c, namespace))
		}
		return nil
	})
}

const (
	ovsRunDir = "/run/openvswitch"
	ovsDB     = "/etc/openvswitch/conf.db"
	ovsSchema = "/usr/share/openvswitch/vswitch.ovsschema"
)

// ovsTimeout bounds how long ovs-vsctl waits for the switch.
func ovsTimeout() string {
	return fmt.Sprintf("--timeout=%.0f", testenv.Patience(20*time.Second).Seconds())
}

// startOVS starts Open vSwitch the way the Debian package does, in the places where it does.
func startOVS(ctx context.Context, dir paths, n state.Node) error {
	// The machine's own database, where the package was ever started, shows in a node's copy of /etc.
	const create = `mkdir -p "$1" "$(dirname "$2")"; rm -f "$2"; ovsdb-tool create "$2" "$3"`
	if _, err := n.Sandbox.Run(ctx, "sh", "-ec", create, "sh", ovsRunDir, ovsDB, ovsSchema); err != nil {
		return err
	}
	daemon := func(program string, ready func(context.Context) error, args ...string) error {
		d := sandbox.Daemon{Args: slices.Concat([]string{program}, args, []string{"--pidfile", "--log-file",
			"-vconsole:off"}), Nice: sandbox.OVSNice}
		return startOnNode(ctx, dir, n, d, ready)
	}
	socket := "unix:" + ovsRunDir + "/db.sock"
	if err := daemon("ovsdb-server", func(ctx context.Context) error {
		_, err := n.Sandbox.Run(ctx, "ovs-vsctl", "--no-wait", "--timeout=2", "init", "--", "set", "Open_vSwitch", ".",
			"external_ids:system-id="+n.Name, "external_ids:hostname="+n.Name)
		return err
	}, ovsDB, "--remote=p"+socket); err != nil {
		return err
	}
	return daemon("ovs-vswitchd", func(ctx context.Context) error {
		// Without --no-wait this returns when the switch has applied it.
		_, err := n.Sandbox.Run(ctx, "ovs-vsctl", ovsTimeout(), "set", "Open_vSwitch", ".", "external_ids:rundir="+ovsRunDir)
		return err
	}, socket)
}
