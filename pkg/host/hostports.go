package host

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// HostPort is a port of the node that leads to a local pod. The portmap plugin adds the same translation once, when the
// pod starts; Weft restores it after the host's firewall was flushed. Where both exist, they do the same.
type HostPort struct { //nolint:revive // the Kubernetes term
	// Addr is the node's address; invalid for all addresses of the family except loopback and link-local ones.
	Addr     netip.Addr
	Protocol model.Protocol
	Port     uint16
	To       netip.AddrPort
}

func (p HostPort) check() error {
	switch {
	case !routable(p.To.Addr()) || p.To.Port() == 0,
		p.Addr.IsValid() && (!routable(p.Addr) || p.Addr.Is4() != p.To.Addr().Is4()):
		return fmt.Errorf("host port %d/%s at %s cannot lead to %s", p.Port, p.Protocol, p.Addr, p.To)
	case p.Protocol.Number() == 0 || p.Port == 0:
		return fmt.Errorf("invalid host port %d/%s", p.Port, p.Protocol)
	}
	return nil
}

// CompareHostPorts orders host ports by address and port, then by target.
func CompareHostPorts(a, b HostPort) int { return compareElements(a.element(), b.element()) }

func (p HostPort) is4() bool { return p.To.Addr().Is4() }

func (p HostPort) element() element {
	e := element{protocol: p.Protocol, port: p.Port, to: p.To}
	if p.Addr.IsValid() {
		e.prefix = single(p.Addr)
	}
	return e
}

func hostPorts(d Desired, is4 bool) []element {
	return slices.DeleteFunc(portsOf(d.HostPorts, is4), func(e element) bool { return e.prefix.IsValid() })
}

func hostPortsAt(d Desired, is4 bool) []element {
	return slices.DeleteFunc(portsOf(d.HostPorts, is4), func(e element) bool { return !e.prefix.IsValid() })
}

// hostPortPods are the pods with host ports, each as source and destination.
func hostPortPods(d Desired, is4 bool) []element {
	var list []element
	for _, p := range d.HostPorts {
		if addr := p.To.Addr(); addr.Is4() == is4 {
			list = append(list, element{prefix: single(addr), pair: true})
		}
	}
	slices.SortFunc(list, compareElements)
	return slices.Compact(list)
}

// addHostPortRules translates host ports, after the rules for Services.
func addHostPortRules(add func(chain, comment string, words ...any), f family, gateway string) {
	add(servicesChain, "host ports at an address: to the pod",
		"dnat", f.header, "to", f.header, "daddr . meta l4proto . th dport map", "@host-ports-at-"+f.suffix)
	add(servicesChain, "host ports: to the pod",
		"meta nfproto", f.proto, "dnat", f.header, "to", "meta l4proto . th dport map", "@host-ports-"+f.suffix)
	add(postroutingChain, "a pod to its own host port: from the gateway address",
		f.header, "saddr .", f.header, "daddr", "@host-port-pods-"+f.suffix, "snat", f.header, "to", gateway, "fully-random")
}
