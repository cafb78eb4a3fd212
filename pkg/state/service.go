package state

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/service"
)

// SetService adds or replaces a Service of the API. What the store holds of it is joined from it and its EndpointSlices
// (service.Resolver).
type SetService struct{ Service *service.Service }

// DeleteService removes a Service.
type DeleteService struct{ Name string }

// SetSlice adds or replaces an EndpointSlice of the API.
type SetSlice struct{ Slice *service.Slice }

// DeleteSlice removes an EndpointSlice.
type DeleteSlice struct{ Name string }

// SetZone sets the zone of this node, which may be empty.
type SetZone struct{ Zone string }

// SetExternalIPs says whether the external IPs of Services are refused.
type SetExternalIPs struct{ Refused bool }

// What these changes come to for the node is found out by Take, for all of them at once; until then nothing is
// different.

func (c SetService) apply(s *Store) bool {
	s.services.SetService(c.Service)
	return false
}

func (c DeleteService) apply(s *Store) bool {
	return !s.services.DeleteService(c.Name) && s.deleteService(c.Name) // the latter is of one that was joined elsewhere
}

func (c SetSlice) apply(s *Store) bool {
	s.services.SetSlice(c.Slice)
	return false
}

func (c DeleteSlice) apply(s *Store) bool {
	s.services.DeleteSlice(c.Name)
	return false
}

func (c SetZone) apply(s *Store) bool {
	s.services.SetZone(c.Zone)
	return false
}

func (c SetExternalIPs) apply(s *Store) bool {
	s.services.RefuseExternalIPs(c.Refused)
	return false
}

// resolveServices takes over what the resolver says is different.
func (s *Store) resolveServices() {
	changed := false
	for name, resolved := range s.services.Flush() {
		if resolved.Service != nil {
			changed = SetJoinedService{*resolved.Service}.apply(s) || changed
		} else {
			changed = s.deleteService(name) || changed
		}
		changed = s.setServiceProblem(name, resolved.Problem) || changed
	}
	if changed {
		s.next.Revision++
	}
}

func (s *Store) setServiceProblem(name, problem string) bool {
	if s.next.ServiceProblems[name] == problem {
		return false
	}
	if !s.ownProblems {
		s.next.ServiceProblems, s.ownProblems = maps.Clone(s.next.ServiceProblems), true
	}
	if problem == "" {
		delete(s.next.ServiceProblems, name)
	} else {
		s.next.ServiceProblems[name] = problem
	}
	s.changed[model.ServiceOwner(name)] = true
	return true
}

// SetJoinedService sets a Service that is joined with its endpoints already, as a copy has it (see Restore).
// DeleteService removes it. Its affinity's epoch is the store's to say.
type SetJoinedService struct{ Service model.Service }

func (c SetJoinedService) apply(s *Store) bool {
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
func (s *Store) setService(now model.Service) bool {
	now.AffinityEpoch = affinityEpoch(now, s.now)
	if _, claimed := s.claims.Get(now.Name); claimed {
		now = s.claims.Resolve(now)
	}
	old, ok := s.next.Services[now.Name]
	same := now
	if whole, over := s.budget.over[now.Name]; over {
		old, same.AffinityEpoch = whole, whole.AffinityEpoch // which stands still
	}
	if ok && reflect.DeepEqual(old, same) {
		return false
	}
	s.balancedChanged(s.next.Services[now.Name], now)
	s.budget.count(now.Name, now.MostFlows())
	s.putService(now)
	return true
}

// putService writes a Service into the next snapshot.
func (s *Store) putService(now model.Service) {
	s.servicesToWrite()[now.Name] = now
	s.differs.services, s.changed[model.ServiceOwner(now.Name)] = true, true
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
		if claimant, ok := s.claims.Get(name); ok && s.setService(claimant) {
			changed = true
		}
	}
	return changed
}

// deleteService removes a Service that is gone, or that has no address which a node could serve.
func (s *Store) deleteService(name string) bool {
	old, ok := s.next.Services[name]
	if !ok {
		return false
	}
	s.balancedChanged(old, model.Service{})
	delete(s.servicesToWrite(), name)
	s.budget.count(name, 0)
	s.differs.services, s.changed[model.ServiceOwner(name)] = true, true
	s.resolveClaims(s.claims.Delete(name))
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
	s.differs.services, s.localsDirty = true, true
	s.changed[model.ServiceOwner(c.Service)] = true
	return true
}

// SetServiceCIDRs says which ranges ClusterIPs come from: those that are configured, or those that the API server
// tells. Both count.
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
	s.next.ServiceCIDRs = all
	s.differs.services, s.pathsDirty, s.localsDirty = true, true, true
	return true
}

// servicesToWrite is the map of Services to write to.
func (s *Store) servicesToWrite() map[string]model.Service {
	if !s.ownServices {
		s.next.Services, s.ownServices = maps.Clone(s.next.Services), true
	}
	return s.next.Services
}
