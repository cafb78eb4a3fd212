package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/lab/sandbox"
)

// nic is a node's network card.
const nic = "eth0"

// datapath is everything in which a lab differs between Open vSwitch's kinds of datapath. (In the agent, it is the pods'
// checksum offload: cni.Settings.UserspaceDatapath.)
type datapath struct {
	name config.Datapath
	// checksums makes every NIC compute them at sending: a switch in user space reads the packets as they are.
	checksums bool
	// available says why this machine cannot have the datapath, or nil.
	available func() error
	// connect puts a node's NIC and its addresses where the tunnels find them. Open vSwitch runs.
	connect func(ctx context.Context, n *node) error
	// attach gives the node its NIC.
	attach func(ctx context.Context, u sandbox.Underlay, n sandbox.Node) error
}

var datapaths = map[config.Datapath]datapath{
	config.DatapathNetdev: {
		name:      config.DatapathNetdev,
		checksums: true,
		available: func() error {
			if _, err := os.Stat("/dev/net/tun"); err != nil {
				return fmt.Errorf("the userspace datapath needs TUN devices: %w", err)
			}
			return nil
		},
		attach:  func(ctx context.Context, u sandbox.Underlay, n sandbox.Node) error { return u.Attach(ctx, n, nic) },
		connect: connectThroughBridge,
	},
	config.DatapathSystem: {
		name: config.DatapathSystem,
		available: func() error {
			if _, err := os.Stat("/sys/module/openvswitch"); err == nil {
				return nil
			}
			out, err := exec.Command("modprobe", "openvswitch").CombinedOutput()
			if err != nil {
				return fmt.Errorf("this kernel has no openvswitch module, which the datapath %q needs (use --datapath netdev): %w: %s",
					config.DatapathSystem, err, strings.TrimSpace(string(out)))
			}
			return nil
		},
		attach: func(_ context.Context, u sandbox.Underlay, n sandbox.Node) error { return u.AttachOffloading(n, nic) },
		// The kernel's tunnels leave through the node's own network.
		connect: func(_ context.Context, n *node) error {
			return n.sandbox.Configure(nic, n.underlay, nil)
		},
	},
}

// connectThroughBridge puts the NIC into a bridge of its own, whose internal port has the node's addresses: tunnels of the
// userspace datapath leave through a bridge of that datapath only.
func connectThroughBridge(ctx context.Context, n *node) error {
	const bridge = "br-phy"
	// The node's kernel sees the NIC's packets too and must not answer them besides the bridge: no ARP, no IPv6, and
	// (since the bridge has a MAC address of its own) no unicast IPv4.
	const silence = `ip link set "$1" arp off up
[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/"$1"/disable_ipv6`
	if _, err := n.sandbox.Run(ctx, "sh", "-ec", silence, "sh", nic); err != nil {
		return err
	}
	if _, err := n.sandbox.Run(ctx, "ovs-vsctl", ovsTimeout, "add-br", bridge, "--",
		"set", "bridge", bridge, "datapath_type="+string(config.DatapathNetdev), "fail_mode=standalone", fmt.Sprintf("other_config:hwaddr=%q", nodeMAC(n.index)), "--",
		"add-port", bridge, nic); err != nil {
		return err
	}
	return n.sandbox.Configure(bridge, n.underlay, nil)
}

// findDatapath returns the named one, if this machine can have it.
func findDatapath(name config.Datapath) (datapath, error) {
	d, ok := datapaths[name]
	if !ok {
		return datapath{}, fmt.Errorf("datapath %q: want %s or %s", name, config.DatapathNetdev, config.DatapathSystem)
	}
	return d, d.available()
}
