package flows

import (
	"net/netip"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// What follows from the paths to peer nodes, and from the encapsulations that every node receives.

// peers gives the flows for packets from and to peer nodes that do not depend on which peer nodes there are.
func (b *builder) peers() {
	for _, e := range model.Encapsulations {
		b.add(in{Classifier, prioNormal, "", matches(inPort(e.Port()))}, Origin.Set(OriginNode), openflow.Goto(SpoofGuard))
	}
	b.drop(TunnelSource, in{SpoofGuard, prioLower, "", matches(Origin.Is(OriginNode))})
	for _, family := range families {
		b.drop(TunnelDestination, in{Forwarding, prioRaised, openflow.Protocol(family), matches(Origin.Is(OriginNode))})
	}
	// A pod's packet to another node is masqueraded to this node's address, and the receiver of a tunnel packet checks
	// only the outer source. Therefore pods reach nothing but pods at the tunnels' UDP ports and by their IP protocols,
	// also at addresses of nodes that are not InternalIPs.
	for _, proto := range []ovs.Protocol{ovs.ProtocolUDPv4, ovs.ProtocolUDPv6} {
		for _, port := range model.TunnelUDPPorts() {
			b.drop(TunnelPort, in{Forwarding, prioMedium, proto,
				matches(Origin.Is(OriginPod), ovs.TransportDestinationPort(port))})
		}
	}
	for _, family := range families {
		for _, protocol := range model.TunnelProtocols() {
			b.drop(TunnelPort, in{Forwarding, prioMedium, openflow.Protocol(family),
				matches(Origin.Is(OriginPod), ovs.NetworkProtocol(protocol))})
		}
	}
}

// privilegedBits of a port are 0 when it is below model.FirstUnprivilegedPort.
const privilegedBits = ^(model.FirstUnprivilegedPort - 1)

// gatewayToPeers gives the source of packets from the gateway to peer nodes, whose SpoofGuard accepts only addresses of
// this node. Replies come back to this switch.
//
// The node's own packets already have such a source, and a port of OwnPorts, which no other connection gets (see
// model). They must not be translated: the userspace datapath of Open vSwitch 3.1 crashes when such a port is used
// again after a translation to the same address and port.
func (b *builder) gatewayToPeers(gateway, node netip.Addr) {
	proto := openflow.Protocol(gateway)
	translate := func(ports model.PortRange) ovs.Action {
		return openflow.CT{
			Commit: true, Table: Output, Zone: SourceZone, NAT: openflow.SourceNATPorts(gateway, ports.First, ports.Last),
		}.Action()
	}
	for _, e := range model.Encapsulations {
		away := matches(firstWay(), Origin.Is(OriginGateway), OutPort.Is(e.Port()))
		b.add(in{SourceNAT, prioHigh, proto, also(away, openflow.Source(openflow.Host(gateway)))}, openflow.Goto(Output))
		if node.IsValid() && openflow.Protocol(node) == proto {
			b.add(in{SourceNAT, prioHigh, proto, also(away, openflow.Source(openflow.Host(node)))}, openflow.Goto(Output))
		}
		b.add(in{SourceNAT, prioNormal, proto, away}, translate(model.ForwardedPorts))
		// A later fragment has no port, and so does not match a port below 1024. In the userspace datapath conntrack
		// translates a whole datagram as its last fragment asks for, so a client whose first datagram is in fragments
		// does not get a privileged port.
		for _, t := range transports {
			privileged := also(away, openflow.Fragments("not_later"), openflow.SourcePort(0, privilegedBits))
			b.add(in{SourceNAT, prioRaised, t.of(gateway.Is4()), privileged}, translate(model.ForwardedPrivilegedPorts))
		}
	}
	b.add(in{Conntrack, prioRaised, proto, matches(Origin.Is(OriginNode), openflow.Destination(openflow.Host(gateway)))},
		openflow.CT{Table: ConntrackNAT, Zone: SourceZone, NAT: openflow.Translate()}.Action())
}

// node gives the flows to and from a peer node's pods.
func (b *builder) node(path model.Path, _ none) {
	if !path.Reachable() {
		return
	}
	for _, cidr := range path.PodCIDRs {
		proto := openflow.Protocol(cidr.Addr())
		if path.ReceivesDirect || path.ReceivesIPIP || path.WireGuard.Valid() {
			// The host's nftables, or WireGuard, have checked the sender. From here on the packet is treated as one from a
			// tunnel.
			b.add(in{SpoofGuard, prioRaised, proto, matches(Origin.Is(OriginGateway), openflow.Source(cidr))},
				Origin.Set(OriginNode), openflow.Goto(Conntrack))
		}
		if !path.Strict {
			b.add(in{SpoofGuard, prioNormal, proto, also(fromPeer(path), openflow.Source(cidr))}, openflow.Goto(Conntrack))
		}
		b.add(in{Forwarding, prioNormal, proto, matches(openflow.Destination(cidr))}, toPeer(path)...)
		b.noService(cidr)
		primary := path.Primary()
		if primary.Is4() != cidr.Addr().Is4() {
			continue
		}
		// A peer node's clients of its own node ports keep its primary address. The outer source proves the node.
		// Replies to a connection that came through this node's kernel instead return through that kernel
		// (MarkGateway).
		node := openflow.Host(primary)
		reply := openflow.ConnectionState(openflow.StateTrk|openflow.StateRpl, 0)
		if !path.Strict {
			b.add(in{SpoofGuard, prioNormal, proto, also(fromPeer(path), openflow.Source(node))}, openflow.Goto(Conntrack))
		}
		b.add(in{Forwarding, prioHigh, proto, matches(reply, Origin.Is(OriginPod), openflow.Destination(node))},
			toPeer(path)...)
	}
}

// fromPeer matches packets that the peer node has sent: the outer source proves the node.
func fromPeer(path model.Path) []ovs.Match {
	return matches(Origin.Is(OriginNode), openflow.TunnelSource(path.NextHop))
}

// toPeer sends a packet to the peer node.
func toPeer(path model.Path) []ovs.Action {
	if path.Mode.Routed() {
		return toGateway()
	}
	return []ovs.Action{
		setSourceMAC(model.RouterMAC), setDestMAC(model.RouterMAC),
		openflow.SetTunnelSource(path.Local), openflow.SetTunnelDestination(path.NextHop),
		OutPort.Set(path.Encapsulation.Port()), openflow.Goto(Commit),
	}
}
