package flows

import (
	"net/netip"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Cause is why a connection may not go on; empty for one that may.
type Cause string

// The causes.
const (
	// PolicyDenies is a connection that was allowed and that policies deny now. It stays, without its allowed mark:
	// removed, its replies would begin connections of their own, and on the other node still be replies.
	PolicyDenies Cause = "policy"
	// PolicyAllows is a connection that lost its mark to a policy and that the policies allow now. It gets the mark
	// back: its client may be silent, and so never send the packet that would.
	PolicyAllows Cause = "allowed"
	// EndpointGone is a UDP connection that a Service would balance otherwise now: its endpoint serves no more, or
	// there was no Service or no endpoint when it began.
	EndpointGone Cause = "endpoint"
	// PodGone is a connection of an address that no pod has. Like the last it is removed.
	PodGone Cause = "pod"
)

// Audit compares connections with a snapshot. It is immutable but for its memos: one goroutine uses it.
type Audit struct {
	policies  *verdicts // nil when connections are kept
	kernel    bool      // the datapath is the kernel's
	frontends map[netip.AddrPort][]udpFrontend
	attached  map[netip.Addr]bool
	gone      map[netip.Addr]bool
	own, pods []netip.Prefix
	services  []netip.Prefix // the ServiceCIDRs
	gateways  []netip.Addr
}

// udpFrontend is what a UDP connection to a frontend may have as its endpoint.
type udpFrontend struct {
	kind    model.FrontendKind
	serving map[netip.AddrPort]bool
	rejects bool
}

// NewAudit prepares the comparison with a snapshot whose quarantined owners are not programmed. Gone are addresses of
// former pods; addresses of the node's pod CIDRs that no attachment has count as such anyway.
func NewAudit(s *model.Snapshot, quarantined map[model.Owner]error, gone map[netip.Addr]bool) *Audit {
	a := &Audit{kernel: s.KernelDatapath, services: s.ServiceCIDRs, frontends: map[netip.AddrPort][]udpFrontend{},
		attached: map[netip.Addr]bool{}, gone: gone}
	if !s.KeepEstablished {
		a.policies = newVerdicts(s, quarantined)
	}
	for _, one := range s.Attachments {
		for _, ip := range one.IPs {
			a.attached[ip] = true
		}
	}
	for _, cidr := range s.SelfPath().PodCIDRs {
		a.own, a.gateways = append(a.own, cidr), append(a.gateways, model.GatewayAddr(cidr))
	}
	for _, path := range s.Paths {
		a.pods = append(a.pods, path.PodCIDRs...)
	}
	for _, service := range s.Services {
		if quarantined[model.ServiceOwner(service.Name)] == nil {
			a.addService(service)
		}
	}
	return a
}

func (a *Audit) addService(service model.Service) {
	for _, p := range service.Ports {
		if p.Protocol != model.UDP {
			continue
		}
		endpoints := map[netip.AddrPort]bool{}
		for _, e := range serving(p) {
			endpoints[e] = true
		}
		rejects := len(p.Cluster) == 0 && len(p.Local) == 0
		for _, f := range p.Frontends() {
			if !containsAddr(a.pods, f.At.Addr()) { // see noService
				a.frontends[f.At] = append(a.frontends[f.At], udpFrontend{f.Kind, endpoints, rejects})
			}
		}
	}
}

func serving(p model.ServicePort) []netip.AddrPort {
	list := make([]netip.AddrPort, 0, len(p.Cluster)+len(p.Local)+len(p.Retained))
	for _, endpoints := range [][]model.Endpoint{p.Cluster, p.Local} {
		for _, e := range endpoints {
			list = append(list, netip.AddrPortFrom(e.Addr, e.Port))
		}
	}
	return append(list, p.Retained...)
}

// Check gives the cause for which a connection is to be denied, allowed again or removed. TCP and SCTP connections of
// pods that exist need not be denied: both ends send in either direction, if only to acknowledge, and a denied packet
// of the original direction takes the mark back. (A TCP entry that is removed would be begun again from the middle by
// whichever end sends first; for the userspace datapath all SCTP between two addresses is one connection, of no port
// that policies could name.) On the kernel's datapath TCP is not allowed again: it tracks no made-up segment, as its
// sequence number is outside of the window.
func (a *Audit) Check(c openflow.Connection) Cause {
	switch {
	case a.isGone(c.Source.Addr()) || a.isGone(c.Destination.Addr()) || a.isGone(c.Endpoint.Addr()):
		return PodGone
	case c.Zone != Zone || c.Protocol == openflow.IPProtoSCTP:
	case c.Protocol == openflow.IPProtoTCP && (a.kernel || c.Mark&uint32(MarkDenied) == 0):
	case c.Protocol == openflow.IPProtoUDP && a.isStale(c):
		return EndpointGone
	case c.Mark&uint32(MarkAllowed) != 0 && !a.Allows(c):
		return PolicyDenies
	case c.Mark&uint32(MarkDenied) != 0 && a.policies != nil && a.Allows(c):
		return PolicyAllows
	}
	return ""
}

// Denied says whether the policies deny a connection that they allowed before, whether or not a packet has found that
// out. As long as there is one, a change that only allows more needs a sweep.
func (a *Audit) Denied(c openflow.Connection) bool {
	return c.Zone == Zone && c.Mark&uint32(verdict) != 0 && !a.Allows(c)
}

// Allows says whether the policies of this node's pods allow the connection's first packet.
func (a *Audit) Allows(c openflow.Connection) bool { return a.policies == nil || a.policies.allow(c) }

func (a *Audit) isGone(addr netip.Addr) bool {
	if a.attached[addr] {
		return false
	}
	if a.gone[addr] {
		return true
	}
	for i, cidr := range a.own {
		if cidr.Contains(addr) {
			return addr != a.gateways[i]
		}
	}
	return false
}

// isStale says whether a UDP connection would begin otherwise now. A TCP client hears that its endpoint is gone; a
// UDP socket may go on sending to an address that no pod has.
func (a *Audit) isStale(c openflow.Connection) bool {
	frontends := a.frontends[c.Destination]
	rejected := c.Endpoint.Addr() == model.RejectAddr(c.Endpoint.Addr().Is4())
	if c.Endpoint == c.Destination {
		return a.begins(c, frontends)
	}
	if len(frontends) == 0 {
		return !rejected || !containsAddr(a.services, c.Destination.Addr()) // see unserved
	}
	for _, f := range frontends {
		if f.serving[c.Endpoint] || rejected && f.rejects {
			return false
		}
	}
	return true
}

// begins says whether a Service would translate a connection that none has translated.
func (a *Audit) begins(c openflow.Connection, frontends []udpFrontend) bool {
	if c.Source.Addr() == model.MasqueradeAddr(c.Source.Addr().Is4()) { // see notTwice
		return false
	}
	for _, f := range frontends {
		if f.kind != model.NodePort || c.Mark&uint32(MarkGateway) != 0 {
			return true
		}
	}
	return false
}

func containsAddr(list []netip.Prefix, addr netip.Addr) bool {
	for _, p := range list {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
