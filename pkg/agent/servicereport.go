package agent

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// ServiceReport is a Service as this node serves it and `weftctl service` shows it.
type ServiceReport struct {
	// Service is namespace/name.
	Service string `json:"service"`
	// Affinity is how long clients come back to one endpoint; empty without sessionAffinity.
	Affinity  string          `json:"affinity,omitempty"`
	Algorithm model.Algorithm `json:"algorithm"`
	// HealthCheckNodePort is where load balancers ask for HealthyEndpoints.
	HealthCheckNodePort uint16 `json:"healthCheckNodePort,omitempty"`
	HealthyEndpoints    int    `json:"healthyEndpoints,omitempty"`
	// Problem says what of the Service cannot be used, or why its flows are refused; empty when nothing is wrong.
	Problem   string           `json:"problem,omitempty"`
	Frontends []FrontendReport `json:"frontends"`
}

// FrontendReport is an address and port of a Service.
type FrontendReport struct {
	Kind model.FrontendKind `json:"kind"`
	// Address is IP:PORT, or *:PORT for a node port.
	Address  string         `json:"address"`
	Protocol model.Protocol `json:"protocol"`
	// Port is the Service port's name; empty when it has none.
	Port string `json:"port,omitempty"`
	// Policy is Cluster or Local: the internal traffic policy of a ClusterIP, the external one of others.
	Policy string `json:"trafficPolicy"`
	// Sources are the only clients that it takes; empty is all.
	Sources []netip.Prefix `json:"sources,omitempty"`
	// Endpoints are those that its traffic policy leaves.
	Endpoints []EndpointReport `json:"endpoints"`
	// Without says what happens to packets while there are no endpoints; empty when there are some.
	Without string `json:"withoutEndpoints,omitempty"`
	// Stats are the packets that began a connection since the flow was written.
	openflow.Stats
}

// EndpointReport is where packets may end.
type EndpointReport struct {
	Address netip.AddrPort `json:"address"`
	// Local says that it is a pod of this node, or the node itself.
	Local  bool   `json:"local"`
	Weight uint16 `json:"weight"`
}

// serviceReports says what the Services do. Name is empty for all of them, or one Service's namespace/name or name.
func (a *Agent) serviceReports(ctx context.Context, name string) ([]ServiceReport, error) {
	actual, err := a.sw.Dump(ctx)
	if err != nil {
		return nil, err
	}
	return serviceReports(a.loop.View(), a.loop.Status(), a.objectProblems(), actual.Flows, name), nil
}

func serviceReports(view *model.Snapshot, status Status, problems map[model.Owner]string, actual []openflow.Entry, name string) []ServiceReport {
	here := localAddrs(view)
	counted := frontendStats(actual)
	reports := []ServiceReport{}
	for _, id := range slices.Sorted(maps.Keys(view.Services)) {
		if !isNamed(id, name) {
			continue
		}
		s := view.Services[id]
		owner := model.ServiceOwner(id)
		r := ServiceReport{
			Service: id, Algorithm: s.Algorithm, HealthCheckNodePort: s.HealthCheckNodePort, HealthyEndpoints: s.HealthyEndpoints,
			Problem: joinProblems(problems[owner], status.Quarantined[owner]), Frontends: []FrontendReport{},
		}
		if s.Affinity > 0 {
			r.Affinity = s.Affinity.String()
		}
		for _, p := range s.Ports {
			for _, f := range p.Frontends() {
				report := frontendReport(p, f, here)
				if err := flows.Untranslatable(p, f, view.KernelDatapath); err != nil {
					report.Endpoints, report.Without = []EndpointReport{}, "rejected: "+err.Error()
				}
				report.Stats = counted[frontend{flows.Cookie(owner), p.Protocol.Number(), f.At}]
				r.Frontends = append(r.Frontends, report)
			}
		}
		reports = append(reports, r)
	}
	// A Service of which nothing can be used is in no snapshot.
	for owner, problem := range problems {
		if _, served := view.Services[owner.Name]; owner.Kind == model.KindService && !served && isNamed(owner.Name, name) {
			reports = append(reports, ServiceReport{Service: owner.Name, Problem: problem, Frontends: []FrontendReport{}})
		}
	}
	slices.SortFunc(reports, func(a, b ServiceReport) int { return strings.Compare(a.Service, b.Service) })
	return reports
}

func joinProblems(problems ...string) string {
	return strings.Join(slices.DeleteFunc(problems, func(p string) bool { return p == "" }), "; ")
}

// frontendReport is a frontend of a port, less its counters.
func frontendReport(p model.ServicePort, f model.Frontend, here map[netip.Addr]bool) FrontendReport {
	r := FrontendReport{
		Kind: f.Kind, Address: f.At.String(), Protocol: p.Protocol, Port: p.Name, Policy: "Cluster", Sources: f.Sources,
		Endpoints: endpointReports(p.Endpoints(f.Local), here),
	}
	if f.Local {
		r.Policy = "Local"
	}
	if f.Kind == model.NodePort { // at every address of the node
		r.Address = "*:" + strconv.Itoa(int(p.NodePort))
	}
	switch {
	case f.Closed:
		r.Endpoints, r.Without = endpointReports(nil, here), "dropped: none of loadBalancerSourceRanges is valid"
	case len(r.Endpoints) > 0:
	case p.Elsewhere:
		r.Without = "dropped: there are endpoints on other nodes only"
	default:
		r.Without = "rejected: there is no endpoint"
	}
	return r
}

func endpointReports(endpoints []model.Endpoint, here map[netip.Addr]bool) []EndpointReport {
	reports := make([]EndpointReport, 0, len(endpoints))
	for _, e := range endpoints {
		reports = append(reports, EndpointReport{netip.AddrPortFrom(e.Addr, e.Port), here[e.Addr], e.Weight})
	}
	return reports
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

// frontendStats adds up the flows that lead to each frontend's endpoints; clients in different ranges, and those that come back,
// have flows of their own.
func frontendStats(actual []openflow.Entry) map[frontend]openflow.Stats {
	sums := map[frontend]openflow.Stats{}
	for _, e := range actual {
		if e.Table != flows.ServiceLB || flows.KindOf(e.Cookie) != model.KindService {
			continue
		}
		protocol, to := openflow.DestinationIn(e.Match)
		f := frontend{e.Cookie, protocol, to}
		sums[f] = plus(sums[f], e.Stats)
	}
	return sums
}
