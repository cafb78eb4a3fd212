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
	return link, linkUp(c, link, d.MTU)
}

// linkUp sets a link up, with an MTU in bytes; 0 leaves it unchanged.
func linkUp(c *changes, link netlink.Link, mtu int) error {
	a := link.Attrs()
	if mtu > 0 && a.MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", a.Name, mtu, err)
		}
		c.add("%s: MTU %d to %d", a.Name, a.MTU, mtu)
	}
	if a.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", a.Name, err)
		}
		c.add("%s: up", a.Name)
	}
	return nil
}

// syncAddresses removes the gateway interface's addresses of other pod CIDRs, and adds its own ones. It always reads
// the kernel's addresses, which are few.
func syncAddresses(c *changes, link netlink.Link, d Desired) error {
	name := link.Attrs().Name
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	// The values are flags. Weft adds the route to the local pods itself, instead of the kernel with the address.
	var want []entry[netip.Prefix, int]
	ours := map[netip.Addr]bool{}
	for _, p := range d.PodCIDRs {
		want = append(want, entry[netip.Prefix, int]{unix.IFA_F_NOPREFIXROUTE, gatewayPrefix(p)})
		ours[model.GatewayAddr(p)] = true
	}
	// The kernel adds a link-local address when the link comes up, and never again. Without one it cannot solicit a pod's
	// link-layer address for forwarded packets (RFC 4861 section 7.2.2: the source of a solicitation is an address of the
	// interface).
	linkLocal := netip.PrefixFrom(linkLocalAddr(model.GatewayMAC), 64)
	if _, ipv6 := d.local(false); ipv6 && !slices.ContainsFunc(have, isLinkLocal) {
		want = append(want, entry[netip.Prefix, int]{0, linkLocal})
	}
	known, addrs := map[netip.Prefix]int{}, map[netip.Prefix]netlink.Addr{}
	for _, a := range have {
		p := prefix(a.IPNet)
		if ours[p.Addr()] || p == gatewayPrefix(p.Masked()) && a.Scope == unix.RT_SCOPE_UNIVERSE {
			known[p], addrs[p] = a.Flags&unix.IFA_F_NOPREFIXROUTE, a
		}
	}
	t := newTracker[netip.Prefix, int](comparePrefixes)
	t.desire(want)
	remove := func(e entry[netip.Prefix, int]) error {
		a := addrs[e.key]
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s from %s: %w", e.key, name, err)
		}
		c.add("%s: address %s removed", name, e.key)
		return nil
	}
	return t.sync(known, remove, func(e entry[netip.Prefix, int], replace bool) error {
		if replace {
			if err := remove(e); err != nil {
				return err
			}
		}
		a := &netlink.Addr{IPNet: ipNet(e.key), Flags: e.value}
		if e.key == linkLocal {
			a.Scope = unix.RT_SCOPE_LINK
		}
		if e.key.Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD
		}
		// The kernel may be faster with a link-local address.
		if err := netlink.AddrAdd(link, a); err != nil && (e.key != linkLocal || !errors.Is(err, unix.EEXIST)) {
			return fmt.Errorf("add address %s to %s: %w", e.key, name, err)
		}
		c.add("%s: address %s added", name, e.key)
		return nil
	})
}

func isLinkLocal(a netlink.Addr) bool { return a.IP.To4() == nil && a.IP.IsLinkLocalUnicast() }

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
