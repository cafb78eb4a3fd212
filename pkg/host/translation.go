package host

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// connection is an entry of the kernel's conntrack table. Source and destination are those of the first packet as sent.
// Replies go from replySource to replyDestination; the connection is translated when these differ from destination and
// source. Ports are 0 for protocols without ports.
type connection struct {
	zone                          uint16
	protocol                      uint8
	source, destination           netip.AddrPort
	replySource, replyDestination netip.AddrPort
}

// translations are the effects of Weft's nftables table on the first packet of a connection, as far as a conntrack
// entry shows them. They are built for one pass over all entries, and immutable.
type translations struct {
	v4, v6  familyTranslations
	local   ranges // addresses of the node
	removed removedTranslations
}

// familyTranslations are the translations of one address family; empty without a pod CIDR.
type familyTranslations struct {
	pods       netip.Prefix
	node       netip.Addr // invalid when the node's address is of the other family
	gateway    netip.Addr
	masquerade netip.Addr // the source of connections that a Service sends back to the node
	nodePort   ranges     // the targets of node ports
	toWorld    bool       // pods' packets are masqueraded, except those to direct
	direct     ranges
	nodes      ranges                  // other nodes, to which pods' packets are masqueraded
	toSwitch   ranges                  // destinations that are routed to the gateway interface, except the node's own pods
	routed     ranges                  // other nodes' pods, to which the node's routes lead without the switch
	services   map[netip.AddrPort]bool // UDP ports of Services at external addresses
	nodePorts  map[uint16]bool
	nodePortAt ranges                    // addresses that serve node ports; empty for all
	hostPorts  map[uint16]netip.AddrPort // UDP, at all addresses
	// hostPortsAt are the UDP host ports at one address.
	hostPortsAt map[netip.AddrPort]netip.AddrPort
	external    map[netip.AddrPort]netip.AddrPort
}

// removedTranslations are translations that the table has just stopped making. Other programs may make the same ones,
// so only at that moment they are certainly Weft's.
type removedTranslations struct {
	external map[netip.AddrPort]netip.AddrPort
	direct   ranges // destinations to which pods' packets are no longer masqueraded
}

func (g *removedTranslations) add(more removedTranslations) {
	for from, to := range more.external {
		if g.external == nil {
			g.external = map[netip.AddrPort]netip.AddrPort{}
		}
		g.external[from] = to
	}
	g.direct = append(g.direct, more.direct...)
}

// translationsOf are the translations of the table for d, on a node with these local ranges.
func translationsOf(d Desired, local []netip.Prefix, removed removedTranslations) *translations {
	t := &translations{local: disjoint(local), removed: removed}
	t.removed.direct = disjoint(removed.direct)
	for _, is4 := range []bool{true, false} {
		pods, ok := d.local(is4)
		if !ok {
			continue
		}
		f := familyTranslations{
			pods: pods, gateway: model.GatewayAddr(pods), masquerade: model.MasqueradeAddr(is4),
			nodePort: disjoint(model.NodePortPrefixes(is4)), nodePortAt: d.nodePortAddrs(is4),
			toWorld: d.Masquerade, nodePorts: map[uint16]bool{}, services: map[netip.AddrPort]bool{},
			external:  map[netip.AddrPort]netip.AddrPort{},
			hostPorts: map[uint16]netip.AddrPort{}, hostPortsAt: map[netip.AddrPort]netip.AddrPort{},
		}
		if d.Address.IsValid() && d.Address.Is4() == is4 {
			f.node = d.Address
		}
		f.direct, f.nodes = prefixesOf(direct(d, is4)), prefixesOf(nodes(d, is4))
		f.toSwitch, f.routed = d.routedToSwitch(is4), prefixesOf(routed(d, is4))
		for e := range udp(servicePorts(d, is4)) {
			f.services[e.at()] = true
		}
		for e := range udp(nodePorts(d, is4)) {
			f.nodePorts[e.port] = true
		}
		for e := range udp(hostPorts(d, is4)) {
			f.hostPorts[e.port] = e.to
		}
		for e := range udp(hostPortsAt(d, is4)) {
			f.hostPortsAt[e.at()] = e.to
		}
		for e := range udp(externalIPs(d, is4)) {
			f.external[e.at()] = e.to
		}
		if is4 {
			t.v4 = f
		} else {
			t.v6 = f
		}
	}
	return t
}

