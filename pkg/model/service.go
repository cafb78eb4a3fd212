package model

import (
	"net/netip"
	"slices"
	"time"
)

// Protocol is a transport protocol, in Kubernetes' words.
type Protocol string

// The protocols of Services and policies.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// Number is the protocol's number in IP headers; 0 for a word that is none.
func (p Protocol) Number() uint8 {
	switch p {
	case TCP:
		return 6
	case UDP:
		return 17
	case SCTP:
		return 132
	}
	return 0
}

// Algorithm says how a Service's connections are spread over its endpoints.
type Algorithm string

// The algorithms, in the words of the Service's annotation.
const (
	// HashConnection spreads connections by addresses and ports.
	HashConnection Algorithm = "connection"
	// HashSource sends all connections of one client address to one endpoint, as long as the endpoints stay.
	HashSource Algorithm = "source"
)

// MaxRemembered is the longest time that a switch remembers a client after its last connection: an OpenFlow timeout
// has 16 bits.
const MaxRemembered = 65535 * time.Second

// Service is a Service as this node serves it.
type Service struct {
	Name string // namespace/name
	// Created is in seconds since 1970. Of two Services that claim one address and port the older one has it.
	Created int64
	// Affinity is how long a client that comes back is sent to the endpoint that it had, in whole seconds; 0 is no affinity.
	Affinity time.Duration
	// AffinityEpoch changes when a timeout of Affinity has passed: clients that the switch does not remember are then
	// spread anew. 0 is a Service whose clients are never spread anew. The store counts it (state.SetTime).
	AffinityEpoch uint64
	Algorithm     Algorithm
	// Ports are in the order of the Service's ports, IPv4 before IPv6.
	Ports []ServicePort
	// HealthCheckNodePort is where load balancers ask whether this node has endpoints; 0 is nowhere.
	HealthCheckNodePort uint16
	// HealthyEndpoints is the number of endpoints on this node that the answer is about.
	HealthyEndpoints int
	// OverBudget says why the Service has no endpoints here although it has some; empty when it has room.
	OverBudget string
	// Lost are external addresses that the Service names and another Service has. Ports do not hold them.
	Lost []LostAddress
}

// LostAddress is an address that another Service has.
type LostAddress struct {
	Kind     FrontendKind
	At       netip.AddrPort
	Protocol Protocol
	Winner   string // namespace/name
}

// LoadBalancerIPs are the addresses of all ports at load balancers, sorted.
func (s Service) LoadBalancerIPs() []netip.Addr {
	var all []netip.Addr
	for _, p := range s.Ports {
		all = append(all, p.LoadBalancerIPs...)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// MostFlows is an upper bound of the flows and buckets that the Service takes.
func (s Service) MostFlows() int {
	most := 0
	for _, p := range s.Ports {
		endpoints := len(p.Cluster) + len(p.Local)
		each := 8 + endpoints/16 // a group for each class of source ports (pkg/flows, byPort)
		if s.Affinity > 0 {
			each += 2 * endpoints
		}
		// Some addresses have flows for later fragments, too, or for each range of clients, the gateway among them.
		frontends := 2 + len(p.ExternalIPs) + len(p.LoadBalancerIPs)*(len(p.LoadBalancerSources)+1)
		if p.NodePort != 0 {
			frontends += 4
		}
		most += frontends*each + 2*endpoints
	}
	return most
}

// ServicePort is one port of a Service in one address family: where packets are sent to, and where they go.
type ServicePort struct {
	// Name is the port's name; empty when the Service has only one port.
	Name     string
	Protocol Protocol
	Port     uint16
	// ClusterIP decides the family of everything here.
	ClusterIP netip.Addr
	// ExternalIPs and LoadBalancerIPs (those with ipMode VIP) are of the same family.
	ExternalIPs     []netip.Addr
	LoadBalancerIPs []netip.Addr
	// LoadBalancerSources are the only clients that LoadBalancerIPs accept; empty is everybody.
	LoadBalancerSources []netip.Prefix
	// LoadBalancerClosed says that LoadBalancerIPs accept no client: none of the ranges that limit them could be read.
	LoadBalancerClosed bool
	// NodePort is a port at this node's addresses; 0 is none.
	NodePort uint16
	// InternalLocal and ExternalLocal are the traffic policies Local: only endpoints on this node.
	InternalLocal, ExternalLocal bool
	// Cluster and Local are the usable endpoints under either traffic policy, sorted. Local is filled when a policy asks.
	Cluster, Local []Endpoint
	// Retained are the serving endpoints of a UDP port in neither list, sorted: terminating ones, those hinted to
	// other nodes or zones, those that the traffic policy leaves out. New connections do not go there, but existing
	// ones stay until the endpoint stops serving. Other protocols need none: their connections end with the endpoint.
	Retained []netip.AddrPort
	// Elsewhere says that there are usable endpoints, perhaps on other nodes only. Where Local is empty then, packets are dropped
	// and not rejected.
	Elsewhere bool
}

// FrontendKind says what sort of address a frontend has, in Kubernetes' words.
type FrontendKind string

// The kinds of frontends.
const (
	ClusterIP    FrontendKind = "ClusterIP"
	ExternalIP   FrontendKind = "ExternalIP"
	LoadBalancer FrontendKind = "LoadBalancer"
	NodePort     FrontendKind = "NodePort"
)

// Frontend is one of the places that clients send to.
type Frontend struct {
	Kind FrontendKind
	// At is where the switch meets the packets. Those for a node port have an address of NodePortAt by then.
	At netip.AddrPort
	// Local says that only endpoints on this node serve it.
	Local bool
	// Sources are the only clients that it accepts; empty is everybody.
	Sources []netip.Prefix
	// Closed says that it accepts no client at all.
	Closed bool
}

// Frontends lists where the port can be reached, in the order of how far away that is. An external address that is a load
// balancer's, too, is the load balancer's, which limits its clients.
func (p ServicePort) Frontends() []Frontend {
	list := []Frontend{{Kind: ClusterIP, At: netip.AddrPortFrom(p.ClusterIP, p.Port), Local: p.InternalLocal}}
	for _, ip := range p.ExternalIPs {
		if !slices.Contains(p.LoadBalancerIPs, ip) {
			list = append(list, Frontend{Kind: ExternalIP, At: netip.AddrPortFrom(ip, p.Port), Local: p.ExternalLocal})
		}
	}
	for _, ip := range p.LoadBalancerIPs {
		at := netip.AddrPortFrom(ip, p.Port)
		list = append(list, Frontend{LoadBalancer, at, p.ExternalLocal, p.LoadBalancerSources, p.LoadBalancerClosed})
	}
	if p.NodePort != 0 {
		at := NodePortAt(p.ClusterIP.Is4(), p.Protocol, p.NodePort)
		list = append(list, Frontend{Kind: NodePort, At: at, Local: p.ExternalLocal})
	}
	return list
}

// Endpoints are the usable ones under a traffic policy, Local or Cluster.
func (p ServicePort) Endpoints(local bool) []Endpoint {
	if local {
		return p.Local
	}
	return p.Cluster
}

// Endpoint is where a Service's packets may end.
type Endpoint struct {
	Addr netip.Addr
	Port uint16
	// Weight is the share of connections relative to the other endpoints, from 1.
	Weight uint16
}
