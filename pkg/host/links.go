package host

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// syncLink configures the gateway interface, which OVS creates. It fails while the interface does not exist.
func (h *Host) syncLink(c *changes, d Desired) (netlink.Link, error) {
	link, err := netlink.LinkByName(d.Gateway)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("gateway interface %s does not exist; ovs-vswitchd creates it with the bridge", d.Gateway)
	}
	if err != nil {
		return nil, fmt.Errorf("find gateway interface %s: %w", d.Gateway, err)
	}
	a := link.Attrs()
	if mac := model.GatewayMAC.Hardware(); !bytes.Equal(a.HardwareAddr, mac) {
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return nil, fmt.Errorf("set MAC address of %s: %w", d.Gateway, err)
		}
		c.add("%s: MAC address %s to %s", d.Gateway, a.HardwareAddr, mac)
	}
	if d.MTU > 0 && a.MTU != d.MTU {
		if err := netlink.LinkSetMTU(link, d.MTU); err != nil {
			return nil, fmt.Errorf("set MTU of %s to %d: %w", d.Gateway, d.MTU, err)
		}
		c.add("%s: MTU %d to %d", d.Gateway, a.MTU, d.MTU)
	}
	if a.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("set %s up: %w", d.Gateway, err)
		}
		c.add("%s: up", d.Gateway)
	}
	return link, nil
}

// syncAddresses adds the gateway interface's addresses, and removes those of other pod CIDRs.
func syncAddresses(c *changes, link netlink.Link, d Desired) error {
	name := link.Attrs().Name
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	want, ours := map[netip.Prefix]bool{}, map[netip.Addr]bool{}
	for _, p := range d.PodCIDRs {
		want[gatewayPrefix(p)] = true
		ours[model.GatewayAddr(p)] = true
	}
	for _, a := range have {
		p := prefix(a.IPNet)
		switch {
		case want[p] && a.Flags&unix.IFA_F_NOPREFIXROUTE != 0:
			delete(want, p)
		case ours[p.Addr()], p == gatewayPrefix(p.Masked()) && a.Scope == unix.RT_SCOPE_UNIVERSE:
			if err := netlink.AddrDel(link, &a); err != nil {
				return fmt.Errorf("remove address %s from %s: %w", p, name, err)
			}
			c.add("%s: address %s removed", name, p)
		}
	}
	for _, cidr := range d.PodCIDRs {
		p := gatewayPrefix(cidr)
		if !want[p] {
			continue
		}
		// Weft adds the route to the local pods itself, instead of the kernel with the address.
		a := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NOPREFIXROUTE}
		if p.Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, name, err)
		}
		c.add("%s: address %s added", name, p)
	}
	return syncLinkLocal(c, link, have, d)
}

// syncLinkLocal gives the gateway interface a link-local address when it has none. The kernel adds one when the link
// comes up, and never again. Without it the kernel cannot solicit a pod's link-layer address for forwarded packets (RFC
// 4861 section 7.2.2: the source of a solicitation is an address of the interface).
func syncLinkLocal(c *changes, link netlink.Link, have []netlink.Addr, d Desired) error {
	ipv6 := slices.ContainsFunc(d.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if !ipv6 || slices.ContainsFunc(have, func(a netlink.Addr) bool {
		return a.IP.To4() == nil && a.IP.IsLinkLocalUnicast()
	}) {
		return nil
	}
	name, p := link.Attrs().Name, netip.PrefixFrom(linkLocalAddr(model.GatewayMAC), 64)
	a := &netlink.Addr{IPNet: ipNet(p), Scope: unix.RT_SCOPE_LINK, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrAdd(link, a); err != nil && !errors.Is(err, unix.EEXIST) { // the kernel was faster
		return fmt.Errorf("add address %s to %s: %w", p, name, err)
	}
	c.add("%s: address %s added", name, p)
	return nil
}

// linkLocalAddr is the address that the kernel derives from a MAC address (RFC 4291 appendix A).
func linkLocalAddr(m model.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// UnderlayMTU returns MTU (in bytes) and name of the link with the address. It fails when no link has it.
func UnderlayMTU(addr netip.Addr) (mtu int, link string, err error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, "", fmt.Errorf("find the link with address %s: %w", addr, err)
	}
	for _, a := range all {
		if prefix(a.IPNet).Addr() != addr {
			continue
		}
		l, err := netlink.LinkByIndex(a.LinkIndex)
		if err != nil {
			return 0, "", fmt.Errorf("find the link with address %s: %w", addr, err)
		}
		return l.Attrs().MTU, l.Attrs().Name, nil
	}
	return 0, "", fmt.Errorf("no link of this host has address %s; is it the node's InternalIP, and does the agent run "+
		"in the host's network?", addr)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) netip.Prefix {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
