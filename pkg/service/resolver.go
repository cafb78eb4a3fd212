package service

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// Resolver joins Services with their EndpointSlices, in whatever order they come, and follows changes. What one object
// changes costs its Service only; of all Services alike are this node's zone and whether external IPs are refused.
//
// A Resolver belongs to one goroutine, that of the state.Store that owns it. The objects that it is given are shared
// with those that made them and never written to.
type Resolver struct {
	at     Locality
	refuse bool // external IPs
	byName map[string]*joined
	slices map[string]*Slice
	dirty  map[string]bool // names of Services that Flush has to look at
}

// joined is what is known of one Service. It exists as long as the Service or one of its slices does.
type joined struct {
	service *Service
	slices  []*Slice // sorted by name
}

// Resolved is what a Service is for this node.
type Resolved struct {
	// Service is nil when there is nothing to serve.
	Service *model.Service
	// Problem says what of the Service and its slices cannot be used; empty when all can.
	Problem string
}

// NewResolver returns the resolver of the named node.
func NewResolver(node string) *Resolver {
	return &Resolver{
		at: Locality{Node: node}, byName: map[string]*joined{}, slices: map[string]*Slice{}, dirty: map[string]bool{},
	}
}

// SetService adds or replaces a Service. Idempotent.
func (r *Resolver) SetService(s *Service) {
	j := r.joined(s.Name)
	if j.service == nil || !reflect.DeepEqual(j.service, s) {
		r.dirty[s.Name] = true
	}
	j.service = s
}

// DeleteService removes a Service; its slices stay. It returns false for one that it does not have.
func (r *Resolver) DeleteService(name string) bool {
	j := r.byName[name]
	if j == nil || j.service == nil {
		return false
	}
	r.dirty[name] = true
	j.service = nil
	r.forget(name, j)
	return true
}

// SetSlice adds or replaces an EndpointSlice. Idempotent.
func (r *Resolver) SetSlice(s *Slice) {
	old := r.slices[s.Name]
	if old != nil && old.Service != s.Service { // a label can be changed
		r.DeleteSlice(s.Name)
		old = nil
	}
	r.slices[s.Name] = s
	j := r.joined(s.Service)
	if i, found := j.find(s.Name); found {
		j.slices[i] = s
	} else {
		j.slices = slices.Insert(j.slices, i, s)
	}
	if old == nil || !reflect.DeepEqual(old, s) {
		r.dirty[s.Service] = true
	}
}

// DeleteSlice removes an EndpointSlice. Idempotent.
func (r *Resolver) DeleteSlice(name string) {
	s := r.slices[name]
	if s == nil {
		return
	}
	delete(r.slices, name)
	j := r.byName[s.Service]
	if i, found := j.find(name); found {
		j.slices = slices.Delete(j.slices, i, i+1)
	}
	r.dirty[s.Service] = true
	r.forget(s.Service, j)
}

// SetZone sets the zone of this node. Only Services whose endpoints have hints for zones become dirty.
func (r *Resolver) SetZone(zone string) {
	if r.at.Zone == zone {
		return
	}
	r.at.Zone = zone
	for name, j := range r.byName {
		if j.service != nil && j.hasZones() {
			r.dirty[name] = true
		}
	}
}

// RefuseExternalIPs sets whether the external IPs of Services are refused. Idempotent.
func (r *Resolver) RefuseExternalIPs(refuse bool) {
	if r.refuse == refuse {
		return
	}
	r.refuse = refuse
	for name, j := range r.byName {
		if j.service != nil && len(j.service.ExternalIPs) > 0 {
			r.dirty[name] = true
		}
	}
}

// Flush resolves the Services that changes since the last Flush were about, by name.
func (r *Resolver) Flush() map[string]Resolved {
	if len(r.dirty) == 0 {
		return nil
	}
	resolved := make(map[string]Resolved, len(r.dirty))
	for name := range r.dirty {
		resolved[name] = r.resolve(r.byName[name])
	}
	clear(r.dirty)
	return resolved
}

// resolve joins a Service, nil for one that is gone, with its slices.
func (r *Resolver) resolve(j *joined) Resolved {
	if j == nil || j.service == nil {
		return Resolved{}
	}
	var result Resolved
	var problems []error
	wanted := *j.service
	if r.refuse && len(wanted.ExternalIPs) > 0 {
		wanted.ExternalIPs = nil
		problems = append(problems, errors.New("spec.externalIPs: "+
			"the cluster's configuration refuses them (externalIPs: false); remove them, or use a load balancer"))
	}
	if built, ok := Build(&wanted, j.slices, r.at); ok {
		result.Service = &built
	}
	if wanted.Problem != "" {
		problems = append(problems, errors.New(wanted.Problem))
	}
	for _, s := range j.slices {
		if s.Problem != "" && len(wanted.ClusterIPs) > 0 {
			problems = append(problems, fmt.Errorf("EndpointSlice %s: %s", s.Name, s.Problem))
		}
	}
	if err := JoinProblems(problems); err != nil {
		result.Problem = err.Error()
	}
	return result
}

// maxProblems is how many are spelled out: an Event holds 1024 bytes.
const maxProblems = 5

// JoinProblems makes one error of what is wrong with an object, nil when nothing is.
func JoinProblems(problems []error) error {
	if more := len(problems) - maxProblems; more > 0 {
		return errors.Join(append(problems[:maxProblems:maxProblems], fmt.Errorf("and %d more", more))...)
	}
	return errors.Join(problems...)
}

func (r *Resolver) joined(name string) *joined {
	j := r.byName[name]
	if j == nil {
		j = &joined{}
		r.byName[name] = j
	}
	return j
}

// forget removes a Service of which nothing is left.
func (r *Resolver) forget(name string, j *joined) {
	if j.service == nil && len(j.slices) == 0 {
		delete(r.byName, name)
	}
}

func (j *joined) find(slice string) (int, bool) {
	return slices.BinarySearchFunc(j.slices, slice, func(s *Slice, name string) int { return cmp.Compare(s.Name, name) })
}

func (j *joined) hasZones() bool {
	return slices.ContainsFunc(j.slices, func(s *Slice) bool {
		return slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return len(e.ForZones) > 0 })
	})
}
