package host

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// link readies the gateway interface, which OVS makes.
func (h *Host) link(c *changes, d Desired) (netlink.Link, error) {
	link, err := netlink.LinkByName(d.Gateway)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("gateway interface %s does not exist; it comes with the bridge", d.Gateway)
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

// addresses gives the gateway interface its addresses, and takes those away that it had for other pod CIDRs.
func addresses(c *changes, link netlink.Link, d Desired) error {
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
		// The route to the local pods is one of ours, not a side effect of the address.
		a := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NOPREFIXROUTE}
		if p.Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, name, err)
		}
		c.add("%s: address %s added", name, p)
	}
	return nil
}

// ipv6DefaultMetric is what the kernel gives IPv6 routes that ask for none.
const ipv6DefaultMetric = 1024

// route is what of a route is ours to decide.
type route struct {
	dst     netip.Prefix
	gateway netip.Addr // none for this node's own pods
	source  netip.Addr
	link    int
	metric  int
}

// desiredRoutes are the routes to all pods.
func desiredRoutes(d Desired, link int) []route {
	var list []route
	add := func(dst netip.Prefix, via netip.Addr) {
		if local, ok := d.local(dst.Addr().Is4()); ok {
			r := route{dst: dst, gateway: via, source: model.GatewayAddr(local), link: link}
			if dst.Addr().Is6() {
				r.metric = ipv6DefaultMetric
			}
			list = append(list, r)
		}
	}
	for _, p := range d.PodCIDRs {
		add(p, netip.Addr{})
	}
	for _, p := range d.RemotePodCIDRs {
		add(p, model.GatewayAddr(p))
	}
	return list
}

// routes makes the routes first and removes the stale ones then, so that a change of one leaves no gap. One that cannot be
// made does not keep the others from it.
func routes(c *changes, link netlink.Link, d Desired) error {
	want := desiredRoutes(d, link.Attrs().Index)
	have, err := ourRoutes()
	if err != nil {
		return err
	}
	known, ours := make(map[route]bool, len(have)), make(map[netip.Prefix]bool, len(have))
	for _, k := range have {
		r := fromKernel(k)
		known[r] = true
		ours[r.dst] = true
	}
	wanted := make(map[route]bool, len(want))
	missing := map[netip.Prefix]bool{}
	for _, r := range want {
		wanted[r] = true
		if !known[r] {
			missing[r.dst] = true
		}
	}
	foreign, err := foreignRoutes(missing)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range want {
		if known[r] {
			continue
		}
		if err := r.write(foreign[r.dst], ours[r.dst]); err == nil {
			c.add("route to %s added", r.dst)
		} else if err = fmt.Errorf("add route to %s through %s: %w", r.dst, d.Gateway, err); r.gateway.IsValid() {
			c.unrouted = append(c.unrouted, err)
		} else {
			errs = append(errs, err)
		}
	}
	// Ask again: what a new route replaced is gone, and deleting it nevertheless might hit the new one.
	if have, err = ourRoutes(); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, k := range have {
		r := fromKernel(k)
		if wanted[r] {
			continue
		}
		if err := netlink.RouteDel(&k); err != nil {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", r.dst, err))
			continue
		}
		c.add("route to %s removed", r.dst)
	}
	return errors.Join(errs...)
}

// write makes the route. It replaces one of ours, or the one that the kernel makes of the gateway's address, but nobody
// else's.
func (r route) write(foreign []netlink.Route, ours bool) error {
	replace := ours
	for _, k := range foreign {
		if r.gateway.IsValid() || k.Protocol != unix.RTPROT_KERNEL || k.LinkIndex != r.link {
			return fmt.Errorf("there is one that is not Weft's, which stays: %s; remove it, or the object that claims its range", k)
		}
		replace = true
	}
	if replace {
		return netlink.RouteReplace(r.toKernel())
	}
	return netlink.RouteAdd(r.toKernel())
}

// foreignRoutes are the routes to exactly these prefixes, at any metric, that are not ours.
func foreignRoutes(to map[netip.Prefix]bool) (map[netip.Prefix][]netlink.Route, error) {
	found := map[netip.Prefix][]netlink.Route{}
	if len(to) == 0 {
		return found, nil
	}
	err := netlink.RouteListFilteredIter(netlink.FAMILY_ALL, &netlink.Route{}, 0, func(k netlink.Route) bool {
		if k.Dst != nil && k.Protocol != RouteProtocol && to[prefix(k.Dst)] {
			found[prefix(k.Dst)] = append(found[prefix(k.Dst)], k)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return found, nil
}

func ourRoutes() ([]netlink.Route, error) {
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return list, nil
}

func (r route) toKernel() *netlink.Route {
	k := &netlink.Route{
		Dst:       ipNet(r.dst),
		Src:       r.source.AsSlice(),
		LinkIndex: r.link,
		Protocol:  RouteProtocol,
		Priority:  r.metric,
	}
	if r.gateway.IsValid() {
		k.Gw = r.gateway.AsSlice()
		k.Flags = int(netlink.FLAG_ONLINK)
	} else {
		k.Scope = netlink.SCOPE_LINK
	}
	return k
}

// fromKernel gives a route that is not as we make them a link that there is not, so that it equals none of ours.
func fromKernel(k netlink.Route) route {
	r := route{link: k.LinkIndex, metric: k.Priority}
	if k.Dst != nil {
		r.dst = prefix(k.Dst)
	}
	if a, ok := netip.AddrFromSlice(k.Gw); ok {
		r.gateway = a.Unmap()
	}
	if a, ok := netip.AddrFromSlice(k.Src); ok {
		r.source = a.Unmap()
	}
	onlink := k.Flags&int(netlink.FLAG_ONLINK) != 0
	if onlink != r.gateway.IsValid() || k.Table != unix.RT_TABLE_MAIN || k.Type != unix.RTN_UNICAST {
		r.link = -1
	}
	return r
}

// UnderlayMTU is the MTU of the link that carries the address, and the link's name.
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
	return 0, "", fmt.Errorf("no link of this host has address %s; is it the node's InternalIP, and does the agent run in the host's network?", addr)
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
