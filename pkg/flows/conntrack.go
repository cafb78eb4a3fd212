package flows

import (
	"net/netip"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// transport is a protocol with ports, in the words of matches for both families.
type transport struct {
	protocol   model.Protocol
	ipv4, ipv6 ovs.Protocol
}

var transports = []transport{
	{model.TCP, ovs.ProtocolTCPv4, ovs.ProtocolTCPv6},
	{model.UDP, ovs.ProtocolUDPv4, ovs.ProtocolUDPv6},
	{model.SCTP, openflow.ProtocolSCTPv4, openflow.ProtocolSCTPv6},
}

// of is the protocol's match in the family of an address.
func (t transport) of(is4 bool) ovs.Protocol {
	if is4 {
		return t.ipv4
	}
	return t.ipv6
}

// families are an address of each family: builders loop over them.
var families = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}

// connections gives what every packet of a connection meets, whatever the cluster holds.
func (b *builder) connections(keepEstablished, kernelDatapath bool) {
	for _, any := range families {
		proto, is4 := openflow.Protocol(any), any.Is4()
		track := openflow.CT{Table: ConntrackState, Zone: Zone, NAT: openflow.Translate()}.Action()
		b.add(in{Conntrack, prioNormal, proto, nil}, track)
		b.add(in{ConntrackNAT, prioNormal, proto, nil}, track)
		// The answer to a packet that a Service turned back.
		b.add(in{Conntrack, prioHigh, proto, matches(openflow.Destination(openflow.Host(model.MasqueradeAddr(is4))))},
			Returns.Set(Returns.Mask), openflow.CT{Table: ConntrackNAT, Zone: SourceZone, NAT: openflow.Translate()}.Action())
		b.turn(any)

		b.add(in{Forwarding, prioTop, proto, matches(openflow.ConnectionState(openflow.StateTrk|openflow.StateRpl, 0), MarkGateway.Is(uint32(MarkGateway)))}, toGateway()...)
		// A Service's endpoint may be a node.
		b.add(in{Forwarding, prioLow, proto, matches(MarkService.Is(uint32(MarkService)), Origin.Is(OriginGateway))}, toGateway()...)

		commit := openflow.CT{Commit: true, Table: SourceNAT, Zone: Zone}
		commit.Exec = []ovs.Action{MarkAllowed.Set(uint32(MarkAllowed))}
		b.add(in{Commit, prioLower, proto, nil}, commit.Action())
		fromGateway := MarkAllowed | MarkGateway
		commit.Exec = []ovs.Action{fromGateway.Set(uint32(fromGateway))}
		b.add(in{Commit, prioMedium, proto, matches(Origin.Is(OriginGateway))}, commit.Action())

		b.add(in{SourceNAT, prioNormal, proto, matches(firstWay(), Origin.Is(OriginGateway), OutPort.Is(model.PortGateway))},
			Returns.Set(Returns.Mask), openflow.CT{Commit: true, Table: Output, Zone: SourceZone, NAT: openflow.SourceNAT(model.MasqueradeAddr(is4))}.Action())
	}
	allowed := MarkAllowed.Is(uint32(MarkAllowed))
	b.drop(InvalidConnection, in{ConntrackState, prioTop, "", matches(openflow.ConnectionState(openflow.StateInv|openflow.StateTrk, 0))})
	// An ICMP error is about a packet of a connection; it is for whoever sent that.
	b.add(in{ConntrackState, prioHigher, "", matches(openflow.ConnectionState(openflow.StateRel|openflow.StateTrk, 0), allowed)}, openflow.Goto(Forwarding))
	b.drop(InvalidConnection, in{ConntrackState, prioHigh, "", matches(openflow.ConnectionState(openflow.StateRel|openflow.StateTrk, 0))})
	if keepEstablished {
		for _, proto := range kept(kernelDatapath) {
			b.add(in{ConntrackState, prioHigh, proto, matches(openflow.ConnectionState(openflow.StateEst|openflow.StateTrk, openflow.StateRel), allowed)}, openflow.Goto(Forwarding))
		}
	}
	b.drop(UnaskedReply, in{ConntrackState, prioMedium, "", matches(openflow.ConnectionState(openflow.StateRpl|openflow.StateTrk, 0))})
	b.add(in{ConntrackState, prioLow, "", matches(openflow.ConnectionState(openflow.StateNew|openflow.StateTrk, 0), Origin.Is(OriginTunnel))}, openflow.Goto(EgressPolicy))
	b.add(in{ConntrackState, prioLower, "", matches(openflow.ConnectionState(openflow.StateNew|openflow.StateTrk, 0))}, openflow.Resubmit(Affinity), openflow.Goto(ServiceLB))
	b.add(in{ConntrackState, prioLower, "", matches(openflow.ConnectionState(openflow.StateEst|openflow.StateTrk, 0))}, openflow.Goto(EgressPolicy))
	b.drop(InvalidConnection, in{ConntrackState, prioMiss, "", nil})

	b.add(in{ServiceLB, prioMiss, "", nil}, openflow.Goto(EgressPolicy))
	b.add(in{EgressPolicy, prioMiss, "", nil}, openflow.Goto(EgressDefault))
	b.add(in{EgressDefault, prioMiss, "", nil}, openflow.Goto(IngressPolicy))
	b.add(in{IngressPolicy, prioMiss, "", nil}, openflow.Goto(IngressDefault))
	b.add(in{IngressDefault, prioMiss, "", nil}, openflow.Goto(Restore))
	b.add(in{Restore, prioMiss, "", nil}, openflow.Goto(Forwarding))

	b.add(in{Commit, prioNormal, "", matches(allowed)}, openflow.Goto(SourceNAT))
	b.add(in{Commit, prioNormal, "", matches(openflow.ConnectionState(openflow.StateRel|openflow.StateTrk, 0))}, openflow.Goto(SourceNAT))
	b.add(in{SourceNAT, prioMiss, "", nil}, openflow.Goto(Output))
	b.add(in{Output, prioHigh, "", matches(Returns.Is(Returns.Mask))}, ovs.SetField("ANY", "in_port"), OutPort.Output())
}

