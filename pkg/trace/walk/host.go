package walk

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/trace"
)

// This file is a model of what nodes' kernels do with packets: routes and nftables as pkg/host writes them, as far as
// connections of pods, nodes and hosts outside see them. The scenario tests run in the lab show where it differs from
// the kernel.

// origin is the side from which a packet enters a node's kernel.
type origin string

const (
	fromItself    origin = "itself"
	fromSwitch    origin = "the switch"
	fromUnderlay  origin = "the underlay"
	fromIPIP      origin = "IPIP"
	fromWireGuard origin = "WireGuard"
)

// host sends a packet through a node's kernel.
func (v *Conversation) host(here *node, from origin, p Packet) End {
	if e, circles := v.circles(p); circles {
		return e
	}
	before := p
	v.Hops = append(v.Hops, Hop{
		Node: here.Name, Kernel: true, In: fmt.Sprintf("from %s: %s", from, p), Decided: []string{},
	})
	hop := len(v.Hops) - 1
	if from == fromUnderlay || from == fromIPIP {
		v.Hops[hop].pass(capture.AtTunnel, false, p)
	}
	if t := p.Tuple(); from == fromItself && v.returned[here][Tuple{t.protocol, t.dst, t.src}] { // the answer
		v.Hops[hop].Out = "to the switch: " + p.String()
		return v.switched(here, model.PortGateway, model.GatewayMAC, netip.Addr{}, p)
	}
	is4 := p.Dst.Addr().Is4()
	if from != fromItself || p.Flags != trace.SYN {
		if known, ok := v.nat[here][p.Tuple()]; ok { // a reply, which no rule translates
			known.Flags = p.Flags
			return v.route(hop, here, from, known)
		}
	}
	if p.Flags == trace.SYN|trace.ACK {
		return v.route(hop, here, from, p)
	}
	if p.Dst.Addr() == model.RejectAddr(is4) {
		const reason = "no endpoint, or no such port of the Service"
		v.Hops[hop].Out = "refused: " + reason
		return End{Outcome: Refused, Reason: reason}
	}
	// Chain services.
	if slices.Contains(here.Locals, p.Dst.Addr()) && p.Src.Addr() != model.MasqueradeAddr(is4) {
		if to, service, ok := here.service(p); ok {
			p.Dst = to
			v.Hops[hop].Decided = append(v.Hops[hop].Decided, "Service "+service)
		}
	}
	// Chain postrouting.
	switch to := p.Dst.Addr(); {
	case slices.Contains(here.Locals, to):
	case here.routed(to): // whichever way leads to a pod, it sees the same source
		if from == fromItself || p.Src.Addr() == model.MasqueradeAddr(is4) {
			p.Src = netip.AddrPortFrom(of(here.Gateways, is4), p.Src.Port())
		}
	case v.toSwitch(here, from, p):
		toOwnNodePort := p.Src.Addr() == of(here.Addrs, here.primaryIs4()) &&
			slices.ContainsFunc(model.NodePortPrefixes(is4), func(r netip.Prefix) bool { return r.Contains(to) })
		if from == fromItself && !here.owns(to) && !toOwnNodePort {
			p.Src = netip.AddrPortFrom(of(here.Gateways, is4), p.Src.Port())
		}
	case from == fromSwitch && (p.Src.Addr() == model.MasqueradeAddr(is4) || here.owns(p.Src.Addr())):
		p.Src = netip.AddrPortFrom(of(here.Addrs, is4), p.Src.Port())
	}
	p.masqueraded = p.masqueraded || p.Src != before.Src
	if p.Tuple() != before.Tuple() {
		v.nat[here][p.Reply().Tuple()] = before.Reply()
	}
	return v.route(hop, here, from, p)
}

// route sends a packet where the node's routes lead.
func (v *Conversation) route(hop int, here *node, from origin, p Packet) End {
	switch {
	case slices.Contains(here.Locals, p.Dst.Addr()):
		v.Hops[hop].Out = "to the node itself: " + p.String()
		return v.arrive(Place{Node: here.Name}, p)
	case here.routed(p.Dst.Addr()):
		how, origin := "direct", fromUnderlay
		isIn := func(r netip.Prefix) bool { return r.Contains(p.Dst.Addr()) }
		switch {
		case slices.ContainsFunc(here.Encrypted, isIn):
			how, origin = "by WireGuard", fromWireGuard
		case slices.ContainsFunc(here.IPIP, isIn):
			how, origin = "in IPIP", fromIPIP
		}
		if origin != fromWireGuard {
			v.Hops[hop].pass(capture.AtTunnel, true, p)
		}
		for _, next := range v.nodes {
			if next.owns(p.Dst.Addr()) {
				v.Hops[hop].Out = fmt.Sprintf("%s to node %s: %s", how, next.Name, p)
				return v.host(next, origin, p)
			}
		}
	case v.toSwitch(here, from, p):
		v.Hops[hop].Out = "to the switch: " + p.String()
		return v.switched(here, model.PortGateway, model.GatewayMAC, netip.Addr{}, p)
	}
	v.Hops[hop].Out = "to the underlay: " + p.String()
	v.Hops[hop].pass(capture.AtTunnel, true, p)
	return v.underlay(here, p)
}

