package model

import (
	"net/netip"
	"slices"
	"time"
)

// Protocol is a transport protocol, as Kubernetes spells it.
type Protocol string

// The protocols of Services and policies.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// Number is the protocol's number in IP headers; 0 for an unknown protocol.
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

// Algorithm selects the endpoint of a Service's new connections.
type Algorithm string

// The algorithms, as values of the Service's annotation.
const (
	// HashConnection hashes addresses and ports.
	HashConnection Algorithm = "connection"
	// HashSource hashes the client's address: all its connections go to one endpoint while the endpoints stay the same.
	HashSource Algorithm = "source"
)

// MaxRemembered is the longest time that the switch remembers a client after its last connection: an OpenFlow idle
// timeout has 16 bits.
const MaxRemembered = 65535 * time.Second

// Service is a Service as this node serves it.
type Service struct {
	Name string // namespace/name
	// Created is in seconds since 1970. When two Services claim one address and port, the older one has it.
	Created int64
	// Affinity is the timeout of ClientIP session affinity, in whole seconds; 0 disables affinity.
	Affinity time.Duration
	// AffinityEpoch changes after each timeout of Affinity. Clients that the switch does not remember are then hashed
	// with a new seed. 0 is a Service whose seed never changes. The store counts it (state.SetTime).
	AffinityEpoch uint64
	Algorithm     Algorithm
	// Ports are in the order of the Service's ports, IPv4 before IPv6.
	Ports []ServicePort
	// HealthCheckNodePort is the port at which load balancers ask whether this node has endpoints; 0 is none.
	HealthCheckNodePort uint16
	// HealthyEndpoints is the number of this node's endpoints in the answer to that question.
	HealthyEndpoints int
	// OverBudget is the reason why the Service's endpoints are not programmed; empty when the Service is within its
	// budget.
	OverBudget string
	// Lost are external addresses that the Service claims and another Service has. Ports do not hold them.
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

// MostFlows is an upper bound of the Service's flows and buckets.
func (s Service) MostFlows() int {
	most := 0
	for _, p := range s.Ports {
		endpoints := len(p.Cluster) + len(p.Local)
		each := 8 + endpoints/16 // a group for each class of source ports (pkg/flows, byPort)
		if s.Affinity > 0 {
			each += 2 * endpoints
		}
		// Some addresses also have flows for later fragments, or for each range of clients, including the gateway.
		frontends := 2 + len(p.ExternalIPs) + len(p.LoadBalancerIPs)*(len(p.LoadBalancerSources)+1)
		if p.NodePort != 0 {
			frontends += 4
		}
		most += frontends*each + 2*endpoints
	}
	return most
}

// ServicePort is one port of a Service in one address family: its frontends and its endpoints.
type ServicePort struct {
	// Name is the port's name; empty when the Service has only one port.
	Name     string
	Protocol Protocol
	Port     uint16
	// ClusterIP sets the family of all addresses of the value.
	ClusterIP netip.Addr
	// ExternalIPs and LoadBalancerIPs (those with ipMode VIP) are of the same family.
	ExternalIPs     []netip.Addr
	LoadBalancerIPs []netip.Addr
	// LoadBalancerSources are the only clients that LoadBalancerIPs accept; empty accepts all.
	LoadBalancerSources []netip.Prefix
	// LoadBalancerClosed says that LoadBalancerIPs accept no client: none of the ranges that limit them could be read.
	LoadBalancerClosed bool
	// NodePort is a port at this node's addresses; 0 is none.
	NodePort uint16
	// InternalLocal and ExternalLocal are the traffic policies Local: only endpoints on this node.
	InternalLocal, ExternalLocal bool
	// Cluster and Local are the usable endpoints for each traffic policy, sorted. Local is filled only when a policy is
	// Local.
	Cluster, Local []Endpoint
	// Retained are the serving endpoints of a UDP port in neither list, sorted: terminating endpoints, those with hints
	// for other nodes or zones, those that the traffic policy excludes. New connections do not go there; existing ones
	// stay until the endpoint stops serving. Other protocols need none: their connections end with the endpoint.
	Retained []netip.AddrPort
	// Elsewhere reports that the port has usable endpoints, on this node or another. Where Local is empty, packets are
	// then dropped instead of rejected.
	Elsewhere bool
}

// FrontendKind is the kind of a frontend's address, in Kubernetes' terms.
type FrontendKind string

// The kinds of frontends.
const (
	ClusterIP    FrontendKind = "ClusterIP"
	ExternalIP   FrontendKind = "ExternalIP"
	LoadBalancer FrontendKind = "LoadBalancer"
	NodePort     FrontendKind = "NodePort"
)

// Frontend is one address and port that clients send to.
type Frontend struct {
	Kind FrontendKind
	// At is the address and port that the switch matches. The host has translated packets for a node port to NodePortAt
	// by then.
	At netip.AddrPort
	// Local limits the frontend to endpoints on this node.
	Local bool
	// Sources are the only clients that the frontend accepts; empty accepts all.
	Sources []netip.Prefix
	// Closed says that it accepts no client at all.
	Closed bool
}

// Frontends lists the port's frontends: ClusterIP, external IPs, load balancer addresses, node port. An external IP
// that is also a load balancer's address counts only as the latter, which limits its clients.
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

// Endpoints are the usable endpoints of a traffic policy, Local or Cluster.
func (p ServicePort) Endpoints(local bool) []Endpoint {
	if local {
		return p.Local
	}
	return p.Cluster
}

// Endpoint is an address and port to which a Service's packets are translated.
type Endpoint struct {
	Addr netip.Addr
	Port uint16
	// Weight is the endpoint's share of connections relative to the other endpoints, from 1.
	Weight uint16
}
