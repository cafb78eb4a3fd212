// Package service resolves a Service and its EndpointSlices for one node: its frontends, and the endpoints that packets
// may be sent to from there. It follows kube-proxy of Kubernetes 1.34; test/oracle/service compares the two.
//
// Build is a pure function of plain values. Resolver holds its result for all Services and follows changes; it takes no
// lock and starts no goroutine. pkg/kube translates each version of a Kubernetes object once and shares the result.
package service

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/model"
)

// Service holds the relevant fields of a Service object. Immutable.
type Service struct {
	Name    string // namespace/name
	Created int64  // in seconds since 1970; 0 when unknown
	// ClusterIPs are at most one of each family. A Service without any (headless, ExternalName) is not served.
	ClusterIPs []netip.Addr
	Ports      []Port
	// ExternalIPs do not include any of the ClusterIPs.
	ExternalIPs     []netip.Addr
	LoadBalancerIPs []netip.Addr
	// LoadBalancerSources are the clients that LoadBalancerIPs of the same family accept; a family without any accepts
	// all.
	LoadBalancerSources []netip.Prefix
	// SourcesLost reports that some of LoadBalancerSources are invalid. A family without any valid one then accepts no
	// client: a typing mistake must not open a restricted Service.
	SourcesLost                  bool
	InternalLocal, ExternalLocal bool
	// Affinity is the timeout of ClientIP session affinity; 0 disables affinity.
	Affinity time.Duration
	// HealthCheckNodePort is set only for Services of type LoadBalancer with externalTrafficPolicy Local.
	HealthCheckNodePort uint16
	Algorithm           model.Algorithm
	// Weights are the endpoint weights other than 1, by pod name.
	Weights map[string]uint16
	// Problem says what of the object is invalid and left out; empty when nothing is.
	Problem string
}

// Port is one port of a Service.
type Port struct {
	Name     string
	Protocol model.Protocol
	Port     uint16
	NodePort uint16 // 0 is none
}

// Slice holds the relevant fields of an EndpointSlice. Immutable.
type Slice struct {
	Name    string // namespace/name
	Service string // namespace/name
	// Ports are the ports with a number.
	Ports []SlicePort
	// Endpoints are all of one family.
	Endpoints []Endpoint
	// Problem says what of the object is invalid and left out; empty when nothing is.
	Problem string
}

// SlicePort is the number that a Service's port has at the endpoints of a slice.
type SlicePort struct {
	Name     string // the Service port's name
	Protocol model.Protocol
	Port     uint16
}

// Endpoint is one endpoint of a slice.
type Endpoint struct {
	Addr                        netip.Addr
	Ready, Serving, Terminating bool
	Node                        string
	// Pod is the name of the endpoint's pod; empty when it is not a pod.
	Pod string
	// ForZones and ForNodes are the endpoint's topology hints.
	ForZones, ForNodes []string
}

// Locality is the node that a Service is resolved for, and its zone, which may be empty.
type Locality struct{ Node, Zone string }

