package flows

import (
	"net/netip"
	"slices"

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

// portTracked are those whose ports the userspace datapath tracks. It tracks SCTP by addresses alone.
var portTracked = transports[:2]

// of is the protocol's match in the family of an address.
func (t transport) of(is4 bool) ovs.Protocol {
	if is4 {
		return t.ipv4
	}
	return t.ipv6
}

// families are an address of each family: builders loop over them.
var families = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}

// verdict are the bits of the mark that say what the policies decided last.
const verdict = MarkAllowed | MarkDenied

// connections gives what every packet of a connection meets, whatever the cluster holds.
func (b *builder) connections(of pipelineInputs) {
	kernelDatapath := of.kernel
	allowed := MarkAllowed.Is(uint32(MarkAllowed))
	service := MarkService.Is(uint32(MarkService))
	for _, any := range families {
		proto, is4 := openflow.Protocol(any), any.Is4()
		track := openflow.CT{Table: ConntrackState, Zone: Zone, NAT: openflow.Translate()}.Action()
		b.add(in{Conntrack, prioNormal, proto, nil}, track)
		b.add(in{ConntrackNAT, prioNormal, proto, nil}, track)
		// The answer to a packet that a Service turned back.
		b.add(in{Conntrack, prioHigh, proto, matches(openflow.Destination(openflow.Host(model.MasqueradeAddr(is4))))},
			Returns.Set(Returns.Mask), openflow.CT{Table: ConntrackNAT, Zone: SourceZone, NAT: openflow.Translate()}.Action())

		b.add(in{Forwarding, prioTop, proto, matches(openflow.ConnectionState(openflow.StateTrk|openflow.StateRpl, 0),
			MarkGateway.Is(uint32(MarkGateway)))}, toGateway()...)
		// A Service's endpoint may be a node.
		b.add(in{Forwarding, prioLow, proto, matches(service, Origin.Is(OriginGateway))}, toGateway()...)

		// What a policy denies now and allowed before loses its mark, and with it the replies. A fragment does not:
		// conntrack holds it until its datagram is whole, and would hold it for the others, which Commit lets
		// through.
		b.add(in{PolicyDenied, prioNormal, proto, matches(allowed, openflow.Fragments("no"))},
			openflow.CT{Commit: true, Zone: Zone, Exec: []ovs.Action{verdict.Set(uint32(MarkDenied))}}.Action())
		// Only packets that the agent sends have this register (see Audit).
		b.add(in{PolicyDenied, prioHigh, proto, matches(MarkDenied.Is(uint32(MarkDenied)), AllowAgain.Is(AllowAgain.Mask))},
			openflow.CT{Commit: true, Zone: Zone, Exec: []ovs.Action{verdict.Set(uint32(MarkAllowed))}}.Action())

		b.commit(proto, kernelDatapath)
		if !kernelDatapath {
			b.endpointPorts(is4)
		}

		b.add(in{SourceNAT, prioNormal, proto, returning()}, masquerade(is4)...)
	}
	if !kernelDatapath {
		b.fragments()
	}
	b.drop(InvalidConnection, in{ConntrackState, prioTop, "",
		matches(openflow.ConnectionState(openflow.StateInv|openflow.StateTrk, 0))})
	// An ICMP error is about a packet of a connection; it is for that packet's sender.
	b.add(in{ConntrackState, prioHigher, "", matches(openflow.ConnectionState(openflow.StateRel|openflow.StateTrk, 0),
		allowed)}, openflow.Goto(Forwarding))
	b.drop(InvalidConnection, in{ConntrackState, prioHigh, "",
		matches(openflow.ConnectionState(openflow.StateRel|openflow.StateTrk, 0))})
	if of.keepEstablished {
		for _, proto := range kept(kernelDatapath) {
			b.add(in{ConntrackState, prioHigh, proto, matches(openflow.ConnectionState(openflow.StateEst|openflow.StateTrk,
				openflow.StateRel), allowed)}, openflow.Goto(Forwarding))
		}
	}
	b.add(in{ConntrackState, prioNormal, "", matches(openflow.ConnectionState(openflow.StateRpl|openflow.StateTrk, 0),
		allowed)}, openflow.Goto(Forwarding))
	b.drop(UnaskedReply, in{ConntrackState, prioMedium, "",
		matches(openflow.ConnectionState(openflow.StateRpl|openflow.StateTrk, 0))})
	b.add(in{ConntrackState, prioLow, "", matches(openflow.ConnectionState(openflow.StateNew|openflow.StateTrk, 0),
		Origin.Is(OriginNode))}, openflow.Goto(PolicyEntry))
	// Also what a Service has translated before: until it is answered, the kernel's ct translates it with a commit
	// only.
	b.add(in{ConntrackState, prioLower, "", matches(openflow.ConnectionState(openflow.StateNew|openflow.StateTrk, 0))},
		openflow.Resubmit(Affinity), openflow.Goto(ServiceLB))
	b.add(in{ConntrackState, prioLower, "", matches(openflow.ConnectionState(openflow.StateEst|openflow.StateTrk, 0))},
		openflow.Goto(PolicyEntry))
	b.drop(InvalidConnection, in{ConntrackState, prioMiss, "", nil})

	b.add(in{ServiceLB, prioMiss, "", nil}, openflow.Goto(PolicyEntry))
	b.policyStages(of.staging)
	b.add(in{PolicyDenied, prioRaised, "", matches(AllowAgain.Is(AllowAgain.Mask))}, ovs.Drop()) // it has the mark by now
	b.add(in{PolicyDenied, prioMiss, "", nil}, ovs.Drop())

	b.add(in{Commit, prioNormal, "", matches(allowed)}, openflow.Goto(SourceNAT))
	b.add(in{Commit, prioNormal, "", matches(openflow.ConnectionState(openflow.StateRel|openflow.StateTrk, 0))},
		openflow.Goto(SourceNAT))
	b.add(in{SourceNAT, prioMedium, "", fromGatewayToGateway()}, Returns.Set(Returns.Mask), openflow.Goto(Output))
	b.add(in{SourceNAT, prioMiss, "", nil}, openflow.Goto(Output))
	b.add(in{Output, prioHigh, "", matches(Returns.Is(Returns.Mask))}, ovs.SetField("ANY", "in_port"), OutPort.Output())
}

