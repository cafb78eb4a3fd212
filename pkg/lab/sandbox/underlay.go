package sandbox

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// bridgeName is the underlay's bridge, in the underlay's own network namespace.
const bridgeName = "underlay0"

// Underlay is the network between the nodes: a bridge in a namespace of its own, so that no firewall, forwarding setting
// or container engine of the real machine touches what passes through it.
type Underlay struct {
	Node Node `json:"node"`
	MTU  int  `json:"mtu"`
}

// StartUnderlay creates the bridge and one link, HostLink, that gives the caller's network namespace these addresses on it.
func (g Group) StartUnderlay(ctx context.Context, mtu int, hostAddrs []netip.Prefix) (Underlay, error) {
	node, err := g.Start("underlay", Files{})
	if err != nil {
		return Underlay{}, err
	}
	u := Underlay{Node: node, MTU: mtu}
	// The br_netfilter module, where it is loaded, would pass bridged packets through the namespace's firewall.
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"} {
		if _, err := node.Run(ctx, "sh", "-c", `[ ! -e "$1" ] || echo 0 >"$1"`, "sh", filepath.Join("/proc/sys/net/bridge", name)); err != nil {
			return Underlay{}, err
		}
	}
	handle, err := node.netlink()
	if err != nil {
		return Underlay{}, err
	}
	defer handle.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName, MTU: mtu}}
	if err := handle.LinkAdd(bridge); err != nil {
		return Underlay{}, fmt.Errorf("create bridge %s: %w", bridgeName, err)
	}
	if err := handle.LinkSetUp(bridge); err != nil {
		return Underlay{}, fmt.Errorf("set bridge %s up: %w", bridgeName, err)
	}
	own, err := netns.Get()
	if err != nil {
		return Underlay{}, fmt.Errorf("open the caller's network namespace: %w", err)
	}
	defer own.Close()
	if err := u.plug(ctx, "host", g.HostLink(), nil, own); err != nil {
		return Underlay{}, err
	}
	host, err := netlink.NewHandleAt(own)
	if err != nil {
		return Underlay{}, fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	if err := disableChecksumOffload(ctx, nil, g.HostLink()); err != nil {
		return Underlay{}, err
	}
	return u, configure(host, g.HostLink(), hostAddrs, nil)
}

// Attach gives a node a NIC on the underlay. Nothing of a node's kernel computes checksums later than at sending: a
// switch in user space reads the packets as they are on the wire.
func (u Underlay) Attach(ctx context.Context, n Node, nic string, mac net.HardwareAddr) error {
	ns, err := n.netNS()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := u.plug(ctx, n.Name, nic, mac, ns); err != nil {
		return err
	}
	return disableChecksumOffload(ctx, n.Enter(), nic)
}

// plug creates a veth between the bridge (where it is called port) and a namespace (where it is called nic).
func (u Underlay) plug(ctx context.Context, port, nic string, mac net.HardwareAddr, ns netns.NsHandle) error {
	handle, err := u.Node.netlink()
	if err != nil {
		return err
	}
	defer handle.Close()
	bridge, err := handle.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridgeName, err)
	}
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: port, MTU: u.MTU, MasterIndex: bridge.Attrs().Index},
		PeerName:         nic,
		PeerMTU:          uint32(u.MTU),
		PeerHardwareAddr: mac,
		PeerNamespace:    netlink.NsFd(int(ns)),
	}
	if err := handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("create NIC %s on the underlay: %w", nic, err)
	}
	if err := handle.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set underlay port %s up: %w", port, err)
	}
	return nil
}

func disableChecksumOffload(ctx context.Context, enter []string, nic string) error {
	argv := append(append([]string{}, enter...), "ethtool", "-K", nic, "tx", "off")
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("turn off checksum offload of %s: %w: %s", nic, err, out)
	}
	return nil
}
