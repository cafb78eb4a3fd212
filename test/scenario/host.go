package scenario

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/trace"
)

// This file is a model of what nodes' kernels do with packets: routes and nftables as pkg/host writes them, as far as
// scenarios see them. Running the same files in the lab shows where it differs from the kernel.

// origin is the side from which a packet enters a node's kernel.
type origin string

const (
	fromItself   origin = "itself"
	fromSwitch   origin = "the switch"
	fromUnderlay origin = "the underlay"
)

// host sends a packet through a node's kernel.
func (c *conversation) host(here *node, from origin, p packet) end {
	before := p
	if c.steps {
		fmt.Fprintf(&c.log, "kernel of %s, from %s: %v\n", here.name, from, p)
	}
	s := here.snapshot
	local := slices.Contains(here.locals(s), p.dst.Addr())
	is4 := p.dst.Addr().Is4()
	if from != fromItself || p.flags != trace.SYN {
		if known, ok := c.nat[here][p.tuple()]; ok { // a reply, which no rule translates
			known.flags = p.flags
			return c.route(here, from, known)
		}
	}
	if p.flags == trace.SYN|trace.ACK {
		return c.route(here, from, p)
	}
	if p.dst.Addr() == model.RejectAddr(is4) {
		return end{outcome: refused}
	}
	// Chain services.
	if local && p.src.Addr() != model.MasqueradeAddr(is4) {
		if to, ok := here.service(p); ok {
			p.dst = to
		}
	}
	// Chain postrouting.
	switch to := p.dst.Addr(); {
	case slices.Contains(here.locals(s), to):
	case c.toSwitch(here, from, p):
		toOwnNodePort := p.src.Addr() == s.Self.Primary() &&
			slices.ContainsFunc(model.NodePortPrefixes(is4), func(r netip.Prefix) bool { return r.Contains(to) })
		if from == fromItself && !here.owns(to) && !toOwnNodePort {
			p.src = netip.AddrPortFrom(of(c.gateways[here.name], is4), p.src.Port())
		}
	case from == fromSwitch && (p.src.Addr() == model.MasqueradeAddr(is4) || here.owns(p.src.Addr())):
		p.src = netip.AddrPortFrom(of(here.addrs, is4), p.src.Port())
	}
	if p.tuple() != before.tuple() {
		c.nat[here][p.reply().tuple()] = before.reply()
	}
	return c.route(here, from, p)
}

// route sends a packet where the node's routes lead.
func (c *conversation) route(here *node, from origin, p packet) end {
	switch {
	case slices.Contains(here.locals(here.snapshot), p.dst.Addr()):
		return c.arrive(place{nil, here}, p)
	case c.toSwitch(here, from, p):
		return c.switched(here, model.PortGateway, model.GatewayMAC, netip.Addr{}, p)
	}
	return c.underlay(here, p)
}

// service finds where a packet to one of the node's own addresses leads: an external address, or a node port.
func (here *node) service(p packet) (netip.AddrPort, bool) {
	ofPods := here.inPodCIDR(p.dst.Addr()) // which no Service gets
	for _, s := range here.snapshot.Services {
		for _, port := range s.Ports {
			if port.Protocol.Number() != p.protocol {
				continue
			}
			nodePort := model.NodePortAt(p.dst.Addr().Is4(), port.Protocol, port.NodePort)
			for _, f := range port.Frontends() {
				switch {
				case f.At.Addr().Is4() != p.dst.Addr().Is4():
				case f.Kind == model.NodePort && port.NodePort == p.dst.Port():
					return nodePort, true
				case ofPods:
				case f.Kind == model.ExternalIP && f.At == p.dst && port.NodePort != 0:
					return nodePort, true
				case f.Kind == model.ExternalIP && f.At == p.dst:
					return netip.AddrPortFrom(port.ClusterIP, port.Port), true
				}
			}
		}
	}
	return netip.AddrPort{}, false
}

// routesToSwitch reports whether the node's routes lead to the switch: to pods, ClusterIPs, and Weft's own addresses.
func (here *node) routesToSwitch(to netip.Addr) bool {
	ranges := slices.Concat(here.snapshot.ServiceCIDRs, model.VirtualPrefixes(to.Is4()))
	return here.inPodCIDR(to) || slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(to) })
}

// inPodCIDR reports whether an address is of the pod CIDRs of any node.
func (here *node) inPodCIDR(a netip.Addr) bool {
	for _, path := range here.snapshot.Paths {
		if slices.ContainsFunc(path.PodCIDRs, func(r netip.Prefix) bool { return r.Contains(a) }) {
			return true
		}
	}
	return false
}

// owns reports whether an address is of the node's pod CIDRs.
func (here *node) owns(a netip.Addr) bool {
	return slices.ContainsFunc(here.snapshot.Self.PodCIDRs, func(cidr netip.Prefix) bool { return cidr.Contains(a) })
}

// toSwitch also knows the ports of Services at external addresses, to which all but the switch's own packets go. Nodes
// serve their own addresses.
func (c *conversation) toSwitch(here *node, from origin, p packet) bool {
	if here.routesToSwitch(p.dst.Addr()) {
		return true
	}
	if slices.ContainsFunc(c.nodes, func(n *node) bool { return slices.Contains(n.addrs, p.dst.Addr()) }) {
		return false
	}
	for _, s := range here.snapshot.Services {
		for _, port := range s.Ports {
			for _, f := range port.Frontends() {
				if from != fromSwitch && f.At == p.dst && port.Protocol.Number() == p.protocol {
					return true
				}
			}
		}
	}
	return false
}

// underlay sends a packet between nodes and the host outside, whose routes lead Services' addresses to the first node.
func (c *conversation) underlay(from *node, p packet) end {
	if slices.Contains(c.names.outside, p.dst.Addr()) {
		return c.arrive(place{}, p)
	}
	for _, next := range c.nodes {
		if slices.Contains(next.addrs, p.dst.Addr()) {
			return c.host(next, fromUnderlay, p)
		}
	}
	if from == nil && c.external[p.dst.Addr()] {
		return c.host(c.nodes[0], fromUnderlay, p)
	}
	return end{outcome: dropped, reason: string(flows.NoRoute)}
}

// of is the address of a family; invalid when there is none.
func of(addrs []netip.Addr, is4 bool) netip.Addr {
	if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == is4 }); i >= 0 {
		return addrs[i]
	}
	return netip.Addr{}
}
