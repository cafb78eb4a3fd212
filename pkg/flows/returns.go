package flows

import (
	"net/netip"
	"slices"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// What a Service sends back to where it came from.

// masquerade gives a packet a source that no host has, so that the answer passes this switch.
func masquerade(is4 bool) []ovs.Action {
	return []ovs.Action{Returns.Set(Returns.Mask), openflow.CT{
		Commit: true, Table: Output, Zone: SourceZone, NAT: openflow.SourceNAT(model.MasqueradeAddr(is4)),
	}.Action()}
}

func fromGatewayToGateway() []ovs.Match {
	return matches(Origin.Is(OriginGateway), OutPort.Is(model.PortGateway))
}

// returning matches the original direction of what a Service turns from the gateway back to the gateway.
func returning() []ovs.Match { return append(matches(firstWay()), fromGatewayToGateway()...) }

// keepClients lets endpoints in this node's own network see clients outside, and this node's pods, with their own
// addresses. nftables leads the answers to packets with ReturnedMAC into the switch, and the packets into no other
// Service: an endpoint may listen at the number of its Service's node port, or at its external address. The node would
// drop packets with a source of its own, and one of its pods may have a direct connection with the addresses and ports
// of what it has sent to a node port, so both stay masqueraded when the gateway returns them. Endpoints on other nodes,
// too: their answers return by this node only if they go to its address.
func (b *builder) keepClients(n selfInputs) {
	for _, addr := range n.nodeAddrs() {
		to := openflow.Destination(openflow.Host(addr))
		b.add(in{SourceNAT, prioRaised, openflow.Protocol(addr), also(returning(), to)},
			Returns.Set(Returns.Mask), setSourceMAC(model.ReturnedMAC), openflow.Goto(Output))
		b.add(in{Forwarding, prioLow, openflow.Protocol(addr), matches(firstWay(), MarkService.Is(uint32(MarkService)),
			Origin.Is(OriginPod), to)}, toGatewayFrom(model.ReturnedMAC)...)
	}
	sources := slices.Clone(n.podCIDRs)
	for _, addr := range n.nodeAddrs() {
		if !slices.ContainsFunc(n.podCIDRs, func(cidr netip.Prefix) bool { return cidr.Contains(addr) }) {
			sources = append(sources, openflow.Host(addr))
		}
	}
	for _, source := range sources {
		b.add(in{SourceNAT, prioHigh, openflow.Protocol(source.Addr()), also(returning(), openflow.Source(source))},
			masquerade(source.Addr().Is4())...)
	}
}
