package cni

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// podAddr is a pod's address with the prefix length of the pod CIDR, and the gateway of that CIDR.
type podAddr struct {
	prefix  netip.Prefix
	gateway netip.Addr
}

// podAddrs pairs the attachment's addresses with the node's pod CIDRs. The prefix length is that of the CIDR, although
// the switch would route a /32 as well: portmap masquerades hairpin connections by it, see docs/cni.md.
func podAddrs(att model.Attachment, cidrs []netip.Prefix) []podAddr {
	var addrs []podAddr
	for _, ip := range att.IPs {
		for _, cidr := range cidrs {
			if cidr.Contains(ip) {
				addrs = append(addrs, podAddr{netip.PrefixFrom(ip, cidr.Bits()), model.GatewayAddr(cidr)})
			}
		}
	}
	return addrs
}

// addVeth creates the veth pair, with the pod's end in the pod's namespace and under its final name from the start. It
// returns the node's end, which is down.
func addVeth(att model.Attachment, mtu int, netns *os.File) (*netlink.Veth, error) {
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{
			Name: att.HostIfName,
			MTU:  mtu,
			// udev and NetworkManager leave a link alone whose address was set explicitly.
			HardwareAddr: randomMAC(),
			Group:        GroupAdding,
			TxQLen:       -1,
		},
		PeerName:         att.IfName,
		PeerHardwareAddr: att.MAC.Hardware(),
		PeerNamespace:    netlink.NsFd(int(netns.Fd())),
		PeerMTU:          uint32(mtu),
		PeerTxQLen:       -1,
	}
	if err := netlink.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EEXIST) {
			if _, missing := netlink.LinkByName(att.HostIfName); missing == nil {
				return nil, fmt.Errorf("create veth %s: the node already has a link of that name", att.HostIfName)
			}
			return nil, errorf(types.ErrInvalidEnvironmentVariables,
				"CNI_IFNAME: the container already has an interface %s", att.IfName)
		}
		return nil, fmt.Errorf("create veth %s with peer %s: %w", att.HostIfName, att.IfName, err)
	}
	return veth, nil
}

func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

// raiseHostEnd brings the node's end up. The node's kernel must not speak IP or answer ARP on it.
func raiseHostEnd(veth *netlink.Veth, sys sysctls) error {
	// A kernel without IPv6 lacks this sysctl.
	if err := sys.set("ipv6/conf/"+veth.Name+"/disable_ipv6", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("disable IPv6 on link %s: %w", veth.Name, err)
	}
	if err := netlink.LinkSetARPOff(veth); err != nil {
		return fmt.Errorf("disable ARP on link %s: %w", veth.Name, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bring link %s up: %w", veth.Name, err)
	}
	return nil
}

// configurePod configures the pod's end: sysctls, addresses, default routes and, with the userspace datapath, checksums
// and the egress limit.
func configurePod(
	netns *os.File, ifName string, addrs []podAddr, userspaceDatapath bool, limit egressLimit, sys sysctls,
) error {
	return inNetns(netns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink in the pod's network namespace: %w", err)
		}
		defer h.Close()
		link, err := h.LinkByName(ifName)
		if err != nil {
			return fmt.Errorf("find link %s in the pod: %w", ifName, err)
		}
		if userspaceDatapath {
			if err := disableChecksumOffload(ifName); err != nil {
				return err
			}
			if err := limitEgress(h, link, limit); err != nil {
				return err
			}
		}
		for _, a := range addrs {
			if a.prefix.Addr().Is6() {
				if err := allowIPv6(ifName, sys); err != nil {
					return err
				}
			}
			if err := h.AddrAdd(link, netlinkAddr(a)); err != nil {
				return fmt.Errorf("add address %s to the pod's %s: %w", a.prefix, ifName, err)
			}
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring the pod's %s up: %w", ifName, err)
		}
		for _, a := range addrs {
			if err := h.RouteAdd(defaultRoute(link, a)); err != nil {
				return fmt.Errorf("add the pod's default route via %s: %w", a.gateway, err)
			}
		}
		return nil
	})
}

func netlinkAddr(a podAddr) *netlink.Addr {
	addr := &netlink.Addr{IPNet: ipNet(a.prefix)}
	if a.prefix.Addr().Is6() {
		// Weft allocated the address, so skip duplicate address detection: it is usable at once.
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

func defaultRoute(link netlink.Link, a podAddr) *netlink.Route {
	bits := a.prefix.Addr().BitLen()
	return &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)},
		Gw:        a.gateway.AsSlice(),
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// allowIPv6 reverts a runtime's disable_ipv6 and disables router advertisements, which would add other routes.
func allowIPv6(ifName string, sys sysctls) error {
	for _, s := range []struct{ name, value string }{{"disable_ipv6", "0"}, {"accept_ra", "0"}} {
		if err := sys.set("ipv6/conf/"+ifName+"/"+s.name, s.value); err != nil {
			return fmt.Errorf("set %s of the pod's %s: %w", s.name, ifName, err)
		}
	}
	return nil
}

// disableChecksumOffload makes the pod's kernel compute complete checksums: the userspace datapath does not complete
// partial ones, so TCP handshakes would fail.
func disableChecksumOffload(ifName string) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open ethtool in the pod's network namespace: %w", err)
	}
	defer e.Close()
	if err := e.Change(ifName, map[string]bool{"tx-checksum-ip-generic": false, "tx-checksum-sctp": false}); err != nil {
		return fmt.Errorf("turn TX checksum offload off on the pod's %s: %w", ifName, err)
	}
	return nil
}

// deleteLink deletes the node's end of the veth, and with it the pod's. It does nothing when the link does not exist or
// is not Weft's.
func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if !isOurs(link) {
		return nil
	}
	// The pod's namespace may be deleted at the same time.
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

func isOurs(link netlink.Link) bool {
	group := link.Attrs().Group
	return link.Type() == "veth" && (group == GroupAttached || group == GroupAdding)
}
