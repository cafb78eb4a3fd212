package host

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// connection is an entry of the kernel's connection tracking. Source and destination are those of the first packet as
// it was sent. Answers go from replySource to replyDestination; where these are not destination and source, the
// connection is translated. Ports are 0 where the protocol has none.
type connection struct {
	zone                          uint16
	protocol                      uint8
	source, destination           netip.AddrPort
	replySource, replyDestination netip.AddrPort
}

// translations are what our nftables table does to the first packet of a connection, as far as a connection's entry
// shows it. They are made for one pass over all entries, and do not change.
type translations struct {
	v4, v6 familyTranslations
	local  ranges // addresses of the node
	gone   goneTranslations
}

// familyTranslations are those of one address family; without pod CIDR there are none.
type familyTranslations struct {
	pods       netip.Prefix
	node       netip.Addr // invalid when the node's address is of the other family
	gateway    netip.Addr
	masquerade netip.Addr // as the source: of what a Service turned back to the node
	nodePort   ranges     // where the table sends what came for node ports
	toWorld    bool       // pods' packets get an address of the node, except those to direct
	direct     ranges
	nodes      ranges                  // other nodes, to which pods' packets get an address of this one
	toSwitch   ranges                  // destinations that are routed to the gateway interface, besides the node's own pods
	services   map[netip.AddrPort]bool // UDP ports of Services at external addresses
	nodePorts  map[uint16]bool
	nodePortAt ranges                    // addresses with node ports; none for all
	hostPorts  map[uint16]netip.AddrPort // UDP, at all addresses; at one of them they are in hostPortsAt
	// hostPortsAt are those at one address.
	hostPortsAt map[netip.AddrPort]netip.AddrPort
	external    map[netip.AddrPort]netip.AddrPort
}

// goneTranslations are those of ours that the table made until a moment ago. Others may make the same, so only at
// that moment they are ours.
type goneTranslations struct {
	external map[netip.AddrPort]netip.AddrPort
	direct   ranges // destinations that pods' packets now reach untranslated
}

func (g *goneTranslations) add(more goneTranslations) {
	for from, to := range more.external {
		if g.external == nil {
			g.external = map[netip.AddrPort]netip.AddrPort{}
		}
		g.external[from] = to
	}
	g.direct = append(g.direct, more.direct...)
}

// translationsOf are those of the table that d describes, on a node with these local addresses.
func translationsOf(d Desired, local []netip.Prefix, gone goneTranslations) *translations {
	t := &translations{local: disjoint(local), gone: gone}
	t.gone.direct = disjoint(gone.direct)
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
		for _, e := range direct(d, is4) {
			f.direct = append(f.direct, e.prefix)
		}
		for _, e := range nodes(d, is4) {
			f.nodes = append(f.nodes, e.prefix)
		}
		f.toSwitch = disjoint(slices.Concat(d.RemotePodCIDRs, d.ServiceCIDRs, model.VirtualPrefixes(is4)))
		for _, e := range servicePorts(d, is4) {
			if e.protocol == model.UDP {
				f.services[netip.AddrPortFrom(e.prefix.Addr(), e.port)] = true
			}
		}
		for _, e := range nodePorts(d, is4) {
			if e.protocol == model.UDP {
				f.nodePorts[e.port] = true
			}
		}
		for _, e := range hostPorts(d, is4) {
			if e.protocol == model.UDP {
				f.hostPorts[e.port] = e.to
			}
		}
		for _, e := range hostPortsAt(d, is4) {
			if e.protocol == model.UDP {
				f.hostPortsAt[netip.AddrPortFrom(e.prefix.Addr(), e.port)] = e.to
			}
		}
		for _, e := range externalIPs(d, is4) {
			if e.protocol == model.UDP {
				f.external[netip.AddrPortFrom(e.prefix.Addr(), e.port)] = e.to
			}
		}
		if is4 {
			t.v4 = f
		} else {
			t.v6 = f
		}
	}
	return t
}

// outdated tells whether a connection is to be removed from the kernel's table, so that its next packet meets the
// table: when it lacks a translation that the table makes now, or has one of ours that the table does not make any
// more. It never says so of connections that cannot begin anew in their middle (TCP, SCTP, DCCP), of other zones,
// where Open vSwitch keeps its own, and of other people's translations.
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

// destinationOutdated follows the chain services (see rules).
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
		return f.nodePort.contain(got.Addr()) || got == f.external[c.destination] || got == t.gone.external[c.destination]
	}
}

// toService is where the table sends a UDP connection for an address of the node; invalid when it leaves the
// connection alone.
func (t *translations) toService(f *familyTranslations, c connection) netip.AddrPort {
	to := c.destination.Addr()
	switch port := c.destination.Port(); {
	case !t.local.contain(to), c.source.Addr() == f.masquerade, to.IsLoopback(), to.Is6() && to.IsLinkLocalUnicast():
	case port == model.Geneve.UDPPort(), port == model.VXLAN.UDPPort():
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

// sourceOutdated follows the chain postrouting. The interface that a packet leaves by follows from its destination:
// our routes.
func (t *translations) sourceOutdated(f *familyTranslations, c connection) bool {
	from, to, as := c.source.Addr(), c.replySource.Addr(), c.replyDestination.Addr()
	if t.local.contain(to) || to == f.masquerade {
		return false // it stays on the node, or answers what a Service turned back to it
	}
	// What pods send to a Service has been through the switch before.
	toSwitch := f.toSwitch.contain(to) || c.protocol == unix.IPPROTO_UDP && !f.pods.Contains(from) && f.services[c.destination]
	switch {
	case f.pods.Contains(to), toSwitch && !t.local.contain(from):
		return false // to a pod of the node, or from others to the switch: no translation of ours
	case f.nodePort.contain(to) && from == f.node:
		return as != from
	case toSwitch:
		// Of the node itself: from the gateway address, and not from a port that the switch gives to others'
		// connections.
		return as != f.gateway || c.protocol == unix.IPPROTO_UDP && model.ForwardedPort(c.replyDestination.Port())
	case f.pods.Contains(from) && (f.nodes.contain(to) || f.toWorld && !f.direct.contain(to)), from == f.masquerade:
		return as == from
	case f.pods.Contains(from):
		return as != from && t.local.contain(as) && t.gone.direct.contain(to)
	default:
		return as == f.gateway && from != f.gateway // it was on its way to the switch, before the route was gone
	}
}

// ranges are address ranges of which none contains another, in order.
type ranges []netip.Prefix

// disjoint leaves out the ranges that lie in others. It does not change its argument.
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
