package main

import (
	"context"
	"fmt"

	"github.com/weft-cni/weft/pkg/lab/sandbox"
	"github.com/weft-cni/weft/test/cluster/state"
)

// attachNIC gives a node a NIC with the features that its datapath can do with.
func attachNIC(ctx context.Context, c state.Cluster, n sandbox.Node) error {
	if c.Datapath.Offloads() {
		return c.Underlay.AttachOffloading(n, state.NIC)
	}
	return c.Underlay.Attach(ctx, n, state.NIC)
}

// prepareUplink gives a node its addresses, on the NIC or on the physical bridge.
func prepareUplink(ctx context.Context, c state.Cluster, n state.Node, index int) error {
	if c.Datapath.Bridged() {
		if err := bridgeNIC(ctx, c.Plan, n.Sandbox, index); err != nil {
			return err
		}
	}
	return n.Sandbox.Configure(c.Datapath.Uplink(), c.Plan.Node(index), state.Addrs(c.Plan.Outside()))
}

// bridgeNIC puts the NIC into the physical bridge. It keeps the node's kernel from answering on the NIC what Open vSwitch,
// which reads the same packets, hands it on the bridge: no ARP, no IPv6, and (since the bridge has a MAC address of its
// own) no unicast IPv4.
func bridgeNIC(ctx context.Context, plan state.Plan, n sandbox.Node, index int) error {
	const silence = `
ip link set "$1" arp off up
echo 1 >/proc/sys/net/ipv6/conf/"$1"/disable_ipv6`
	if _, err := n.Run(ctx, "sh", "-ec", silence, "sh", state.NIC); err != nil {
		return err
	}
	_, err := n.Run(ctx, "ovs-vsctl", ovsTimeout(), "add-br", state.PhysicalBridge, "--",
		"set", "bridge", state.PhysicalBridge, "datapath_type=netdev", "fail_mode=standalone", fmt.Sprintf("other_config:hwaddr=%q", plan.NodeMAC(index)), "--",
		"add-port", state.PhysicalBridge, state.NIC)
	return err
}