// outdated reports whether a connection must be removed from the kernel's table, so that its next packet passes the NAT
// rules again: it lacks a translation that the table makes, or has one of Weft's that the table no longer makes. It is
// false for protocols that cannot be picked up in the middle of a connection (TCP, SCTP, DCCP), for other zones, where
// Open vSwitch keeps its own connections, and for translations of other programs.
func (t *translations) outdated(c connection) bool {
	switch c.protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP:
		return false
	}
	f := &t.v6
	if c.source.Addr().Is4() {
		f = &t.v4
	}
	return c.zone == 0 && f.pods.IsValid() && (t.destinationOutdated(f, c) || t.sourceOutdated(f, c))
}

// destinationOutdated mirrors the chain services (see rules).
func (t *translations) destinationOutdated(f *familyTranslations, c connection) bool {
	if c.protocol != unix.IPPROTO_UDP {
		return false
	}
	want := t.toService(f, c)
	switch got := c.replySource; got {
	case want:
		return false
	case c.destination:
		return want.IsValid()
	default:
		return f.nodePort.contain(got.Addr()) || got == f.external[c.destination] || got == t.removed.external[c.destination]
	}
}

// toService is the target of the table for a UDP connection to an address of the node; invalid when the table does not
// translate it.
func (t *translations) toService(f *familyTranslations, c connection) netip.AddrPort {
	to := c.destination.Addr()
	switch port := c.destination.Port(); {
	case !t.local.contain(to), c.source.Addr() == f.masquerade, to.IsLoopback(), to.Is6() && to.IsLinkLocalUnicast():
	case model.IsTunnelUDPPort(port):
	case f.external[c.destination].IsValid():
		return f.external[c.destination]
	case f.nodePorts[port] && (len(f.nodePortAt) == 0 || f.nodePortAt.contain(to)):
		return model.NodePortAt(to.Is4(), model.UDP, port)
	case f.hostPortsAt[c.destination].IsValid():
		return f.hostPortsAt[c.destination]
	default:
		return f.hostPorts[port]
	}
	return netip.AddrPort{}
}

// sourceOutdated mirrors the chain postrouting. Weft's routes determine the outgoing interface from the destination.
func (t *translations) sourceOutdated(f *familyTranslations, c connection) bool {
	from, to, as := c.source.Addr(), c.replySource.Addr(), c.replyDestination.Addr()
	if t.local.contain(to) || to == f.masquerade {
		return false // stays on the node, or is a reply to a connection that a Service sent back
	}
	// Pods' packets to a Service have passed the switch before.
	toSwitch := f.toSwitch.contain(to) ||
		c.protocol == unix.IPPROTO_UDP && !f.pods.Contains(from) && f.services[c.destination]
	switch {
	case f.pods.Contains(to), toSwitch && !t.local.contain(from):
		return false // to a local pod, or from another host to the switch: not translated by Weft
	case f.routed.contain(to) && (from == f.masquerade || t.local.contain(from)):
		return as != f.gateway
	case f.nodePort.contain(to) && from == f.node:
		return as != from
	case toSwitch:
		// The node's own: from the gateway address, and not from a port that the switch uses for other clients'
		// connections.
		return as != f.gateway || c.protocol == unix.IPPROTO_UDP && model.ForwardedPort(c.replyDestination.Port())
	case f.pods.Contains(from) && (f.nodes.contain(to) || f.toWorld && !f.direct.contain(to)), from == f.masquerade:
		return as == from
	case f.pods.Contains(from):
		return as != from && t.local.contain(as) && t.removed.direct.contain(to)
	default:
		return as == f.gateway && from != f.gateway // it was routed to the switch before the route was removed
	}
}

// ranges are disjoint address ranges in order.
type ranges []netip.Prefix

// disjoint returns the ranges without those inside others, sorted. It does not change its argument.
func disjoint(all []netip.Prefix) ranges {
	all = slices.SortedFunc(slices.Values(all), comparePrefixes)
	var last netip.Prefix
	return slices.DeleteFunc(all, func(p netip.Prefix) bool {
		inside := last.IsValid() && last.Overlaps(p)
		if !inside {
			last = p
		}
		return inside
	})
}

func (r ranges) contain(a netip.Addr) bool {
	next, same := slices.BinarySearchFunc(r, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	return same || next > 0 && r[next-1].Contains(a)
}
