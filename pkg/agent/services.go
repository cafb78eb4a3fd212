package agent

import (
	"context"
	"net/netip"
	"net/url"
	"time"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/healthcheck"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// kubernetesService is the Service whose endpoints are the API servers.
const kubernetesService = "default/kubernetes"

// serviceRoutes adds to what the node's network shall be the node's way to Services. A route takes all ports of an address, so
// there is none for addresses of nodes and API servers, whatever a Service says.
func serviceRoutes(d *host.Desired, view *model.Snapshot, apiServer string) {
	d.ServiceCIDRs = view.ServiceCIDRs
	unrouted := map[netip.Addr]bool{}
	for _, n := range view.Nodes {
		for _, a := range n.Addrs {
			unrouted[a] = true
		}
	}
	for _, a := range view.Self.Addrs {
		unrouted[a] = true
	}
	for _, p := range view.Services[kubernetesService].Ports {
		for _, e := range p.Cluster {
			unrouted[e.Addr] = true
		}
	}
	if u, err := url.Parse(apiServer); err == nil {
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			unrouted[a] = true
		}
	}
	for _, s := range view.Services {
		for _, p := range s.Ports {
			for _, f := range p.Frontends() {
				switch f.Kind {
				case model.ClusterIP: // its way is that of the ServiceCIDRs
				case model.NodePort:
					d.NodePorts = append(d.NodePorts, host.NodePort{IPv6: f.At.Addr().Is6(), Protocol: p.Protocol, Port: p.NodePort})
				default:
					if !unrouted[f.At.Addr()] {
						d.ServiceIPs = append(d.ServiceIPs, f.At.Addr())
					}
					// Behind the node port nobody knows which address a client asked for, and so which clients it accepts: closed.
					if len(f.Sources) == 0 {
						to := behindNodeAddress(p)
						d.ExternalIPs = append(d.ExternalIPs, host.ExternalIP{Addr: f.At.Addr(), Protocol: p.Protocol, Port: p.Port, To: to})
					}
				}
			}
		}
	}
}

// behindNodeAddress is where the node sends what came for an external address that is its own. The node port knows the
// external traffic policy; a Service without one has the policy Cluster, as its cluster IP has.
func behindNodeAddress(p model.ServicePort) netip.AddrPort {
	if p.NodePort != 0 {
		return model.NodePortAt(p.ClusterIP.Is4(), p.Protocol, p.NodePort)
	}
	return netip.AddrPortFrom(p.ClusterIP, p.Port)
}

// healthChecks are the Services that load balancers ask this node about.
func healthChecks(view *model.Snapshot) []healthcheck.Service {
	var list []healthcheck.Service
	for _, s := range view.Services {
		if s.HealthCheckNodePort != 0 {
			list = append(list, healthcheck.Service{Name: s.Name, Port: s.HealthCheckNodePort, Endpoints: s.HealthyEndpoints})
		}
	}
	return list
}

// serving says whether this node can serve Services.
func (a *Agent) serving() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.notReadyLocked() == "" && a.degradedLocked() == ""
}

// reportHealthCheck tells Kubernetes of a health check that cannot be answered.
func (a *Agent) reportHealthCheck(service string, err error) {
	if err != nil {
		a.events.Warn(model.ServiceOwner(service), "HealthCheckFailed", err.Error())
	}
}

// timeStep is how often the loop is told the time. New epochs of affinity within one step cost the switch one bundle.
const timeStep = 5 * time.Second

// tellTime tells the loop the time until the context ends.
func tellTime(ctx context.Context, loop *Loop) {
	ticker := time.NewTicker(timeStep)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			loop.Submit(state.SetTime{Now: time.Now()})
		}
	}
}

// submitSettings tells the loop what of the configuration decides about flows.
func (a *Agent) submitSettings() {
	a.loop.Submit(state.SetTunnel{Type: a.cfg.TunnelType})
	a.loop.Submit(state.SetKeepEstablished{Keep: a.cfg.EstablishedConnections == config.EstablishedKeep})
	a.loop.Submit(state.SetServiceCIDRs{Configured: true, CIDRs: a.cfg.ServiceCIDRs})
	a.loop.Submit(state.SetClusterCIDRs{CIDRs: a.cfg.ClusterCIDRs})
}
