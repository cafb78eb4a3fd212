package host

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// NodePort is a port that the node serves in one address family, at all its addresses except loopback and IPv6
// link-local ones, or at those of Desired.NodePortAddrs. As with kube-proxy's nftables mode, 127.0.0.1 is excluded: it
// would need route_localnet, which exposes loopback listeners to the neighbors.
type NodePort struct {
	IPv6     bool
	Protocol model.Protocol
	Port     uint16
}

// ServicePort is a port of an external IP or a load balancer's address.
type ServicePort struct {
	Addr     netip.Addr
	Protocol model.Protocol
	Port     uint16
}

func (p ServicePort) check() error {
	if !routable(p.Addr) || p.Protocol.Number() == 0 || p.Port == 0 {
		return fmt.Errorf("invalid Service port %d/%s at %s", p.Port, p.Protocol, p.Addr)
	}
	return nil
}

// ExternalIP is a port of an external IP or a load balancer's address. When the address is the node's own, packets to
// it would never reach the switch, so they are sent to To, an address of the same family that the switch serves.
type ExternalIP struct {
	Addr     netip.Addr
	Protocol model.Protocol
	Port     uint16
	To       netip.AddrPort
}

// nodePortAddrs are the ranges of a family, disjoint; empty stands for all addresses.
func (d Desired) nodePortAddrs(is4 bool) ranges {
	var list []netip.Prefix
	for _, p := range d.NodePortAddrs {
		if p.Addr().Is4() == is4 {
			list = append(list, p)
		}
	}
	return disjoint(list)
}

func (p NodePort) check() error {
	if p.Protocol.Number() == 0 || p.Port == 0 {
		return fmt.Errorf("invalid node port %d/%s", p.Port, p.Protocol)
	}
	return nil
}

func (e ExternalIP) check() error {
	switch {
	case !routable(e.Addr) || !routable(e.To.Addr()) || e.Addr.Is4() != e.To.Addr().Is4():
		return fmt.Errorf("external address %s cannot lead to %s", e.Addr, e.To)
	case e.Protocol.Number() == 0 || e.Port == 0 || e.To.Port() == 0:
		return fmt.Errorf("%d/%s at external address %s cannot lead to port %d",
			e.Port, e.Protocol, e.Addr, e.To.Port())
	}
	return nil
}

// routable is false for addresses that neither routes nor nftables accept.
func routable(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

// port is a port in Desired; it makes an element of a set.
type port interface {
	comparable
	check() error
	is4() bool
	element() element
}

func (p NodePort) is4() bool    { return !p.IPv6 }
func (p ServicePort) is4() bool { return p.Addr.Is4() }
func (e ExternalIP) is4() bool  { return e.Addr.Is4() }

func (p NodePort) element() element {
	return element{protocol: p.Protocol, port: p.Port, to: model.NodePortAt(p.is4(), p.Protocol, p.Port)}
}

func (p ServicePort) element() element {
	return element{prefix: single(p.Addr), protocol: p.Protocol, port: p.Port}
}

func (e ExternalIP) element() element {
	return element{prefix: single(e.Addr), protocol: e.Protocol, port: e.Port, to: e.To}
}

func nodePorts(d Desired, is4 bool) []element   { return portsOf(d.NodePorts, is4) }
func externalIPs(d Desired, is4 bool) []element { return portsOf(d.ExternalIPs, is4) }

func servicePorts(d Desired, is4 bool) []element {
	if _, routed := d.local(is4); !routed {
		return nil
	}
	return portsOf(d.ServicePorts, is4)
}

// portsOf are the elements of one family.
func portsOf[T port](list []T, is4 bool) []element {
	elements := make([]element, 0, len(list))
	for _, p := range list {
		if p.is4() == is4 {
			elements = append(elements, p.element())
		}
	}
	return elements
}

// sortServices sorts the lists for Services. It returns the errors of sortPorts.
func (d *Desired) sortServices() []error {
	return slices.Concat(sortPorts(&d.ServicePorts), sortPorts(&d.NodePorts), sortPorts(&d.ExternalIPs))
}

// sortPorts sorts a list and removes duplicates. It returns an error for each invalid entry, which it removes: one
// invalid object must not block the others. Of several that lead elsewhere the first is kept. Sorted lists cost little.
func sortPorts[T port](list *[]T) (errs []error) {
	sortAndCompact(list, func(a, b T) int { return compareElements(a.element(), b.element()) })
	var last element
	*list = slices.DeleteFunc(*list, func(p T) bool {
		err, e := p.check(), p.element()
		same := e
		same.to = last.to
		if err == nil && same == last && e.to.Addr().Is4() == last.to.Addr().Is4() {
			at := "all addresses"
			if e.prefix.IsValid() {
				at = e.prefix.Addr().String()
			}
			err = fmt.Errorf("%d/%s at %s cannot lead to both %s and %s", e.port, e.protocol, at, last.to, e.to)
		}
		if err != nil {
			errs = append(errs, err)
			return true
		}
		last = e
		return false
	})
	return errs
}

func sortAndCompact[T comparable](list *[]T, compare func(a, b T) int) {
	*list = slices.Clone(*list)
	slices.SortFunc(*list, compare)
	*list = slices.Compact(*list)
}
