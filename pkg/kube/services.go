package kube

import (
	"fmt"
	"reflect"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/service"
	"github.com/weft-cni/weft/pkg/state"
)

// The objects that node proxies follow. A Service that names a proxy of its own is not ours, and headless ones have nothing to
// serve; the labels of a Service are on its slices, too.
const (
	serviceSelector = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
	// otherProxySelector selects the Services of other proxies. They keep their ClusterIPs.
	otherProxySelector = "service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
	sliceSelector      = serviceSelector + "," + discoveryv1.LabelServiceName
)

// serviceObject is what an informer holds of a Service: on a large cluster the object itself would be several times as big.
type serviceObject struct {
	service.Service
	version string
	problem error
}

// sliceObject is what an informer holds of an EndpointSlice.
type sliceObject struct {
	service.Slice
	version string
	problem error
}

// GetObjectMeta gives client-go the name and version that it looks for in every object.
func (o *serviceObject) GetObjectMeta() metav1.Object { return objectMeta(o.Service.Name, o.version) }

// GetObjectMeta gives client-go the name and version that it looks for in every object.
func (o *sliceObject) GetObjectMeta() metav1.Object { return objectMeta(o.Slice.Name, o.version) }

func objectMeta(name, version string) metav1.Object {
	namespace, rest := service.SplitName(name)
	return &metav1.ObjectMeta{Namespace: namespace, Name: rest, ResourceVersion: version}
}

func trimService(obj any) (any, error) {
	o, ok := obj.(*corev1.Service)
	if !ok {
		return obj, nil
	}
	s, err := Service(o)
	return &serviceObject{Service: s, version: o.ResourceVersion, problem: err}, nil
}

func trimSlice(obj any) (any, error) {
	o, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return obj, nil
	}
	s, err := EndpointSlice(o)
	if err != nil {
		err = fmt.Errorf("EndpointSlice %s: %w", s.Name, err)
	}
	return &sliceObject{Slice: s, version: o.ResourceVersion, problem: err}, nil
}

// setOtherProxy tells of a Service that another proxy serves.
func (w *Watcher) setOtherProxy(obj any) {
	if o, ok := obj.(*serviceObject); ok {
		w.emit(state.SetOtherProxy{Service: o.Service.Name, ClusterIPs: o.ClusterIPs})
	}
}

// services puts Services and their EndpointSlices together, in whatever order they come.
//
// It belongs to whoever holds its mutex: the goroutines of three informers (Services, EndpointSlices, nodes) tell it what changed.
// The objects that they hand over are shared with the informers' stores and never written to. What follows from a change is
// emitted before the mutex is given back, so that of two views of a Service the newer one is emitted last. What one object changes
// costs its Service only; only this node's zone is about all.
type services struct {
	emit    func(state.Change)
	problem func(model.Owner, error)

	mu     sync.Mutex
	at     service.Locality
	refuse bool // external IPs
	byName map[string]*tracked
	slices map[string]*sliceObject
}

// tracked is what is known of one Service. It exists as long as the Service or one of its slices does.
type tracked struct {
	service *serviceObject
	slices  []*sliceObject // sorted by name
	served  bool           // emitted, and not deleted since
	problem string         // as it was last reported
}

func newServices(node string, emit func(state.Change), problem func(model.Owner, error)) *services {
	return &services{
		emit: emit, problem: problem, at: service.Locality{Node: node},
		byName: map[string]*tracked{}, slices: map[string]*sliceObject{},
	}
}

func (s *services) setService(obj any) {
	o, ok := obj.(*serviceObject)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tracked(o.Service.Name)
	same := t.service != nil && reflect.DeepEqual(t.service.Service, o.Service) && sameText(t.service.problem, o.problem)
	if t.service = o; !same {
		s.changed(o.Service.Name, t)
	}
}

func (s *services) deleteService(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.byName[name]; t != nil && t.service != nil {
		t.service = nil
		s.changed(name, t)
	}
}

