package state

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// SetService says what a Service is for this node now, its usable endpoints among it. Its affinity's epoch is the
// store's to say.
type SetService struct{ Service model.Service }

func (c SetService) apply(s *Store) bool {
	c.Service.AffinityEpoch = 0
	before, claimed := s.claims.Get(c.Service.Name)
	if claimed && reflect.DeepEqual(before, c.Service) {
		return false
	}
	others := s.claims.Set(c.Service)
	changed := s.setService(c.Service)
	return s.resolveClaims(others) || changed
}

// setService makes a Service what it is without the addresses that others have, and says whether that is news.
func (s *Store) setService(service model.Service) bool {
	service.AffinityEpoch = affinityEpoch(service, s.now)
	if _, claimed := s.claims.Get(service.Name); claimed {
		service = s.claims.Resolve(service)
	}
	old, ok := s.next.Services[service.Name]
	same := service
	if whole, over := s.budget.over[service.Name]; over {
		old, same.AffinityEpoch = whole, whole.AffinityEpoch // which stands still
	}
	if ok && reflect.DeepEqual(old, same) {
		return false
	}
	s.balancedChanged(s.next.Services[service.Name], service)
	s.budget.count(service.Name, service.MostFlows())
	s.services()[service.Name] = service
	s.touched[model.ServiceOwner(service.Name)] = true
	return true
}

// balancedChanged is told of what a Service was and is. Its addresses at load balancers may go before pod CIDRs (see
// nodepath.Resolve).
func (s *Store) balancedChanged(before, now model.Service) {
	if len(s.next.ClusterCIDRs) > 0 {
		return
	}
	was, is := before.LoadBalancerIPs(), now.LoadBalancerIPs()
	if !slices.Equal(was, is) || len(is) > 0 && before.Created != now.Created {
		s.pathsDirty = true
	}
}

// resolveClaims sets the named Services again, for another one's claims have changed.
func (s *Store) resolveClaims(names []string) bool {
	changed := false
	for _, name := range names {
		if service, ok := s.claims.Get(name); ok && s.setService(service) {
			changed = true
		}
	}
	return changed
}

// DeleteService says that a Service is gone, or has no address that a node could serve.
type DeleteService struct{ Name string }

func (c DeleteService) apply(s *Store) bool {
	old, ok := s.next.Services[c.Name]
	if !ok {
		return false
	}
	s.balancedChanged(old, model.Service{})
	delete(s.services(), c.Name)
	s.budget.count(c.Name, 0)
	s.touched[model.ServiceOwner(c.Name)] = true
	s.resolveClaims(s.claims.Delete(c.Name))
	return true
}

// SetOtherProxy sets the ClusterIPs of a Service that another proxy serves; without any there is no such Service.
type SetOtherProxy struct {
	Service    string
	ClusterIPs []netip.Addr
}

func (c SetOtherProxy) apply(s *Store) bool {
	if slices.Equal(s.next.OtherProxies[c.Service], c.ClusterIPs) {
		return false
	}
	s.next.OtherProxies = maps.Clone(s.next.OtherProxies) // few
	if len(c.ClusterIPs) == 0 {
		delete(s.next.OtherProxies, c.Service)
	} else {
		s.next.OtherProxies[c.Service] = c.ClusterIPs
	}
	s.touched[model.ServiceOwner(c.Service)] = true
	return true
}

// SetServiceCIDRs says which ranges ClusterIPs come from: those that are configured, or those that the API server tells.
// Both count.
type SetServiceCIDRs struct {
	Configured bool
	CIDRs      []netip.Prefix
}

func (c SetServiceCIDRs) apply(s *Store) bool {
	s.serviceCIDRs[c.Configured] = c.CIDRs
	all := slices.Concat(s.serviceCIDRs[true], s.serviceCIDRs[false])
	slices.SortFunc(all, netip.Prefix.Compare)
	all = slices.Compact(all)
	if slices.Equal(s.next.ServiceCIDRs, all) {
		return false
	}
	s.next.ServiceCIDRs, s.pathsDirty = all, true
	s.touched[model.SelfOwner] = true
	return true
}

func (s *Store) touchServices() {
	for name := range s.next.Services {
		s.touched[model.ServiceOwner(name)] = true
	}
}

// services is the map of Services to write to.
func (s *Store) services() map[string]model.Service {
	if !s.ownServices {
		s.next.Services, s.ownServices = maps.Clone(s.next.Services), true
	}
	return s.next.Services
}