// commit gives the flows of one family that remember a connection as allowed.
//
// A connection to a pod and one through a Service to the same pod may have one source port, and then their replies
// would look the same. So what no Service translates gets another port if it must. Open vSwitch 3.1's userspace
// datapath cannot do that by itself: there a connection that is translated to itself, as nearly all would be, ends
// ovs-vswitchd when its port is used again (fixed in 3.1.3 by "conntrack: Remove nat_conn introducing key
// directionality"). See endpointPorts.
func (b *builder) commit(proto ovs.Protocol, kernelDatapath bool) {
	origins := []struct {
		priority, fragment uint16
		mark               openflow.MarkBits
		match              []ovs.Match
	}{
		{prioLower, prioRaised, MarkAllowed, nil},
		{prioMedium, prioHigh, MarkAllowed | MarkGateway, matches(Origin.Is(OriginGateway))},
	}
	for _, o := range origins {
		mark := (o.mark | MarkDenied).Set(uint32(o.mark))
		ct := openflow.CT{Commit: true, Table: SourceNAT, Zone: Zone, Exec: []ovs.Action{mark}}
		plain := ct.Action()
		if !kernelDatapath {
			b.add(in{Commit, o.priority, proto, o.match}, plain)
			// Conntrack holds a fragment until its datagram is whole. So none leaves whose first fragment a policy
			// has dropped.
			b.add(in{Commit, o.fragment, proto, also(o.match, openflow.Fragments("yes"),
				openflow.ConnectionState(openflow.StateTrk, openflow.StateRpl|openflow.StateRel))}, plain)
			continue
		}
		ct.NAT = openflow.KeepSource()
		b.add(in{Commit, o.priority, proto, o.match}, ct.Action())
		b.add(in{Commit, o.priority + 1, proto, also(o.match, MarkService.Is(uint32(MarkService)))}, plain)
	}
}

