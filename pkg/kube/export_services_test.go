package kube

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// Tracker is what puts Services and slices together, without informers.
type Tracker struct{ services *services }

func NewTracker(node string, emit func(state.Change), problem func(model.Owner, error)) Tracker {
	return Tracker{newServices(node, emit, problem)}
}

func (t Tracker) SetService(o *corev1.Service) {
	trimmed, _ := trimService(o)
	t.services.setService(trimmed)
}

func (t Tracker) SetSlice(o *discoveryv1.EndpointSlice) {
	trimmed, _ := trimSlice(o)
	t.services.setSlice(trimmed)
}

func (t Tracker) DeleteService(name string) { t.services.deleteService(name) }
func (t Tracker) DeleteSlice(name string)   { t.services.deleteSlice(name) }
func (t Tracker) SetZone(zone string)       { t.services.setZone(zone) }

func (t Tracker) RefuseExternalIPs(refuse bool) { t.services.refuseExternalIPs(refuse) }

// Size is how many Services and slices it remembers.
func (t Tracker) Size() (services, slices int) { return len(t.services.byName), len(t.services.slices) }