// kept are the protocols whose connections may be kept. Open vSwitch's userspace datapath tracks SCTP, and what it does not know, by
// addresses alone: what was allowed at one port would be at all.
func kept(kernelDatapath bool) []ovs.Protocol {
	if kernelDatapath {
		return []ovs.Protocol{""}
	}
	return []ovs.Protocol{ovs.ProtocolTCPv4, ovs.ProtocolTCPv6, ovs.ProtocolUDPv4, ovs.ProtocolUDPv6, ovs.ProtocolICMPv4, ovs.ProtocolICMPv6}
}

// firstWay matches the direction in which a connection was begun.
func firstWay() ovs.Match { return openflow.ConnectionState(openflow.StateTrk, openflow.StateRpl) }

// turn gives the flows that turn replies of one family round, and back.
func (b *builder) turn(family netip.Addr) {
	const service = MarkAllowed | MarkService
	proto := openflow.Protocol(family)
	source, destination := openflow.AddrFields(family)
	endpoint := openflow.CTLabel.All()
	if family.Is4() {
		endpoint = openflow.CTLabel.Bits(0, 31)
	}
	reply := func(priority uint16, proto ovs.Protocol, mark uint32, actions ...[]ovs.Action) {
		var all []ovs.Action
		for _, a := range actions {
			all = append(all, a...)
		}
		b.add(in{ConntrackState, priority, proto, matches(openflow.ConnectionState(openflow.StateRpl|openflow.StateTrk, 0), service.Is(mark))},
			append(all, Turned.Set(Turned.Mask), openflow.Goto(EgressPolicy))...)
	}
	direct, served := uint32(MarkAllowed), uint32(service)
	saveAddrs := []ovs.Action{openflow.Push(source.All()), openflow.Push(destination.All())}
	restoreAddrs := []ovs.Action{openflow.Pop(destination.All()), openflow.Pop(source.All())}
	reply(prioNormal, proto, direct, saveAddrs, exchange(source, destination))
	reply(prioNormal, proto, served, saveAddrs, take(source, destination, endpoint))
	forward := []ovs.Action{Turned.Set(0), openflow.Goto(Forwarding)}
	b.add(in{Restore, prioNormal, proto, matches(Turned.Is(Turned.Mask))}, append(append([]ovs.Action(nil), restoreAddrs...), forward...)...)
	for _, t := range transports {
		from, to := openflow.PortFields(t.protocol.Number())
		savePorts := []ovs.Action{openflow.Push(from.All()), openflow.Push(to.All())}
		restorePorts := []ovs.Action{openflow.Pop(to.All()), openflow.Pop(from.All())}
		reply(prioRaised, t.of(family.Is4()), direct, saveAddrs, savePorts, exchange(source, destination), exchange(from, to))
		reply(prioRaised, t.of(family.Is4()), served, saveAddrs, savePorts, take(source, destination, endpoint), take(from, to, openflow.CTMark.Bits(16, 31)))
		b.add(in{Restore, prioRaised, t.of(family.Is4()), matches(Turned.Is(Turned.Mask))}, append(append(restorePorts, restoreAddrs...), forward...)...)
	}
}

// exchange swaps two fields.
func exchange(x, y openflow.Field) []ovs.Action {
	return []ovs.Action{openflow.Push(x.All()), openflow.Move(y.All(), x.All()), openflow.Pop(y.All())}
}

// take makes the destination the source, and the endpoint the destination.
func take(source, destination openflow.Field, endpoint openflow.Subfield) []ovs.Action {
	return []ovs.Action{openflow.Move(destination.All(), source.All()), openflow.Move(endpoint, destination.All())}
}
