package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/healthcheck"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// kubernetesService is the Service whose endpoints are the API servers.
const kubernetesService = "default/kubernetes"

// serviceRoutes adds to what the node's network shall be the node's way to Services. Addresses of nodes are left to the
// nodes, and those of API servers and the reserved ones to who has them, whatever a Service says; of the latter it returns
// an error that names Service and address.
func serviceRoutes(d *host.Desired, view *model.Snapshot, reserved map[netip.Addr]string) error {
	d.ServiceCIDRs = view.ServiceCIDRs
	nodes := map[netip.Addr]bool{}
	for _, n := range view.Nodes {
		for _, a := range n.Addrs {
			nodes[a] = true
		}
	}
	for _, a := range view.Self.Addrs {
		nodes[a] = true
	}
	whose := maps.Clone(reserved)
	if whose == nil {
		whose = map[netip.Addr]string{}
	}
	for _, p := range view.Services[kubernetesService].Ports {
		for _, e := range p.Cluster {
			whose[e.Addr] = "the API server"
		}
	}
	refused := map[string]bool{}
	for _, s := range view.Services {
		for _, p := range s.Ports {
			for _, f := range p.Frontends() {
				switch f.Kind {
				case model.ClusterIP: // its way is that of the ServiceCIDRs
				case model.NodePort:
					d.NodePorts = append(d.NodePorts, host.NodePort{IPv6: f.At.Addr().Is6(), Protocol: p.Protocol, Port: p.NodePort})
				default:
					at := f.At.Addr()
					switch {
					case nodes[at]:
					case whose[at] != "":
						refused[refusal(s.Name, at, whose[at])] = true
						continue
					default:
						d.ServicePorts = append(d.ServicePorts, host.ServicePort{Addr: at, Protocol: p.Protocol, Port: p.Port})
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
	var errs []error
	for _, text := range slices.Sorted(maps.Keys(refused)) {
		errs = append(errs, errors.New(text))
	}
	return errors.Join(errs...)
}

// refusal says that a Service does not get an address.
func refusal(service string, at netip.Addr, whose string) string {
	return fmt.Sprintf("Service %s: packets of this node to its external address %s do not go to the Service, "+
		"for it is the address of %s; remove it from the Service", service, at, whose)
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
