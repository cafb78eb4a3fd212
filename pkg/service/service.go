// Package service turns a Service and its EndpointSlices into what one node serves: which addresses and ports, and which
// endpoints a packet may go to from there. It honours what kube-proxy of Kubernetes 1.34 honours; test/oracle/service compares
// the two.
//
// Build is a pure function of plain values. Resolver holds its result for all Services and follows changes. Nothing is
// locked or started. pkg/kube makes the input from Kubernetes' objects, once for each version of an object, and shares it.
package service

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/model"
)

// Service is what matters of a Service object. It is not changed once it is made.
type Service struct {
	Name    string // namespace/name
	Created int64  // in seconds since 1970; 0 when it is not known
	// ClusterIPs are at most one of each family. Without any, no node serves the Service: it is headless or an ExternalName.
	ClusterIPs []netip.Addr
	Ports      []Port
	// ExternalIPs are none of the ClusterIPs.
	ExternalIPs     []netip.Addr
	LoadBalancerIPs []netip.Addr
	// LoadBalancerSources are the clients that LoadBalancerIPs of the same family accept; a family without any accepts all.
	LoadBalancerSources []netip.Prefix
	// SourcesLost says that some of LoadBalancerSources could not be read. A family without any then accepts nobody: a mistake
	// must not open what was meant to be closed.
	SourcesLost                  bool
	InternalLocal, ExternalLocal bool
	// Affinity is 0 without sessionAffinity.
	Affinity time.Duration
	// HealthCheckNodePort is 0 for all but Services of type LoadBalancer with externalTrafficPolicy Local.
	HealthCheckNodePort uint16
	Algorithm           model.Algorithm
	// Weights are those of pods whose weight is not 1, by name.
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

// Slice is what matters of an EndpointSlice. It is not changed once it is made.
type Slice struct {
	Name    string // namespace/name
	Service string // namespace/name
	// Ports are those with a number.
	Ports []SlicePort
	// Endpoints are all of one family.
	Endpoints []Endpoint
	// Problem says what of the object is invalid and left out; empty when nothing is.
	Problem string
}

// SlicePort is the number that a port of the Service has at a slice's endpoints.
type SlicePort struct {
	Name     string // of the Service's port
	Protocol model.Protocol
	Port     uint16
}

// Endpoint is one endpoint of a slice.
type Endpoint struct {
	Addr                        netip.Addr
	Ready, Serving, Terminating bool
	Node                        string
	// Pod is the name of the pod that the endpoint is, if it is one.
	Pod string
	// ForZones and ForNodes are hints: who should use the endpoint.
	ForZones, ForNodes []string
}

// Place is where a view is taken from: a node and its zone, which may be empty.
type Place struct{ Node, Zone string }

// Build says what a Service is at a place, false when there is nothing to serve. The order of the slices, and that of the endpoints
// in them, does not matter.
func Build(s *Service, from []*Slice, at Place) (model.Service, bool) {
	if len(s.ClusterIPs) == 0 || len(s.Ports) == 0 {
		return model.Service{}, false
	}
	out := model.Service{
		Name: s.Name, Created: s.Created, Affinity: s.Affinity, Algorithm: s.Algorithm, HealthCheckNodePort: s.HealthCheckNodePort,
		Ports: make([]model.ServicePort, 0, len(s.Ports)*len(s.ClusterIPs)),
	}
	if out.Algorithm == "" {
		out.Algorithm = model.HashConnection
	}
	clusterIPs := slices.SortedFunc(slices.Values(s.ClusterIPs), netip.Addr.Compare) // IPv4 is less than IPv6
	if s.HealthCheckNodePort != 0 {
		for _, clusterIP := range clusterIPs {
			// A pod that is in both families is one endpoint.
			out.HealthyEndpoints = max(out.HealthyEndpoints, healthy(from, clusterIP.Is4(), at.Node))
		}
	}
	type shared struct {
		external, loadBalancer []netip.Addr
		sources                []netip.Prefix
	}
	var families [2]shared // what all ports of a family have in common
	for i, clusterIP := range clusterIPs[:min(2, len(clusterIPs))] {
		f := &families[i]
		f.loadBalancer, f.sources = s.loadBalancer(clusterIP.Is4())
		f.external = s.external(clusterIP.Is4())
	}
	for _, p := range s.Ports {
		for i, clusterIP := range clusterIPs[:min(2, len(clusterIPs))] {
			f := families[i]
			port := model.ServicePort{
				Name: p.Name, Protocol: p.Protocol, Port: p.Port, NodePort: p.NodePort, ClusterIP: clusterIP,
				ExternalIPs: f.external, LoadBalancerIPs: f.loadBalancer, LoadBalancerSources: f.sources,
				InternalLocal: s.InternalLocal,
			}
			accessible := p.NodePort != 0 || len(f.external) > 0 || len(f.loadBalancer) > 0
			port.ExternalLocal = s.ExternalLocal && accessible
			candidates := gather(from, p, clusterIP.Is4(), at.Node)
			// With externalTrafficPolicy Local, pods and the node itself still use the Cluster's endpoints at external addresses.
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

// loadBalancer are the load balancer's addresses of a family and the clients that they accept.
func (s *Service) loadBalancer(is4 bool) ([]netip.Addr, []netip.Prefix) {
	addrs := ofFamily(s.LoadBalancerIPs, is4)
	var sources []netip.Prefix
	for _, c := range s.LoadBalancerSources {
		if c.Addr().Is4() == is4 {
			if c.Bits() == 0 {
				return addrs, nil // everybody
			}
			sources = append(sources, c)
		}
	}
	if len(sources) == 0 && s.SourcesLost {
		return nil, nil
	}
	slices.SortFunc(sources, netip.Prefix.Compare)
	return addrs, slices.Compact(sources)
}

// external are the external addresses of a family. One that is the load balancer's too is treated as the latter: it
// accepts only its clients.
func (s *Service) external(is4 bool) []netip.Addr {
	return slices.DeleteFunc(ofFamily(s.ExternalIPs, is4), func(a netip.Addr) bool { return slices.Contains(s.LoadBalancerIPs, a) })
}

// ofFamily are the addresses of a family, sorted and each once.
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

// weighted gives the chosen endpoints their weights; nil for none.
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

// SplitName takes a namespace/name apart.
func SplitName(name string) (namespace, rest string) {
	namespace, rest, _ = strings.Cut(name, "/")
	return namespace, rest
}
