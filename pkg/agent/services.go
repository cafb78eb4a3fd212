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
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// kubernetesService is the Service whose endpoints are the API servers.
const kubernetesService = "default/kubernetes"

// serviceRoutes adds to the node's network what leads packets to Services. The addresses of nodes are served by these
// nodes. Reserved addresses, and those of API servers, stay with their hosts, and the port of an API server stays
// open at a node's address, too: the error names each Service and the address that it does not get.
func serviceRoutes(d *host.Desired, view *model.Snapshot, reserved map[netip.Addr]string) error {
	d.ServiceCIDRs = view.ServiceCIDRs
	owners := newAddressOwners(view, reserved)
	refused := map[string]error{}
	for _, s := range view.Services {
		for _, p := range s.Ports {
			for _, f := range p.Frontends() {
				switch f.Kind {
				case model.ClusterIP: // routed by its Service CIDR
				case model.NodePort:
					d.NodePorts = append(d.NodePorts, host.NodePort{IPv6: f.At.Addr().Is6(), Protocol: p.Protocol, Port: p.NodePort})
				default:
					if err := owners.refuse(s.Name, f.At); err != nil {
						refused[err.Error()] = err
						continue
					}
					addExternal(d, p, f, owners.nodes[f.At.Addr()])
				}
			}
		}
	}
	errs := make([]error, 0, len(refused))
	for _, text := range slices.Sorted(maps.Keys(refused)) {
		errs = append(errs, refused[text])
	}
	return errors.Join(errs...)
}

// addExternal adds an external address of a Service, which may be a node's.
func addExternal(d *host.Desired, p model.ServicePort, f model.Frontend, ofNode bool) {
	if !ofNode {
		d.ServicePorts = append(d.ServicePorts, host.ServicePort{Addr: f.At.Addr(), Protocol: p.Protocol, Port: p.Port})
	}
	// Behind the node port the requested address is lost, and with it the clients that it accepts: closed.
	if len(f.Sources) == 0 && !f.Closed {
		d.ExternalIPs = append(d.ExternalIPs, host.ExternalIP{
			Addr: f.At.Addr(), Protocol: p.Protocol, Port: p.Port, To: behindNodeAddress(p),
		})
	}
}

// addressOwners are the hosts whose addresses external addresses of Services may collide with.
type addressOwners struct {
	nodes map[netip.Addr]bool
	// reserved holds the owner of each address that no Service gets.
	reserved map[netip.Addr]string
	// apiServers are the endpoints of the kubernetes Service.
	apiServers map[netip.AddrPort]bool
	paths      map[string]model.Path
}

const theAPIServer = "the API server"

func newAddressOwners(view *model.Snapshot, reserved map[netip.Addr]string) addressOwners {
	o := addressOwners{
		nodes: map[netip.Addr]bool{}, reserved: map[netip.Addr]string{}, apiServers: map[netip.AddrPort]bool{},
		paths: view.Paths,
	}
	maps.Copy(o.reserved, reserved)
	for _, n := range view.Nodes {
		for _, a := range n.Addrs {
			o.nodes[a] = true
		}
	}
	for _, a := range view.Self.Addrs {
		o.nodes[a] = true
	}
	for _, p := range view.Services[kubernetesService].Ports {
		for _, e := range p.Cluster {
			o.reserved[e.Addr] = theAPIServer
			o.apiServers[netip.AddrPortFrom(e.Addr, e.Port)] = true
		}
	}
	return o
}

// refuse says why a Service does not get an external address and port, or nil. A node's address may be a Service's
// external address, as any other port there may: but without the API server's no node would learn that the Service is
// gone.
func (o addressOwners) refuse(service string, at netip.AddrPort) error {
	owner := o.reserved[at.Addr()]
	for _, name := range slices.Sorted(maps.Keys(o.paths)) {
		if slices.ContainsFunc(o.paths[name].PodCIDRs, func(p netip.Prefix) bool { return p.Contains(at.Addr()) }) {
			owner = "a pod of node " + name
			break
		}
	}
	if o.nodes[at.Addr()] {
		owner = ""
		if o.apiServers[at] {
			owner = theAPIServer
		}
	}
	if owner == "" {
		return nil
	}
	return fmt.Errorf("packets of this node to the external address %[2]s do not go to Service %[1]s, "+
		"for it is the address of %[3]s; remove it from the Service", service, at, owner)
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
		a.events.Warn(model.ServiceOwner(service), eventHealthCheckFailed, err.Error())
	}
}

// timeStep is how often the loop is told the time. New epochs of affinity within one step cost the switch one bundle.
const timeStep = 5 * time.Second

// tellTime tells the loop the time until the context ends.
func tellTime(ctx context.Context, loop *programmer.Loop) {
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
	for _, c := range flowSettings(a.cfg) {
		a.loop.Submit(c)
	}
}

// flowSettings are what of a configuration decides about flows.
func flowSettings(cfg config.Config) []state.Change {
	return []state.Change{
		state.SetTransport{Transport: cfg.PeerTransport()},
		state.SetKeepEstablished{Keep: cfg.EstablishedConnections == config.EstablishedKeep},
		state.SetDNSServers{Servers: cfg.TrustedDNS()},
		state.SetExternalIPs{Refused: !cfg.ExternalIPs},
		state.SetServiceCIDRs{Configured: true, CIDRs: cfg.ServiceCIDRs},
		state.SetClusterCIDRs{CIDRs: cfg.ClusterCIDRs},
	}
}
