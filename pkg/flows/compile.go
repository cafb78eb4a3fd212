// Package flows is the pipeline as data and the compiler that fills it: objects in, flows out.
//
// Compilation is a pure function of a model.Snapshot: it takes no lock, starts no goroutine and remembers nothing that
// the snapshot does not say. Compiler keeps the result of the last snapshot, so that a change costs only its own flows;
// it belongs to the one goroutine that calls it, and it always equals what a fresh one would hold.
package flows

import (
	"fmt"
	"net/netip"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Flow is a compiled flow with what the switch does not need to know.
type Flow struct {
	openflow.Flow
	Owner model.Owner
	// Reason says why a flow that drops does so, in a word that statistics and documents use; it is empty for others.
	Reason Reason
	// Isolates is the address of a pod that is not to be open without the flow; the zero value in other flows.
	Isolates netip.Addr
	// Fallback says that the flow is there only while the other flows of its owner are not.
	Fallback bool
}

// Reason is why a packet is dropped.
type Reason string

// Harmless says that packets are dropped for this reason on every healthy node: what pods and kernels send by
// themselves, and no answer is due.
func (r Reason) Harmless() bool { return r == OwnAddress || r == DuplicateProbe || r == Multicast }

// The reasons. They are part of the interface to users: metrics, weftctl status, documents.
const (
	UnknownPort       Reason = "unknown-port"       // a port that no object vouches for (yet)
	OwnAddress        Reason = "own-address"        // a pod asks for its own address, to detect duplicates
	DuplicateProbe    Reason = "duplicate-probe"    // IPv6 duplicate address detection: there is no answer
	SpoofedARP        Reason = "spoofed-arp"        // ARP that is not a question in the pod's own name
	SpoofedND         Reason = "spoofed-nd"         // neighbor or router discovery that is not in the pod's own name
	SpoofedMAC        Reason = "spoofed-mac"        // a source MAC that is not the pod's
	SpoofedIP         Reason = "spoofed-ip"         // a source address that is not the pod's
	NotIP             Reason = "not-ip"             // a protocol that is not routed
	Multicast         Reason = "multicast"          // multicast and broadcast are not forwarded
	Loopback          Reason = "loopback"           // to an address that means the receiving host itself
	Tagged            Reason = "vlan-tag"           // a frame with a VLAN tag: the overlay has none
	TunnelSource      Reason = "tunnel-source"      // a tunnel packet whose inner source is not the sending node's
	TunnelDestination Reason = "tunnel-destination" // a tunnel packet that is not for this node's pods
	TunnelPort        Reason = "tunnel-port"        // a pod's tunnel packet to the outside: masqueraded, it would pass for its node
	NoSuchPod         Reason = "no-such-pod"        // an address of this node's range that no pod has
	NoRoute           Reason = "no-route"           // from the gateway to an address that no pod has
	NoLocalEndpoint   Reason = "no-local-endpoint"  // traffic policy Local, and endpoints on other nodes only
	SourceRange       Reason = "source-range"       // a client that loadBalancerSourceRanges leaves out
	UnservedFragment  Reason = "unserved-fragment"  // the beginning of a fragmented datagram to a port that no Service has
	InvalidConnection Reason = "invalid-connection" // a packet that belongs to no connection and begins none
	UnaskedReply      Reason = "unasked-reply"      // a reply of a connection whose first packet was not allowed
	PolicyEgress      Reason = "policy-egress"      // what policies deny a pod to send
	PolicyIngress     Reason = "policy-ingress"     // what policies deny to be sent to a pod
)

// Priorities. The number only has to be right within one table.
const (
	prioMiss   uint16 = 0
	prioLowest uint16 = 40
	prioLower  uint16 = 50
	prioLow    uint16 = 60
	prioMedium uint16 = 80
	prioNormal uint16 = 100
	prioRaised uint16 = 140
	prioHigh   uint16 = 150
	prioHigher uint16 = 200
	prioTop    uint16 = 210
	// prioBeforeRules is above the places of rules in ordered tiers, and prioBeforeAll above that.
	prioBeforeRules uint16 = 65_100
	prioBeforeAll   uint16 = 65_200
)

// resolved returns the snapshot with what follows from the rest of it.
func resolved(s *model.Snapshot) *model.Snapshot {
	complete := *s
	complete.Paths = nodepath.Resolve(s)
	complete.Staging = model.AnyStaged(s.Policies)
	return &complete
}

// compileOwner gives the flows and groups that exist because of one owner.
func compileOwner(s *model.Snapshot, o model.Owner) (compiled, error) {
	b := &builder{owner: o, cookie: Cookie(o)}
	kinds[o.Kind].build(b, s, o)
	if b.err != nil {
		return compiled{Flows: b.flows, Addrs: b.addrs}.closed(), fmt.Errorf("compile %s: %w", o, b.err)
	}
	return compiled{b.flows, b.groups, b.addrs}, nil
}

// Owners lists every owner that a snapshot has, in no particular order.
func Owners(s *model.Snapshot) []model.Owner {
	owners := make([]model.Owner, 0, 2+len(s.Nodes)+len(s.Attachments))
	owners = append(owners, model.PipelineOwner, model.SelfOwner)
	for name := range s.Nodes {
		owners = append(owners, model.NodeOwner(name))
	}
	for _, a := range s.Attachments {
		owners = append(owners, model.PodOwner(a))
	}
	for name := range s.Services {
		owners = append(owners, model.ServiceOwner(name))
	}
	for name := range s.OtherProxies {
		if _, served := s.Services[name]; !served {
			owners = append(owners, model.ServiceOwner(name))
		}
	}
	for _, p := range s.Policies {
		owners = append(owners, p.Owner())
	}
	return owners
}

// builder collects one owner's flows and groups and the first error.
type builder struct {
	owner  model.Owner
	cookie uint64
	flows  []Flow
	groups []Group
	addrs  []netip.Addr // of a pod
	log    bool         // what a policy decides is to be logged
	// inPreview are the flows of the preview, and previewed counts those that there are. See maxFlows.
	inPreview bool
	previewed int
	err       error
}

// in says what a flow matches.
type in struct {
	table    openflow.TableID
	priority uint16
	proto    ovs.Protocol
	match    []ovs.Match
}

func (b *builder) add(i in, actions ...ovs.Action) { b.append("", i, actions...) }

func (b *builder) drop(why Reason, i in) { b.append(why, i, ovs.Drop()) }

// maxFlows is how many flows one owner may have. A Service's are its addresses times its endpoints when it has
// affinity, and a policy's exceptions from ranges are many ranges each: a single object that a tenant may write could
// ask for millions, and the node would do nothing else. Those of the preview count for themselves: a policy is enforced
// or not whether or not others are staged.
const maxFlows = 250_000

func (b *builder) append(why Reason, i in, actions ...ovs.Action) {
	b.put(Flow{Reason: why}, i, actions...)
}

// put completes a flow and adds it.
func (b *builder) put(f Flow, i in, actions ...ovs.Action) {
	counted := len(b.flows) - b.previewed
	if b.inPreview {
		counted = b.previewed
	}
	if counted >= maxFlows && !f.closes() { // what isolates is always let in
		b.fail(fmt.Errorf("it takes more than %d flows; make several objects of it, or ask for less", maxFlows))
		return
	}
	var err error
	f.Owner = b.owner
	if f.Flow, err = openflow.New(i.table, i.priority, b.cookie, i.proto, i.match, actions...); err != nil {
		b.fail(err)
		return
	}
	b.flows = append(b.flows, f)
	if b.inPreview {
		b.previewed++
	}
}

func (b *builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// ICMPv6 types, RFC 4861.
const (
	icmpRouterAdvertisement = 134
	icmpNeighborSolicit     = 135
	icmpNeighborAdvert      = 136
	icmpRedirect            = 137
)

// vlanPresent is the bit of a VLAN's tag that every frame with a tag has (ovs-fields(7), vlan_tci).
const vlanPresent = 0x1000

const anyMulticast = "01:00:00:00:00:00/01:00:00:00:00:00"

func inPort(number uint32) ovs.Match      { return ovs.InPortMatch(int(number)) }
func sourceMAC(m model.MAC) ovs.Match     { return ovs.DataLinkSource(m.String()) }
func setSourceMAC(m model.MAC) ovs.Action { return ovs.SetField(m.String(), "eth_src") }
func setDestMAC(m model.MAC) ovs.Action   { return ovs.SetField(m.String(), "eth_dst") }
func arpSourceMAC(m model.MAC) ovs.Match  { return ovs.ARPSourceHardwareAddress(m.Hardware()) }
func solicitSourceMAC(m model.MAC) ovs.Match {
	return ovs.NeighborDiscoverySourceLinkLayer(m.Hardware())
}
func target(p netip.Prefix) ovs.Match {
	if p.IsSingleIP() {
		return ovs.NeighborDiscoveryTarget(p.Addr().String())
	}
	return ovs.NeighborDiscoveryTarget(p.String())
}
func matches(m ...ovs.Match) []ovs.Match { return m }
func icmp6(typ uint8) []ovs.Match        { return matches(ovs.ICMPType(typ), ovs.ICMPCode(0)) }
func also(a []ovs.Match, b ...ovs.Match) []ovs.Match {
	return append(append(make([]ovs.Match, 0, len(a)+len(b)), a...), b...)
}

// everyNode gives what every node has.
func (b *builder) everyNode(_ none, in pipelineInputs) {
	b.pipeline(in.kernel)
	b.connections(in)
	b.allowRejection(in.staging)
	b.notTwice()
}

func (b *builder) pipeline(kernelDatapath bool) {
	gateway := inPort(model.PortGateway)
	b.add(in{Classifier, prioNormal, "", matches(gateway)}, Origin.Set(OriginGateway), openflow.Goto(ARPND))
	b.drop(UnknownPort, in{Classifier, prioMiss, "", nil})

	b.add(in{ARPND, prioNormal, ovs.ProtocolARP, matches(gateway, ovs.ARPOperation(1), arpSourceMAC(model.GatewayMAC))},
		openflow.Goto(ARPNDReply))
	b.add(in{ARPND, prioNormal, ovs.ProtocolICMPv6, also(icmp6(icmpNeighborSolicit), gateway,
		solicitSourceMAC(model.GatewayMAC))}, openflow.Goto(ARPNDReply))
	b.drop(DuplicateProbe, in{ARPND, prioMedium, ovs.ProtocolICMPv6, also(icmp6(icmpNeighborSolicit),
		openflow.Source(openflow.Host(netip.IPv6Unspecified())))})
	b.drop(SpoofedARP, in{ARPND, prioLowest, ovs.ProtocolARP, nil})
	for _, typ := range []uint8{icmpRouterAdvertisement, icmpNeighborSolicit, icmpNeighborAdvert, icmpRedirect} {
		b.drop(SpoofedND, in{ARPND, prioLowest, ovs.ProtocolICMPv6, matches(ovs.ICMPType(typ))})
	}
	b.add(in{ARPND, prioMiss, "", nil}, openflow.Goto(SpoofGuard))

	router := model.RouterMAC
	b.add(in{ARPNDReply, prioNormal, ovs.ProtocolARP, matches(ovs.ARPOperation(1))},
		ovs.Move("NXM_OF_ETH_SRC[]", "NXM_OF_ETH_DST[]"), setSourceMAC(router),
		ovs.SetField("2", "arp_op"),
		ovs.Move("NXM_NX_ARP_SHA[]", "NXM_NX_ARP_THA[]"), ovs.SetField(router.String(), "arp_sha"),
		ovs.Move("NXM_OF_ARP_TPA[]", "NXM_NX_REG2[]"), ovs.Move("NXM_OF_ARP_SPA[]", "NXM_OF_ARP_TPA[]"), ovs.Move(
			"NXM_NX_REG2[]", "NXM_OF_ARP_SPA[]"),
		openflow.InPort())
	if kernelDatapath {
		b.askBack(router, gateway)
	} else {
		b.advertise(router)
	}

	b.noDestination()
	b.add(in{SpoofGuard, prioNormal, "", matches(Origin.Is(OriginGateway))}, openflow.Goto(Conntrack))
	b.drop(UnknownPort, in{SpoofGuard, prioMiss, "", nil})

	for _, family := range families {
		b.add(in{Forwarding, prioLower, openflow.Protocol(family), matches(Origin.Is(OriginPod))}, toGateway()...)
	}
	b.peers()
	b.drop(NoRoute, in{Forwarding, prioMiss, "", nil})

	b.add(in{Output, prioNormal, "", nil}, OutPort.Output())
}

// loopbacks are the ranges that mean the receiving host, groupAddrs those of multicast and broadcast.
var (
	loopbacks  = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	groupAddrs = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32"),
		netip.MustParsePrefix("ff00::/8")}
)

// noDestination drops what can only be meant for a host on the sender's own link: the node would take it for its own.
// Neighbor discovery has been answered before.
func (b *builder) noDestination() {
	b.drop(Tagged, in{SpoofGuard, prioTop, "", matches(ovs.VLANTCI(vlanPresent, vlanPresent))})
	for _, loopback := range loopbacks {
		b.drop(Loopback, in{SpoofGuard, prioHigher, openflow.Protocol(loopback.Addr()),
			matches(openflow.Destination(loopback))})
	}
	b.drop(Multicast, in{SpoofGuard, prioHigh, "", matches(ovs.DataLinkDestination(anyMulticast))})
	for _, group := range groupAddrs {
		b.drop(Multicast, in{SpoofGuard, prioHigh, openflow.Protocol(group.Addr()), matches(openflow.Destination(group))})
	}
}

// advertise turns a neighbour solicitation into the advertisement that answers it.
func (b *builder) advertise(router model.MAC) {
	b.add(in{ARPNDReply, prioNormal, ovs.ProtocolICMPv6, icmp6(icmpNeighborSolicit)},
		ovs.Move("NXM_OF_ETH_SRC[]", "NXM_OF_ETH_DST[]"), setSourceMAC(router),
		ovs.SetField("136", "icmpv6_type"), openflow.Goto(NDAdvertise))
	b.add(in{NDAdvertise, prioNormal, ovs.ProtocolICMPv6, icmp6(icmpNeighborAdvert)},
		ovs.Move("NXM_NX_IPV6_SRC[]", "NXM_NX_IPV6_DST[]"), ovs.Move("NXM_NX_ND_TARGET[]", "NXM_NX_IPV6_SRC[]"),
		ovs.SetField("2", "nd_options_type"), // the option that held the asker's address now holds the target's
		ovs.SetField(router.String(), "nd_tll"),
		ovs.SetField("3758096384", "nd_reserved"), // the flags router, solicited and override
		openflow.InPort())
}

// askBack answers a neighbour solicitation with one that goes the other way: the asked node learns from the question
// where the asker is (RFC 4861, 7.2.3). With the kernel's datapath there can be no advertisement, because OVS refuses
// flows that write its option's type or its flags. The gateway's answer to our question is dropped; a pod's is in pod.
func (b *builder) askBack(router model.MAC, gateway ovs.Match) {
	b.add(in{ARPNDReply, prioNormal, ovs.ProtocolICMPv6, icmp6(icmpNeighborSolicit)},
		ovs.Move("NXM_OF_ETH_SRC[]", "NXM_OF_ETH_DST[]"), setSourceMAC(router),
		ovs.Move("NXM_NX_IPV6_SRC[]", "NXM_NX_IPV6_DST[]"), ovs.Move("NXM_NX_ND_TARGET[]", "NXM_NX_IPV6_SRC[]"),
		ovs.Move("NXM_NX_IPV6_DST[]", "NXM_NX_ND_TARGET[]"), ovs.SetField(router.String(), "nd_sll"),
		openflow.InPort())
	b.add(in{ARPND, prioNormal, ovs.ProtocolICMPv6, also(icmp6(icmpNeighborAdvert), gateway)}, ovs.Drop())
}

func toGateway() []ovs.Action { return toGatewayFrom(model.RouterMAC) }

func toGatewayFrom(source model.MAC) []ovs.Action {
	return []ovs.Action{setSourceMAC(source), setDestMAC(model.GatewayMAC), OutPort.Set(model.PortGateway),
		openflow.Goto(Commit)}
}

// thisNode gives what follows from the node's own addresses and from the ranges of Services.
func (b *builder) thisNode(_ none, n selfInputs) {
	b.self(n.localInputs)
	b.allowNode(n.nodeAddrs(), n.staging)
	b.keepClients(n)
	b.dnsServers(n.dnsServers)
	for _, cidr := range n.serviceCIDRs {
		b.unserved(cidr, n.kernel)
	}
}

// self gives what follows from the node's own pod CIDRs: the gateway's addresses and the limits of the local range.
func (b *builder) self(n localInputs) {
	for _, cidr := range n.podCIDRs {
		gateway := model.GatewayAddr(cidr)
		proto := openflow.Protocol(gateway)
		if gateway.Is4() {
			b.drop(OwnAddress, in{ARPND, prioHigher, ovs.ProtocolARP, matches(inPort(model.PortGateway),
				ovs.ARPTargetProtocolAddress(gateway.String()))})
		}
		b.add(in{Forwarding, prioHigher, proto, matches(openflow.Destination(openflow.Host(gateway)))}, toGateway()...)
		b.drop(NoSuchPod, in{Forwarding, prioHigh, proto, matches(openflow.Destination(cidr))})
		b.noService(cidr)
		if !n.kernel {
			b.gatewayPorts(gateway)
		}
		b.gatewayToPeers(gateway, n.primaryAddr())
	}
}

// pod gives the flows of one pod interface: who it may be, and where its addresses are.
// podOrClosed also notes the addresses, by which Compiler finds what isolates the pod.
func (b *builder) podOrClosed(p podObject, on podInputs) {
	b.addrs = p.attachment.IPs
	if !p.unknown {
		b.pod(p.attachment, on)
	}
}

func (b *builder) pod(a model.Attachment, on podInputs) {
	port, mac := inPort(a.OFPort), sourceMAC(a.MAC)
	b.add(in{Classifier, prioNormal, "", matches(port)}, Origin.Set(OriginPod), openflow.Goto(ARPND))

	for _, ip := range a.IPs {
		host := openflow.Host(ip)
		proto := openflow.Protocol(ip)
		if ip.Is4() {
			b.drop(OwnAddress, in{ARPND, prioHigher, ovs.ProtocolARP,
				matches(port, mac, ovs.ARPTargetProtocolAddress(ip.String()))})
			b.add(in{ARPND, prioNormal, ovs.ProtocolARP, matches(port, mac, ovs.ARPOperation(1),
				ovs.ARPSourceProtocolAddress(ip.String()), arpSourceMAC(a.MAC))},
				openflow.Goto(ARPNDReply))
		} else {
			for _, from := range []netip.Prefix{host, linkLocal} {
				b.add(in{ARPND, prioNormal, ovs.ProtocolICMPv6, also(icmp6(icmpNeighborSolicit), port, mac, openflow.Source(from),
					solicitSourceMAC(a.MAC))},
					openflow.Goto(ARPNDReply))
				if on.kernel {
					// The true answer to what askBack has asked; it is not a mistake, so it is not counted as one.
					b.add(in{ARPND, prioNormal, ovs.ProtocolICMPv6, also(icmp6(icmpNeighborAdvert), port, mac, openflow.Source(from),
						target(from))}, ovs.Drop())
				}
			}
		}
		b.add(in{SpoofGuard, prioNormal, proto, matches(port, mac, openflow.Source(host))}, openflow.Goto(Conntrack))
		b.add(in{Forwarding, prioHigher, proto, matches(openflow.Destination(host))},
			setSourceMAC(model.RouterMAC), setDestMAC(a.MAC), OutPort.Set(a.OFPort), openflow.Goto(Commit))
		if !on.kernel {
			b.endpointPortsOf(ip, podPortRanges, MarkAllowed)
		}
		// A pod that reaches itself through a Service must not see its own address as the source: it would answer itself.
		b.add(in{SourceNAT, prioNormal, proto, matches(firstWay(), openflow.Source(host), openflow.Destination(host))},
			masquerade(ip.Is4())...)
	}

	b.allowSelf(a.IPs, on.staging)

	// What did not pass is counted for this pod, by reason.
	b.drop(SpoofedARP, in{ARPND, prioLower, ovs.ProtocolARP, matches(port)})
	for _, typ := range []uint8{icmpRouterAdvertisement, icmpNeighborSolicit, icmpNeighborAdvert, icmpRedirect} {
		b.drop(SpoofedND, in{ARPND, prioLower, ovs.ProtocolICMPv6, matches(ovs.ICMPType(typ), port)})
	}
	for _, proto := range []ovs.Protocol{ovs.ProtocolIPv4, ovs.ProtocolIPv6} {
		b.drop(SpoofedIP, in{SpoofGuard, prioMedium, proto, matches(port, mac)})
	}
	b.drop(NotIP, in{SpoofGuard, prioLow, "", matches(port, mac)})
	b.drop(SpoofedMAC, in{SpoofGuard, prioLower, "", matches(port)})
}

// linkLocal is where IPv6 hosts ask from about their router. Such a question is answered to its port only, so it cannot
// mislead another node.
var linkLocal = netip.MustParsePrefix("fe80::/10")
