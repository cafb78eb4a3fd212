package host

import (
	"fmt"
	"iter"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/model"
)

// What the host network does for packets that travel between nodes without a tunnel (model.Hop).

// uplink is a link that carries an address of the node.
type uplink struct {
	name  string
	index int
}

// directHops are the hops that the node's routes are to lead to.
func (d Desired) directHops() iter.Seq[model.Hop] {
	return func(yield func(model.Hop) bool) {
		for _, path := range d.Peers {
			if path.Routed != model.ModeDirect {
				continue
			}
			for _, hop := range path.Hops {
				if !yield(hop) {
					return
				}
			}
		}
	}
}

// findUplinks finds the links of all hops, and an error for each address that no link has.
func findUplinks(d Desired) (uplinks map[netip.Addr]uplink, missing []error, err error) {
	uplinks = map[netip.Addr]uplink{}
	sought := map[netip.Addr]bool{}
	for _, path := range d.Peers {
		for _, hop := range path.Hops {
			sought[hop.Local] = true
		}
	}
	if len(sought) == 0 {
		return uplinks, nil, nil
	}
	carriers, err := carriers()
	if err != nil {
		return nil, nil, err
	}
	for addr := range sought {
		if c, ok := carriers[addr]; ok {
			uplinks[addr] = uplink{c.link.Attrs().Name, c.link.Attrs().Index}
		} else {
			missing = append(missing, fmt.Errorf("no link of this host has address %s; the pods that it leads to are unreachable",
				addr))
		}
	}
	return uplinks, missing, nil
}

// carrier is a link with one of its addresses.
type carrier struct {
	prefix netip.Prefix
	link   netlink.Link
}

// carriers are the links of all addresses of the host.
func carriers() (map[netip.Addr]carrier, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	links := map[int]netlink.Link{}
	for _, l := range all {
		links[l.Attrs().Index] = l
	}
	found := map[netip.Addr]carrier{}
	for _, a := range addrs {
		if l := links[a.LinkIndex]; l != nil && l.Attrs().Flags&net.FlagUp != 0 {
			p := prefix(a.IPNet)
			found[p.Addr()] = carrier{p, l}
		}
	}
	return found, nil
}

// Underlay returns the links that carry these addresses of the node, in their order. An address that no link has, or
// one without a MAC address, is left out.
func Underlay(addrs []netip.Addr) ([]model.Uplink, error) {
	carriers, err := carriers()
	if err != nil {
		return nil, err
	}
	var list []model.Uplink
	for _, a := range addrs {
		c, ok := carriers[a]
		if !ok {
			continue
		}
		mac, err := model.ParseMAC(c.link.Attrs().HardwareAddr.String())
		if err == nil {
			list = append(list, model.Uplink{Prefix: c.prefix, MAC: mac})
		}
	}
	return list, nil
}

// NotToSwitch returns those of the pod CIDRs that no route of Weft's leads to the gateway interface, in their order.
func NotToSwitch(gateway string, cidrs []netip.Prefix) ([]netip.Prefix, error) {
	if len(cidrs) == 0 {
		return nil, nil
	}
	index := 0
	if link, err := netlink.LinkByName(gateway); err == nil { // without the interface nothing leads to it
		index = link.Attrs().Index
	}
	toSwitch := map[netip.Prefix]bool{}
	filter := &netlink.Route{Protocol: RouteProtocol}
	err := netlink.RouteListFilteredIter(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_PROTOCOL,
		func(r netlink.Route) bool {
			if r.Dst != nil && r.LinkIndex == index {
				toSwitch[prefix(r.Dst)] = true
			}
			return true
		})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var list []netip.Prefix
	for _, p := range cidrs {
		if !toSwitch[p] {
			list = append(list, p)
		}
	}
	return list, nil
}

// neighbors are the links and pod CIDRs of the peer nodes whose pods' packets arrive without a tunnel from the link
// itself. All pod CIDRs have the length of the node's own.
func neighbors(d Desired, is4 bool) []element {
	var list []element
	for _, hop := range receivedHops(d, is4) {
		if hop.MAC != (model.MAC{}) {
			list = append(list, element{mac: hop.MAC, prefix: single(hop.CIDR.Addr())})
		}
	}
	return list
}

// fabric are the pod CIDRs of the peer nodes whose pods' packets may come through routers.
func fabric(d Desired, is4 bool) []element {
	var list []netip.Prefix
	for _, hop := range receivedHops(d, is4) {
		if hop.MAC == (model.MAC{}) {
			list = append(list, hop.CIDR)
		}
	}
	return prefixElements(list, is4)
}

// routed are the pod CIDRs of peer nodes that the node's routes do not lead to the switch.
func routed(d Desired, is4 bool) []element {
	var list []netip.Prefix
	for hop := range d.directHops() {
		list = append(list, hop.CIDR)
	}
	for _, r := range d.ipipRoutes() {
		list = append(list, r.cidr)
	}
	return prefixElements(append(list, d.encryptedPodCIDRs()...), is4)
}

// receivedHops are the hops from which packets are accepted.
func receivedHops(d Desired, is4 bool) []model.Hop {
	var list []model.Hop
	for _, path := range d.Peers {
		for _, hop := range path.Hops {
			if path.ReceivesDirect && hop.CIDR.Addr().Is4() == is4 {
				list = append(list, hop)
			}
		}
	}
	return list
}

// addNeighborRules accepts packets of peer nodes' pods on the uplink: those of neighbors from the link that the node
// has published, others only where the network between the nodes has the routes, and so is trusted with sources.
func addNeighborRules(add func(chain, comment string, words ...any), d Desired, f family) {
	hops := receivedHops(d, f.is4)
	local, ok := d.local(f.is4)
	if len(hops) == 0 || !ok {
		return
	}
	u, ok := d.uplinks[hops[0].Local] // the node has one address of a family
	if !ok {
		return
	}
	link := `"` + u.name + `"`
	mask := net.IP(net.CIDRMask(local.Bits(), local.Addr().BitLen())).String()
	add(enteredChain, "pods of neighbors: from the neighbor's link", "iifname", link,
		"ether saddr .", "(", f.header, "saddr &", mask, ")", "@neighbors-"+f.suffix, "accept")
	add(enteredChain, "pods of other nodes: from the network that has routes to them", "iifname", link,
		f.header, "saddr", "@fabric-"+f.suffix, "accept")
}

// addRoutedRules gives packets of the node and of its Services to pods of other nodes the source that they have in
// tunnels: the gateway's address. The kernel keeps the port where it can, so that a connection that begins in a tunnel
// goes on.
func addRoutedRules(add func(chain, comment string, words ...any), gateway, own, masquerade string, f family) {
	to := []any{"oifname !=", gateway, f.header, "daddr", "@routed-" + f.suffix}
	add(postroutingChain, "out of a Service to a pod of another node: from the gateway address",
		append(to[:len(to):len(to)], f.header, "saddr", masquerade, "snat", f.header, "to", own)...)
	add(postroutingChain, "node to pods of another node: from the gateway address",
		append(to[:len(to):len(to)], f.header, "saddr !=", own, "fib saddr type local", "snat", f.header, "to", own)...)
}
