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
	c.Service.AffinityEpoch = affinityEpoch(c.Service, s.now)
	if old, ok := s.next.Services[c.Service.Name]; ok && reflect.DeepEqual(old, c.Service) {
		return false
	}
	s.services()[c.Service.Name] = c.Service
	s.touched[model.ServiceOwner(c.Service.Name)] = true
	return true
}

// DeleteService says that a Service is gone, or has no address that a node could serve.
type DeleteService struct{ Name string }

func (c DeleteService) apply(s *Store) bool {
	if _, ok := s.next.Services[c.Name]; !ok {
		return false
	}
	delete(s.services(), c.Name)
	s.touched[model.ServiceOwner(c.Name)] = true
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