// endpointPorts adds the flows of one family with which the userspace datapath gives a pod's direct connection to an
// endpoint another source port, if a connection of the pod through a Service has that port at the same endpoint.
// Commit copies each connection that a Service translated to EndpointZone, as the endpoint sees it. The first packet of
// every other connection is looked up there. See gatewayPorts for the node's own connections.
func (b *builder) endpointPorts(is4 bool) {
	remember := openflow.CT{
		Commit: true, Table: SourceNAT, Zone: EndpointZone, Exec: []ovs.Action{MarkTaken.Set(uint32(MarkTaken))},
	}.Action()
	for _, t := range portTracked {
		proto := t.of(is4)
		b.compareEndpoints(prioLow, proto, matches(Origin.Is(OriginPod)), MarkAllowed)
		b.add(in{EndpointPort, prioHigh, proto, matches(MarkService.Is(uint32(MarkService)))}, remember)
		b.add(in{EndpointPort, prioLow, proto, nil}, commitAs(MarkAllowed, SourceNAT, openflow.NAT{}))
		b.add(in{EndpointPort, prioMedium, proto, matches(Origin.Is(OriginGateway))}, commitAs(MarkAllowed|MarkGateway,
			SourceNAT, openflow.NAT{}))
	}
}

// gatewayPorts does the same for the node's own connections, which have the gateway's address. The node's kernel tells
// a Service's address from its endpoint's, so it lets both have one port.
func (b *builder) gatewayPorts(gateway netip.Addr) {
	const marks = MarkAllowed | MarkGateway
	for _, t := range portTracked {
		b.compareEndpoints(prioNormal, t.of(gateway.Is4()), matches(Origin.Is(OriginGateway),
			openflow.Source(openflow.Host(gateway))), marks)
	}
	b.endpointPortsOf(gateway, ownPortRanges, marks)
}

// compareEndpoints sends the first packets of some connections to EndpointPort: those that a Service translated to be
// copied, the others to be looked up.
func (b *builder) compareEndpoints(priority uint16, proto ovs.Protocol, from []ovs.Match, marks openflow.MarkBits) {
	const undecided = MarkService | verdict
	whole := also(from, openflow.ConnectionState(openflow.StateNew|openflow.StateTrk, openflow.StateRpl),
		openflow.Fragments("no"))
	// Commit the connection first: ct in another zone loses it, and a lookup by the translated packet fails.
	b.add(in{Commit, priority, proto, also(whole, undecided.Is(uint32(MarkService)))}, commitAs(marks, EndpointPort,
		openflow.NAT{}))
	b.add(in{Commit, priority, proto, also(whole, undecided.Is(0))}, openflow.CT{Table: EndpointPort,
		Zone: EndpointZone}.Action())
}

// commitAs commits a connection as allowed, with marks that say so, and continues in a table.
func commitAs(marks openflow.MarkBits, next openflow.TableID, nat openflow.NAT) ovs.Action {
	return openflow.CT{
		Commit: true, Table: next, Zone: Zone, NAT: nat, Exec: []ovs.Action{(marks | MarkDenied).Set(uint32(marks))},
	}.Action()
}

// portRanges is source ports and those that replace them. A range never overlaps its replacement: a connection must not
// be translated to itself (see commit). A privileged port is replaced by a privileged one.
type portRanges struct {
	priority    uint16
	port, mask  uint16
	replacement model.PortRange
}

var privilegedPortRanges = []portRanges{
	{prioRaised, 0x200, 0xfe00, model.PortRange{First: 1, Last: 0x1ff}},
	{prioRaised, 0, 0xfe00, model.PortRange{First: 0x200, Last: model.FirstUnprivilegedPort - 1}},
}

