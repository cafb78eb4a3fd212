package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// bridgeName is the bridge of a segment of the underlay, in the underlay's own network namespace.
func bridgeName(segment int) string { return fmt.Sprintf("underlay%d", segment) }

// Underlay is the network between the nodes: a bridge in a namespace of its own, so that no firewall, forwarding
// setting or container engine of the real machine touches what passes through it.
type Underlay struct {
	Node Node `json:"node"`
	MTU  int  `json:"mtu"`
	// Segment is the number of the bridge: AddSegment makes more.
	Segment int `json:"segment"`
}

// StartUnderlay creates the bridge and, when there are addresses, one link, HostLink, that gives the caller's network
// namespace these on it.
func (g Group) StartUnderlay(ctx context.Context, mtu int, hostAddrs []netip.Prefix) (Underlay, error) {
	node, err := g.Start("underlay", Files{})
	if err != nil {
		return Underlay{}, err
	}
	u := Underlay{Node: node, MTU: mtu}
	// The br_netfilter module, where it is loaded, would pass bridged packets through the namespace's firewall.
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"} {
		if _, err := node.Run(ctx, "sh", "-c", `[ ! -e "$1" ] || echo 0 >"$1"`, "sh", filepath.Join("/proc/sys/net/bridge",
			name)); err != nil {
			return Underlay{}, err
		}
	}
	if err := u.addBridge(); err != nil || len(hostAddrs) == 0 {
		return u, err
	}
	return u, u.attachHost(ctx, g.HostLink(), hostAddrs)
}

// AddSegment creates another bridge. The underlay's namespace routes between segments, with the addresses that
// Configure gives it.
func (u Underlay) AddSegment(ctx context.Context, segment int) (Underlay, error) {
	const forward = `echo 1 >/proc/sys/net/ipv4/ip_forward
[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/all/forwarding`
	if _, err := u.Node.Run(ctx, "sh", "-ec", forward); err != nil {
		return Underlay{}, err
	}
	u.Segment = segment
	return u, u.addBridge()
}

func (u Underlay) addBridge() error {
	handle, err := u.Node.netlink()
	if err != nil {
		return err
	}
	defer handle.Close()
	name := bridgeName(u.Segment)
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: u.MTU}}
	if err := handle.LinkAdd(bridge); err != nil {
		return fmt.Errorf("create bridge %s: %w", name, err)
	}
	if err := handle.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("set bridge %s up: %w", name, err)
	}
	return nil
}

// attachHost gives the caller's network namespace a NIC on the underlay.
func (u Underlay) attachHost(ctx context.Context, nic string, addrs []netip.Prefix) error {
	own, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open the caller's network namespace: %w", err)
	}
	defer own.Close()
	if err := u.plug("host", nic, own); err != nil {
		return err
	}
	host, err := netlink.NewHandleAt(own)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	argv := checksumAtSending(nic)
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return configure(host, nic, addrs, nil)
}

// Configure makes the underlay a member of itself: its own network namespace gets these addresses on the bridge. With
// checksums, they are computed at sending, as Attach has it.
func (u Underlay) Configure(ctx context.Context, addrs []netip.Prefix, checksums bool) error {
	if checksums {
		if _, err := u.Node.Run(ctx, checksumAtSending(bridgeName(u.Segment))...); err != nil {
			return err
		}
	}
	return u.Node.Configure(bridgeName(u.Segment), addrs, nil)
}

// Attach gives a node a NIC on the underlay. With checksums, they are computed at sending: a switch in user space, on
// this node or at the other end, reads the packets as they are and could not complete them.
func (u Underlay) Attach(ctx context.Context, n Node, nic string, checksums bool) error {
	ns, err := n.netNS()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := u.plug(n.Name, nic, ns); err != nil || !checksums {
		return err
	}
	_, err = n.Run(ctx, checksumAtSending(nic)...)
	return err
}

// plug creates a veth between the bridge (where it is called port) and a namespace (where it is called nic).
func (u Underlay) plug(port, nic string, ns netns.NsHandle) error {
	handle, err := u.Node.netlink()
	if err != nil {
		return err
	}
	defer handle.Close()
	bridge, err := handle.LinkByName(bridgeName(u.Segment))
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridgeName(u.Segment), err)
	}
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: port, MTU: u.MTU, MasterIndex: bridge.Attrs().Index},
		PeerName:      nic,
		PeerMTU:       uint32(u.MTU),
		PeerNamespace: netlink.NsFd(int(ns)),
	}
	if err := handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("create NIC %s on the underlay: %w", nic, err)
	}
	if err := handle.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set underlay port %s up: %w", port, err)
	}
	return nil
}

// checksumAtSending is the command after which a NIC's packets carry complete checksums.
func checksumAtSending(nic string) []string { return []string{"ethtool", "-K", nic, "tx", "off"} }
