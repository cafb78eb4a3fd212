package service

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// Claims decides which of several Services has an external address at a port. A load balancer's address, which a
// controller writes, takes precedence over an external IP, which any tenant may write. Among equals the older Service
// has it, and among Services of the same age the first by name. A change costs as much as the Services that claim the
// same addresses.
//
// Claims belongs to one goroutine. It never changes the Services that it is given.
type Claims struct {
	// services are the Services with external addresses, as they were set; claimants are their names, by address.
	services  map[string]model.Service
	claimants map[claim][]string
}

// claim is an address and port of a protocol.
type claim struct {
	at       netip.AddrPort
	protocol model.Protocol
}

// NewClaims returns Claims without Services.
func NewClaims() *Claims {
	return &Claims{services: map[string]model.Service{}, claimants: map[claim][]string{}}
}

// Set adds or replaces a Service. It returns the names of other Services that share a claimed address with the new or
// the old version: Resolve may return a different result for them. Idempotent.
func (c *Claims) Set(s model.Service) (others []string) {
	others = c.Delete(s.Name)
	own := claimsOf(s)
	if len(own) == 0 {
		return others
	}
	c.services[s.Name] = s
	for _, claimed := range own {
		list := c.claimants[claimed]
		others = append(others, list...)
		at, _ := slices.BinarySearch(list, s.Name)
		c.claimants[claimed] = slices.Insert(list, at, s.Name)
	}
	return unique(others)
}

// Delete removes a Service and returns names as Set does. Idempotent.
func (c *Claims) Delete(name string) (others []string) {
	for _, claimed := range claimsOf(c.services[name]) {
		list := slices.DeleteFunc(c.claimants[claimed], func(other string) bool { return other == name })
		others = append(others, list...)
		if c.claimants[claimed] = list; len(list) == 0 {
			delete(c.claimants, claimed)
		}
	}
	delete(c.services, name)
	return unique(others)
}

// Get returns a Service as it was set; false when it has no external addresses.
func (c *Claims) Get(name string) (model.Service, bool) {
	s, ok := c.services[name]
	return s, ok
}

// Resolve returns a copy of the Service without the addresses that other Services have; Lost lists them. A Service
// without external addresses is unchanged.
func (c *Claims) Resolve(s model.Service) model.Service {
	ports := slices.Clone(s.Ports)
	for i := range ports {
		p := &ports[i]
		won := func(kind model.FrontendKind, addrs []netip.Addr) []netip.Addr {
			var out []netip.Addr
			for _, a := range addrs {
				at := claim{netip.AddrPortFrom(a, p.Port), p.Protocol}
				if winner := c.winner(at); winner == s.Name || winner == "" {
					out = append(out, a)
				} else {
					s.Lost = append(s.Lost, model.LostAddress{Kind: kind, At: at.at, Protocol: p.Protocol, Winner: winner})
				}
			}
			if len(out) == len(addrs) {
				return addrs // shared by the ports
			}
			return out
		}
		p.ExternalIPs = won(model.ExternalIP, p.ExternalIPs)
		p.LoadBalancerIPs = won(model.LoadBalancer, p.LoadBalancerIPs)
	}
	s.Ports = ports
	return s
}

// winner is the name of the Service that has the address; empty when no Service claims it.
func (c *Claims) winner(at claim) string {
	list := c.claimants[at]
	if len(list) == 0 {
		return ""
	}
	return slices.MinFunc(list, func(a, b string) int {
		x, y := c.services[a], c.services[b]
		return cmp.Or(cmp.Compare(rank(x, at), rank(y, at)), cmp.Compare(x.Created, y.Created), cmp.Compare(a, b))
	})
}

// rank is 0 when the address is one of the Service's load balancer, and 1 otherwise.
func rank(s model.Service, at claim) int {
	for _, p := range s.Ports {
		if p.Port == at.at.Port() && p.Protocol == at.protocol && slices.Contains(p.LoadBalancerIPs, at.at.Addr()) {
			return 0
		}
	}
	return 1
}

// claimsOf lists the external addresses of a Service, each once.
func claimsOf(s model.Service) []claim {
	seen := map[claim]bool{}
	var list []claim
	for _, p := range s.Ports {
		for _, addrs := range [][]netip.Addr{p.ExternalIPs, p.LoadBalancerIPs} {
			for _, a := range addrs {
				at := claim{netip.AddrPortFrom(a, p.Port), p.Protocol}
				if !seen[at] {
					seen[at] = true
					list = append(list, at)
				}
			}
		}
	}
	return list
}

func unique(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}