// Build resolves a Service for a node; false when there is nothing to serve. The result does not depend on the order of
// the slices or of their endpoints.
func Build(s *Service, from []*Slice, at Locality) (model.Service, bool) {
	if len(s.ClusterIPs) == 0 || len(s.Ports) == 0 {
		return model.Service{}, false
	}
	out := model.Service{
		Name: s.Name, Created: s.Created, Affinity: s.Affinity, Algorithm: s.Algorithm,
		HealthCheckNodePort: s.HealthCheckNodePort,
		Ports:               make([]model.ServicePort, 0, len(s.Ports)*len(s.ClusterIPs)),
	}
	if out.Algorithm == "" {
		out.Algorithm = model.HashConnection
	}
	clusterIPs := slices.SortedFunc(slices.Values(s.ClusterIPs), netip.Addr.Compare) // IPv4 is less than IPv6
	if s.HealthCheckNodePort != 0 {
		for _, clusterIP := range clusterIPs {
			// A pod with addresses of both families is one endpoint.
			out.HealthyEndpoints = max(out.HealthyEndpoints, healthy(from, clusterIP.Is4(), at.Node))
		}
	}
	type shared struct {
		external, loadBalancer []netip.Addr
		sources                []netip.Prefix
		closed                 bool
	}
	var families [2]shared // the same for all ports of a family
	for i, clusterIP := range clusterIPs[:min(2, len(clusterIPs))] {
		f := &families[i]
		f.loadBalancer, f.sources, f.closed = s.loadBalancer(clusterIP.Is4())
		f.external = s.external(clusterIP.Is4())
	}
	for _, p := range s.Ports {
		for i, clusterIP := range clusterIPs[:min(2, len(clusterIPs))] {
			f := families[i]
			port := model.ServicePort{
				Name: p.Name, Protocol: p.Protocol, Port: p.Port, NodePort: p.NodePort, ClusterIP: clusterIP,
				ExternalIPs: f.external, LoadBalancerIPs: f.loadBalancer, LoadBalancerSources: f.sources,
				LoadBalancerClosed: f.closed, InternalLocal: s.InternalLocal,
			}
			accessible := p.NodePort != 0 || len(f.external) > 0 || len(f.loadBalancer) > 0
			port.ExternalLocal = s.ExternalLocal && accessible
			candidates := gather(from, p, clusterIP.Is4(), at.Node)
			// With externalTrafficPolicy Local, pods and the node itself still use all endpoints at external addresses.
			if !s.InternalLocal || accessible {
				port.Cluster = s.weighted(candidates.cluster(at))
				port.Elsewhere = len(port.Cluster) > 0
			}
			if port.InternalLocal || port.ExternalLocal {
				port.Local = s.weighted(candidates.local())
				port.Elsewhere = slices.ContainsFunc(candidates, candidate.usable)
			}
			if p.Protocol == model.UDP {
				port.Retained = candidates.retained(port)
			}
			out.Ports = append(out.Ports, port)
		}
	}
	return out, true
}

// loadBalancer returns the load balancer's addresses of a family and the clients that they accept; no clients means
// all, unless closed: then they accept none. Closed addresses are still the Service's: no other Service gets them.
func (s *Service) loadBalancer(is4 bool) (addrs []netip.Addr, sources []netip.Prefix, closed bool) {
	addrs = ofFamily(s.LoadBalancerIPs, is4)
	for _, c := range s.LoadBalancerSources {
		if c.Addr().Is4() == is4 {
			if c.Bits() == 0 {
				return addrs, nil, false // all clients
			}
			sources = append(sources, c)
		}
	}
	slices.SortFunc(sources, netip.Prefix.Compare)
	return addrs, slices.Compact(sources), len(addrs) > 0 && len(sources) == 0 && s.SourcesLost
}

// external returns the external IPs of a family. One that is also a load balancer's address counts only as the latter,
// which limits its clients.
func (s *Service) external(is4 bool) []netip.Addr {
	return slices.DeleteFunc(ofFamily(s.ExternalIPs, is4), func(a netip.Addr) bool {
		return slices.Contains(s.LoadBalancerIPs, a)
	})
}

// ofFamily returns the addresses of a family, sorted, each once.
func ofFamily(addrs []netip.Addr, is4 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if a.Is4() == is4 {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// weighted returns the chosen endpoints with their weights; nil for none.
func (s *Service) weighted(chosen []candidate) []model.Endpoint {
	if len(chosen) == 0 {
		return nil
	}
	out := make([]model.Endpoint, 0, len(chosen))
	for _, c := range chosen {
		e := model.Endpoint{Addr: c.Addr, Port: c.port, Weight: 1}
		if w, ok := s.Weights[c.Pod]; ok && c.Pod != "" {
			e.Weight = w
		}
		out = append(out, e)
	}
	return out
}

// SplitName splits namespace/name.
func SplitName(name string) (namespace, rest string) {
	namespace, rest, _ = strings.Cut(name, "/")
	return namespace, rest
}
