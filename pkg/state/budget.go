package state

import (
	"fmt"
	"maps"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/share"
)

// maxServiceFlows is how many flows and buckets all Services may take on a node (model.Service.MostFlows).
const maxServiceFlows = 1_000_000

// serviceBudget counts what Services take. Those that do not fit lose their endpoints, so that their clients are
// rejected, until there is room.
type serviceBudget struct {
	room, total int
	flows       map[string]int
	// over are the Services without room, as they are with their endpoints.
	over map[string]model.Service
}

func newServiceBudget() serviceBudget {
	return serviceBudget{room: maxServiceFlows, flows: map[string]int{}, over: map[string]model.Service{}}
}

// count notes what a Service takes; 0 is one that is gone.
func (b *serviceBudget) count(name string, flows int) {
	b.total += flows - b.flows[name]
	if b.flows[name] = flows; flows == 0 {
		delete(b.flows, name)
	}
	delete(b.over, name) // what it is now is not known to be too much
}

func serviceIdentity(service string) (namespace, name string) {
	namespace, name, _ = strings.Cut(service, "/")
	return namespace, name
}

// budgetServices decides which Services fit, once for all changes since the last time.
func (s *Store) budgetServices() {
	b := &s.budget
	if b.total <= b.room && len(b.over) == 0 {
		return
	}
	over := map[string]bool{}
	if b.total > b.room {
		over = share.Overflow(b.flows, b.room, serviceIdentity)
	}
	changed := false
	set := func(service model.Service) {
		s.putService(service)
		changed = true
	}
	for name := range over {
		if _, already := b.over[name]; !already {
			b.over[name] = s.next.Services[name]
			set(withoutEndpoints(s.next.Services[name], b.flows[name], b.room))
		}
	}
	for name, service := range maps.Clone(b.over) {
		if !over[name] {
			delete(b.over, name)
			service.AffinityEpoch = affinityEpoch(service, s.now)
			set(service)
		}
	}
	if changed {
		s.next.Revision++
	}
}

func withoutEndpoints(service model.Service, flows, room int) model.Service {
	service.OverBudget = fmt.Sprintf(
		"its addresses and endpoints may take %d flows, for which its namespace's share of the %d that "+
			"this node has for Services has no room, so its clients are rejected; use fewer addresses, ports or endpoints",
		flows, room)
	ports := make([]model.ServicePort, len(service.Ports))
	for i, p := range service.Ports {
		p.Cluster, p.Local, p.Retained, p.Elsewhere = nil, nil, nil, false
		ports[i] = p
	}
	service.Ports, service.HealthyEndpoints, service.AffinityEpoch = ports, 0, 0
	return service
}