func (s *services) setSlice(obj any) {
	o, ok := obj.(*sliceObject)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.slices[o.Slice.Name]
	if old != nil && old.Service != o.Service { // a label can be changed
		s.removeSlice(old)
		old = nil
	}
	s.slices[o.Slice.Name] = o
	t := s.tracked(o.Service)
	i, found := t.find(o.Slice.Name)
	if found {
		t.slices[i] = o
	} else {
		t.slices = slices.Insert(t.slices, i, o)
	}
	if old == nil || !reflect.DeepEqual(old.Slice, o.Slice) || !sameText(old.problem, o.problem) {
		s.changed(o.Service, t)
	}
}

func (s *services) deleteSlice(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.slices[name]; o != nil {
		delete(s.slices, name)
		s.removeSlice(o)
	}
}

// removeSlice takes a slice from its Service.
func (s *services) removeSlice(o *sliceObject) {
	t := s.byName[o.Service]
	if i, found := t.find(o.Slice.Name); found {
		t.slices = slices.Delete(t.slices, i, i+1)
	}
	s.changed(o.Service, t)
}

// setZone says where the node is. Only endpoints with hints for zones care.
func (s *services) setZone(zone string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.Zone == zone {
		return
	}
	s.at.Zone = zone
	for name, t := range s.byName {
		if t.hasZones() {
			s.changed(name, t)
		}
	}
}

// refuseExternalIPs says whether Services' external IPs are refused. Idempotent.
func (s *services) refuseExternalIPs(refuse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse == refuse {
		return
	}
	s.refuse = refuse
	for name, t := range s.byName {
		if t.service != nil && len(t.service.ExternalIPs) > 0 {
			s.changed(name, t)
		}
	}
}

func (s *services) tracked(name string) *tracked {
	t := s.byName[name]
	if t == nil {
		t = &tracked{}
		s.byName[name] = t
	}
	return t
}

func (t *tracked) find(slice string) (int, bool) {
	return slices.BinarySearchFunc(t.slices, slice, func(o *sliceObject, name string) int {
		switch {
		case o.Slice.Name < name:
			return -1
		case o.Slice.Name > name:
			return 1
		}
		return 0
	})
}

func (t *tracked) hasZones() bool {
	for _, o := range t.slices {
		for i := range o.Endpoints {
			if len(o.Endpoints[i].ForZones) > 0 {
				return true
			}
		}
	}
	return false
}

// changed emits what a Service is now, and what is wrong with it.
func (s *services) changed(name string, t *tracked) {
	var bad problems
	if t.service != nil {
		from := make([]*service.Slice, 0, len(t.slices))
		for _, o := range t.slices {
			from = append(from, &o.Slice)
		}
		wanted := t.service.Service
		if s.refuse && len(wanted.ExternalIPs) > 0 {
			wanted.ExternalIPs = nil
			bad.add("spec.externalIPs: the cluster's configuration refuses them (externalIPs: false); remove them, or use a load balancer")
		}
		if built, ok := service.Build(&wanted, from, s.at); ok {
			t.served = true
			s.emit(state.SetService{Service: built})
		} else if t.served {
			t.served = false
			s.emit(state.DeleteService{Name: name})
		}
		if t.service.problem != nil {
			bad = append(bad, t.service.problem)
		}
		for _, o := range t.slices {
			if o.problem != nil && len(t.service.ClusterIPs) > 0 {
				bad = append(bad, o.problem)
			}
		}
	} else if t.served {
		t.served = false
		s.emit(state.DeleteService{Name: name})
	}
	if text := textOf(bad.err()); text != t.problem {
		t.problem = text
		s.problem(model.ServiceOwner(name), bad.err())
	}
	if t.service == nil && len(t.slices) == 0 {
		delete(s.byName, name)
	}
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func sameText(a, b error) bool { return textOf(a) == textOf(b) }
