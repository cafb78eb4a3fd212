package flows

import (
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Peers of policies may be domain names. Their addresses are what trusted DNS servers have answered to pods that such a
// policy selects. So that a pod's first connection finds them in the switch, the answer is held: table Output leads it
// to the agent instead of the pod, and the agent sends it on. Queries are copied to the agent, which believes only
// answers that were asked for. While the agent is away, answers go straight on: the flow of AnswerGate that leads to
// AnswerHold is renewed by the agent, and ends GateSeconds after the last time.

// DNSController is the number with which the agent asks for these packets.
const DNSController openflow.ControllerID = 0x5765

// The data of packets to the agent.
const (
	DNSQuery      byte = 0x51 // a copy of a query
	DNSAnswer     byte = 0x41 // an answer that the agent is to send on
	DNSAnswerCopy byte = 0x43 // a copy of an answer that was sent on
)

// The flow that the agent renews in AnswerGate.
const (
	GatePriority = prioNormal
	GateSeconds  = 3
)

// The conjunctions of table Output.
const (
	dnsAnswers uint32 = 1
	dnsQueries uint32 = 2
)

// dnsServersOf are the trusted servers while a policy has domain names, sorted.
func dnsServersOf(s *model.Snapshot) []netip.AddrPort {
	if !model.AnyDomains(s.Policies) {
		return nil
	}
	list := slices.Clone(s.DNSServers.Addrs)
	for _, name := range s.DNSServers.Services {
		for _, p := range s.Services[name].Ports {
			dns := false
			for _, f := range p.Frontends() {
				if f.At.Port() == model.DNSPort && f.At.Addr().IsValid() && !f.At.Addr().IsUnspecified() {
					list, dns = append(list, f.At), true
				}
			}
			if dns {
				list = append(list, serving(p)...)
			}
		}
		for _, addr := range s.OtherProxies[name] {
			list = append(list, netip.AddrPortFrom(addr, model.DNSPort))
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return slices.Compact(list)
}

// dnsClients are the pods' part of the conjunctions.
func (b *builder) dnsClients(p model.Policy) {
	if len(p.Domains) == 0 || p.Egress == nil {
		return
	}
	b.log, b.inPreview = false, false
	for _, pod := range p.Egress.Pods {
		host := openflow.Host(pod)
		b.add(in{Output, prioHigher, openflow.Protocol(pod), matches(openflow.Destination(host))},
			openflow.Conjunction(dnsAnswers, 1, 2))
		b.add(in{Output, prioHigher, openflow.Protocol(pod), matches(openflow.Source(host))},
			openflow.Conjunction(dnsQueries, 1, 2))
	}
}

// dnsServers are the servers' part, and what becomes of the packets. What a pod sends to itself through a Service
// leaves as before.
func (b *builder) dnsServers(servers []netip.AddrPort) {
	if len(servers) == 0 {
		return
	}
	for _, server := range servers {
		host := openflow.Host(server.Addr())
		for _, t := range portTracked {
			proto := t.of(server.Addr().Is4())
			b.add(in{Output, prioHigher, proto, matches(openflow.Source(host), openflow.SourcePort(server.Port(), 0xffff),
				openflow.ConnectionState(openflow.StateTrk|openflow.StateRpl, 0))}, openflow.Conjunction(dnsAnswers, 2, 2))
			b.add(in{Output, prioHigher, proto, matches(openflow.Destination(host),
				openflow.DestinationPort(server.Port(), 0xffff))}, openflow.Conjunction(dnsQueries, 2, 2))
		}
	}
	for _, any := range families {
		b.add(in{Output, prioHigher, openflow.Protocol(any), matches(openflow.ConjunctionID(dnsAnswers), Returns.Is(0))},
			openflow.Goto(AnswerGate))
		b.add(in{Output, prioHigher, openflow.Protocol(any), matches(openflow.ConjunctionID(dnsQueries), Returns.Is(0))},
			openflow.ToController(DNSController, DNSQuery), OutPort.Output())
	}
	b.add(in{AnswerGate, prioMiss, "", nil}, openflow.ToController(DNSController, DNSAnswerCopy), OutPort.Output())
	b.add(in{AnswerHold, prioMiss, "", nil}, openflow.ToController(DNSController, DNSAnswer))
}
