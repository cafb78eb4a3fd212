// Package datapath is everything in which a simulated node differs between Open vSwitch's kinds of datapath: whether
// this machine can have it, which features the node's NIC may have, and where the node's addresses are. (What differs
// in the agent is the pods' checksum offload: cni.Settings.UserspaceDatapath.)
//
// Labs and test clusters both make their nodes through it. It holds no state; its values may be used from any
// goroutine.
package datapath

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

const (
	// nic is a node's network card on the underlay.
	nic = "eth0"
	// physicalBridge is the bridge that has taken over the NIC, with the node's addresses.
	physicalBridge = "br-phy"
	// ovsTimeout bounds how long ovs-vsctl waits for the switch, in seconds; an emulated machine is slow.
	ovsTimeout = "--timeout=60"
)

// Datapath is where the nodes' Open vSwitch forwards, in the words of Weft's setting.
type Datapath config.Datapath

// The datapaths: userspace, and the kernel's.
const (
	Netdev = Datapath(config.DatapathNetdev)
	System = Datapath(config.DatapathSystem)
)

// Parse checks a datapath that a person typed.
func Parse(text string) (Datapath, error) {
	switch d := Datapath(text); d {
	case Netdev, System:
		return d, nil
	}
	return "", fmt.Errorf("datapath %q: want %s or %s", text, Netdev, System)
}

// Available says why this machine cannot have the datapath, or nil.
func (d Datapath) Available() error {
	if d == Netdev {
		if _, err := os.Stat("/dev/net/tun"); err != nil {
			return fmt.Errorf("the userspace datapath needs TUN devices: %w", err)
		}
		return nil
	}
	if _, err := os.Stat("/sys/module/openvswitch"); err == nil {
		return nil
	}
	out, err := exec.Command("modprobe", "openvswitch").CombinedOutput()
	if err != nil {
		return fmt.Errorf("this kernel has no openvswitch module, which the datapath %q needs (use --datapath %s): %w: %s",
			System, Netdev, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Checksums says that every member of the underlay has to compute them at sending: a kernel makes up for what the
// sender left to its NIC, but a switch in user space forwards packets as it reads them.
func (d Datapath) Checksums() bool { return d == Netdev }

// Attach gives a member of the underlay a NIC with the features that the datapath can do with.
func (d Datapath) Attach(ctx context.Context, u sandbox.Underlay, n sandbox.Node) error {
	return u.Attach(ctx, n, nic, d.Checksums())
}

// Address gives a member of the underlay that has no Open vSwitch its addresses, and default routes.
func (d Datapath) Address(n sandbox.Node, addrs []netip.Prefix, gateways []netip.Addr) error {
	return n.Configure(nic, addrs, gateways)
}

// Uplink is how a node with an Open vSwitch is on the underlay.
type Uplink struct {
	MAC      net.HardwareAddr
	Addrs    []netip.Prefix
	Gateways []netip.Addr // of the node's default routes; there may be none
}

// Connect gives a node its addresses, where its tunnels leave. Open vSwitch runs there, and Attach has been called.
func (d Datapath) Connect(ctx context.Context, n sandbox.Node, up Uplink) error {
	if d == Netdev {
		if err := bridgeNIC(ctx, n, up.MAC); err != nil {
			return err
		}
	}
	return d.Readdress(n, up)
}

// Readdress puts back the addresses and routes of a node that was connected, after its Open vSwitch recreated its
// links.
func (d Datapath) Readdress(n sandbox.Node, up Uplink) error {
	link := nic // the kernel's tunnels leave through the node's own network
	if d == Netdev {
		link = physicalBridge
	}
	return n.Configure(link, up.Addrs, up.Gateways)
}

// bridgeNIC puts the NIC into a bridge of its own, whose internal port is to have the node's addresses: tunnels of the
// userspace datapath leave through a bridge of that datapath only.
func bridgeNIC(ctx context.Context, n sandbox.Node, mac net.HardwareAddr) error {
	// The node's kernel sees the NIC's packets too and must not answer them besides the bridge: no ARP, no IPv6, and
	// (since the bridge has a MAC address of its own) no unicast IPv4.
	const silence = `ip link set "$1" arp off up
[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/"$1"/disable_ipv6`
	if _, err := n.Run(ctx, "sh", "-ec", silence, "sh", nic); err != nil {
		return err
	}
	_, err := n.Run(ctx, "ovs-vsctl", ovsTimeout, "add-br", physicalBridge, "--",
		"set", "bridge", physicalBridge, "datapath_type="+string(Netdev), "fail_mode=standalone", fmt.Sprintf(
			"other_config:hwaddr=%q", mac), "--",
		"add-port", physicalBridge, nic)
	return err
}