// service finds where a packet to one of the node's own addresses leads: an external address, or a node port.
func (n *node) service(p Packet) (to netip.AddrPort, service string, ok bool) {
	ofPods := n.inPodCIDR(p.Dst.Addr()) // which no Service gets
	is4 := p.Dst.Addr().Is4()
	for _, f := range n.Frontends {
		if f.Protocol.Number() != p.Protocol || f.At.Addr().Is4() != is4 {
			continue
		}
		nodePort := model.NodePortAt(is4, f.Protocol, f.NodePort)
		switch {
		case f.Kind == model.NodePort && f.NodePort == p.Dst.Port():
			return nodePort, f.Service, true
		case ofPods:
		case f.Kind == model.ExternalIP && f.At == p.Dst && f.NodePort != 0:
			return nodePort, f.Service, true
		case f.Kind == model.ExternalIP && f.At == p.Dst:
			return f.ClusterIP, f.Service, true
		}
	}
	return netip.AddrPort{}, "", false
}

// routesToSwitch reports whether the node's routes lead to the switch: to pods, ClusterIPs, and Weft's own addresses.
func (n *node) routesToSwitch(to netip.Addr) bool {
	ranges := slices.Concat(n.ServiceCIDRs, model.VirtualPrefixes(to.Is4()))
	return n.inPodCIDR(to) && !n.routed(to) || slices.ContainsFunc(ranges,
		func(r netip.Prefix) bool { return r.Contains(to) })
}

// routed reports whether the node's routes lead to an address without the switch: by the underlay, IPIP or WireGuard.
func (n *node) routed(to netip.Addr) bool {
	return slices.ContainsFunc(slices.Concat(n.Direct, n.IPIP, n.Encrypted),
		func(r netip.Prefix) bool { return r.Contains(to) })
}

// inPodCIDR reports whether an address is of the pod CIDRs of any node.
func (n *node) inPodCIDR(a netip.Addr) bool {
	return slices.ContainsFunc(n.ClusterPods, func(r netip.Prefix) bool { return r.Contains(a) })
}

// owns reports whether an address is of the node's pod CIDRs.
func (n *node) owns(a netip.Addr) bool {
	return slices.ContainsFunc(n.PodCIDRs, func(r netip.Prefix) bool { return r.Contains(a) })
}

func (n *node) primaryIs4() bool { return len(n.Addrs) > 0 && n.Addrs[0].Is4() }

// toSwitch also knows the ports of Services at external addresses, to which all but the switch's own packets go. Nodes
// serve their own addresses.
func (v *Conversation) toSwitch(here *node, from origin, p Packet) bool {
	if here.routesToSwitch(p.Dst.Addr()) {
		return true
	}
	if slices.ContainsFunc(v.nodes, func(n *node) bool { return slices.Contains(n.Addrs, p.Dst.Addr()) }) {
		return false
	}
	return from != fromSwitch && slices.ContainsFunc(here.Frontends, func(f Frontend) bool {
		return f.At == p.Dst && f.Protocol.Number() == p.Protocol
	})
}

// underlay sends a packet between nodes and hosts outside, whose routes lead Services' external addresses to the first
// node.
func (v *Conversation) underlay(from *node, p Packet) End {
	if v.isOutside(p.Dst.Addr()) {
		return v.arrive(Place{}, p)
	}
	for _, next := range v.nodes {
		if slices.Contains(next.Addrs, p.Dst.Addr()) {
			return v.host(next, fromUnderlay, p)
		}
	}
	if from == nil && v.isExternal(p.Dst.Addr()) {
		return v.host(v.nodes[0], fromUnderlay, p)
	}
	return End{Outcome: Dropped, Reason: string(flows.NoRoute)}
}

// isOutside says whether an address is of a host outside.
func (c *Cluster) isOutside(a netip.Addr) bool {
	if c.opt.Outside != nil {
		return c.opt.Outside(a)
	}
	return !c.isExternal(a) && !slices.ContainsFunc(c.nodes, func(n *node) bool {
		return slices.Contains(n.Locals, a) || n.routesToSwitch(a) || n.routed(a)
	})
}

// isExternal says whether an address is one at which a Service is reached from outside.
func (c *Cluster) isExternal(a netip.Addr) bool {
	return slices.ContainsFunc(c.nodes, func(n *node) bool {
		return slices.ContainsFunc(n.Frontends, func(f Frontend) bool {
			return f.At.Addr() == a && (f.Kind == model.ExternalIP || f.Kind == model.LoadBalancer)
		})
	})
}

// of is the address of a family; invalid when there is none.
func of(addrs []netip.Addr, is4 bool) netip.Addr {
	if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == is4 }); i >= 0 {
		return addrs[i]
	}
	return netip.Addr{}
}
