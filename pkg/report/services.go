package report

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Service is a Service as this node serves it and `weftctl service` shows it.
type Service struct {
	// Service is namespace/name.
	Service string `json:"service"`
	// Affinity is how long clients come back to one endpoint, as in Go's time.Duration ("3h0m0s"); absent without
	// sessionAffinity.
	Affinity  string          `json:"affinity,omitempty"`
	Algorithm model.Algorithm `json:"algorithm"`
	// HealthCheckNodePort is where load balancers ask for HealthyEndpoints; absent when the Service has none.
	HealthCheckNodePort uint16 `json:"healthCheckNodePort,omitempty"`
	// HealthyEndpoints counts the ready endpoints on this node.
	HealthyEndpoints int `json:"healthyEndpoints,omitempty"`
	// Problem says what of the Service is not used, or why it is quarantined; absent when nothing is wrong.
	Problem string `json:"problem,omitempty"`
	// Frontends are empty when nothing of the Service is used.
	Frontends []Frontend `json:"frontends"`
}

// Frontend is an address and port of a Service.
type Frontend struct {
	Kind model.FrontendKind `json:"kind"`
	// Address is IP:PORT, or *:PORT for a node port.
	Address  string         `json:"address"`
	Protocol model.Protocol `json:"protocol"`
	// Port is the Service port's name; absent when it has none.
	Port string `json:"port,omitempty"`
	// Policy is Cluster or Local: the internal traffic policy of a ClusterIP, the external one of others.
	Policy string `json:"trafficPolicy"`
	// Sources are the only clients that it accepts; absent when it accepts all.
	Sources []netip.Prefix `json:"sources,omitempty"`
	// Endpoints are those that its traffic policy leaves; empty, not null, without any.
	Endpoints []Endpoint `json:"endpoints"`
	// Without says what happens to packets while there are no endpoints; absent when there are some.
	Without string `json:"withoutEndpoints,omitempty"`
	// Stats are the packets that began a connection since the flow was added.
	openflow.Stats
}

// Endpoint is where packets may end.
type Endpoint struct {
	Address netip.AddrPort `json:"address"`
	// Local says that it is a pod of this node, or the node itself.
	Local bool `json:"local"`
	// Weight is its share of new connections, relative to the frontend's other endpoints; at least 1.
	Weight uint16 `json:"weight"`
}

// Services makes the list of the Services, by namespace/name. Name is empty for all of them, or one Service's
// namespace/name or name. Objects says what of objects is not used. It does not change its arguments.
func Services(
	view *model.Snapshot, p Programming, objects map[model.Owner]string, actual []openflow.Entry, name string,
) []Service {
	here := localAddrs(view)
	counted := frontendStats(actual)
	list := []Service{}
	for _, id := range slices.Sorted(maps.Keys(view.Services)) {
		if !isNamed(id, name) {
			continue
		}
		s := view.Services[id]
		owner := model.ServiceOwner(id)
		r := Service{
			Service: id, Algorithm: s.Algorithm,
			HealthCheckNodePort: s.HealthCheckNodePort, HealthyEndpoints: s.HealthyEndpoints,
			Problem: joinProblems(objects[owner], p.Quarantined[owner]), Frontends: []Frontend{},
		}
		if s.Affinity > 0 {
			r.Affinity = s.Affinity.String()
		}
		for _, port := range s.Ports {
			for _, f := range port.Frontends() {
				described := describeFrontend(port, f, here)
				if err := flows.Untranslatable(port, f, view.KernelDatapath); err != nil {
					described.Endpoints, described.Without = []Endpoint{}, "rejected: "+err.Error()
				}
				described.Stats = counted[frontend{flows.Cookie(owner), port.Protocol.Number(), f.At}]
				r.Frontends = append(r.Frontends, described)
			}
		}
		list = append(list, r)
	}
	// A Service of which nothing can be used is in no snapshot.
	for owner, problem := range objects {
		if _, served := view.Services[owner.Name]; owner.Kind == model.KindService && !served && isNamed(owner.Name, name) {
			list = append(list, Service{Service: owner.Name, Problem: problem, Frontends: []Frontend{}})
		}
	}
	slices.SortFunc(list, func(a, b Service) int { return strings.Compare(a.Service, b.Service) })
	return list
}

// describeFrontend is a frontend of a port, less its counters.
func describeFrontend(p model.ServicePort, f model.Frontend, here map[netip.Addr]bool) Frontend {
	r := Frontend{
		Kind: f.Kind, Address: f.At.String(), Protocol: p.Protocol, Port: p.Name, Policy: "Cluster", Sources: f.Sources,
		Endpoints: describeEndpoints(p.Endpoints(f.Local), here),
	}
	if f.Local {
		r.Policy = "Local"
	}
	if f.Kind == model.NodePort { // at every address of the node
		r.Address = "*:" + strconv.Itoa(int(p.NodePort))
	}
	switch {
	case f.Closed:
		r.Endpoints, r.Without = describeEndpoints(nil, here), "dropped: none of loadBalancerSourceRanges is valid"
	case len(r.Endpoints) > 0:
	case p.Elsewhere:
		r.Without = "dropped: there are endpoints on other nodes only"
	default:
		r.Without = "rejected: there is no endpoint"
	}
	return r
}

func describeEndpoints(endpoints []model.Endpoint, here map[netip.Addr]bool) []Endpoint {
	list := make([]Endpoint, 0, len(endpoints))
	for _, e := range endpoints {
		list = append(list, Endpoint{netip.AddrPortFrom(e.Addr, e.Port), here[e.Addr], e.Weight})
	}
	return list
}

// localAddrs are the addresses of this node and its pods.
func localAddrs(view *model.Snapshot) map[netip.Addr]bool {
	here := map[netip.Addr]bool{}
	for _, addr := range view.Self.Addrs {
		here[addr] = true
	}
	for _, a := range view.Attachments {
		for _, ip := range a.IPs {
			here[ip] = true
		}
	}
	return here
}

// frontend is what flows of ServiceLB match, of one Service.
type frontend struct {
	cookie   uint64
	protocol uint8 // its number
	to       netip.AddrPort
}

// frontendStats adds up the flows that lead to each frontend's endpoints; clients in different ranges, and those that
// come back, have flows of their own.
func frontendStats(actual []openflow.Entry) map[frontend]openflow.Stats {
	sums := map[frontend]openflow.Stats{}
	for _, e := range actual {
		if e.Table != flows.ServiceLB || flows.KindOf(e.Cookie) != model.KindService {
			continue
		}
		protocol, to := e.Match.Destination()
		f := frontend{e.Cookie, protocol, to}
		sum := sums[f]
		sum.Packets += e.Packets
		sum.Bytes += e.Bytes
		sums[f] = sum
	}
	return sums
}
