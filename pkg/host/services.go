package host

import (
	"cmp"
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

func compareNodePorts(a, b NodePort) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), compareBools(a.IPv6, b.IPv6))
}

func compareExternalIPs(a, b ExternalIP) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port),
		a.To.Compare(b.To))
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// sortServices sorts the lists for Services, removes duplicates, and returns an error for each invalid entry, which it
// removes: one invalid object must not block the others. Sorted lists cost little.
func (d *Desired) sortServices() []error {
	sortAndCompact(&d.ServicePorts, compareServicePorts)
	sortAndCompact(&d.Nodes, netip.Addr.Compare)
	d.Nodes = slices.DeleteFunc(d.Nodes, func(a netip.Addr) bool { return !routable(a) })
	sortAndCompact(&d.NodePorts, compareNodePorts)
	sortAndCompact(&d.ExternalIPs, compareExternalIPs)
	errs := dropInvalid(&d.ServicePorts, func(_, _ ServicePort) error { return nil })
	errs = append(errs, dropInvalid(&d.NodePorts, func(_, _ NodePort) error { return nil })...)
	return append(errs, dropInvalid(&d.ExternalIPs, func(e, last ExternalIP) error {
		if e.Addr != last.Addr || e.Protocol != last.Protocol || e.Port != last.Port {
			return nil
		}
		return fmt.Errorf("%d/%s at external address %s cannot lead to both %s and %s", e.Port, e.Protocol, e.Addr, last.To,
			e.To)
	})...)
}

// dropInvalid removes the invalid entries, and those in conflict with the entry before, and returns their errors.
func dropInvalid[T interface{ check() error }](list *[]T, conflict func(e, last T) error) (errs []error) {
	var last T
	*list = slices.DeleteFunc(*list, func(e T) bool {
		err := e.check()
		if err == nil {
			err = conflict(e, last)
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