// Both divide all source ports. Those of the gateway become ports of model.OwnPorts.
var (
	podPortRanges = slices.Concat(privilegedPortRanges, []portRanges{
		{prioNormal, 0x8000, 0x8000, model.PortRange{First: model.FirstUnprivilegedPort, Last: 0x7fff}},
		{prioNormal, 0, 0x8000, model.PortRange{First: 0x8000, Last: 0xffff}},
	})
	ownPortRanges = slices.Concat(privilegedPortRanges, []portRanges{
		{prioNormal, 0xc000, 0xc000, model.PortRange{First: 0x8000, Last: 0xbfff}},
		{prioNormal, 0x8000, 0xc000, model.PortRange{First: 0xc000, Last: 0xffff}},
		{prioNormal, 0, 0x8000, model.PortRange{First: 0x8000, Last: 0xffff}},
	})
)

// endpointPortsOf adds the flows that replace source ports of one address.
func (b *builder) endpointPortsOf(ip netip.Addr, ranges []portRanges, marks openflow.MarkBits) {
	taken, source := MarkTaken.Is(uint32(MarkTaken)), openflow.Source(openflow.Host(ip))
	for _, t := range portTracked {
		for _, r := range ranges {
			nat := openflow.SourceNATPorts(ip, r.replacement.First, r.replacement.Last)
			b.add(in{EndpointPort, r.priority, t.of(ip.Is4()), matches(taken, source, openflow.SourcePort(r.port, r.mask))},
				commitAs(marks, SourceNAT, nat))
		}
	}
}

// fragments gives what the userspace datapath needs for datagrams in fragments. There conntrack puts them together,
// translates them and takes them apart again, so that every table sees each fragment, and only the first has ports.
// The kernel's shows whole datagrams.
//
// The first fragment is the one that policies judge; the others wait for it in Commit. ServiceLB goes by the
// connection's port, which all of them have.
func (b *builder) fragments() {
	for _, any := range families {
		b.add(in{PolicyEntry, prioBeforeRules, openflow.Protocol(any), matches(openflow.Fragments("later"))},
			openflow.Goto(Forwarding))
	}
	// Fragments whose datagram never became whole come out of conntrack after some seconds, behind whichever ct is
	// next.
	for _, table := range []openflow.TableID{PolicyEntry, EndpointPort, SourceNAT, Output} {
		b.drop(InvalidConnection, in{table, prioBeforeAll, "", matches(openflow.ConnectionState(openflow.StateInv, 0))})
	}
}

// kept are the protocols whose connections may be kept. Open vSwitch's userspace datapath tracks SCTP, and what it does
// not know, by addresses alone: what was allowed at one port would be at all.
func kept(kernelDatapath bool) []ovs.Protocol {
	if kernelDatapath {
		return []ovs.Protocol{""}
	}
	return []ovs.Protocol{ovs.ProtocolTCPv4, ovs.ProtocolTCPv6, ovs.ProtocolUDPv4, ovs.ProtocolUDPv6, ovs.ProtocolICMPv4,
		ovs.ProtocolICMPv6}
}

// firstWay matches the direction in which a connection was begun.
func firstWay() ovs.Match { return openflow.ConnectionState(openflow.StateTrk, openflow.StateRpl) }

// Verdict are the actions by which a packet of a connection's original direction changes what the switch has recorded
// about the connection: the agent has the switch process such a packet (openflow.Connection.Packet).
type Verdict func(openflow.Connection) []ovs.Action

// Deny takes the allowed mark from a connection, as a denied packet does in table PolicyDenied.
func Deny(c openflow.Connection) []ovs.Action {
	return []ovs.Action{openflow.CT{Table: PolicyDenied, Zone: c.Zone}.Action()}
}

// Allow gives it back.
func Allow(c openflow.Connection) []ovs.Action {
	return append([]ovs.Action{AllowAgain.Set(AllowAgain.Mask)}, Deny(c)...)
}
