package agent

import (
	"maps"

	"github.com/weft-cni/weft/pkg/model"
)

// ObjectCounts say what the node's view holds.
type ObjectCounts struct {
	Services int `json:"services"`
	// ServicesWithProblems are those of which a part cannot be used, or whose flows are refused.
	ServicesWithProblems int `json:"servicesWithProblems"`
	// Policies are those that select pods of this node.
	Policies int `json:"policies"`
	// PoliciesWithErrors are those that are invalid, over budget or quarantined: they isolate and allow nothing.
	PoliciesWithErrors int `json:"policiesWithErrors"`
}

// objectProblem is told by the informers what of an object cannot be used, and of nil when all of it can.
func (a *Agent) objectProblem(o model.Owner, err error) {
	a.mu.Lock()
	was := a.objects[o]
	if err == nil {
		delete(a.objects, o)
	} else {
		a.objects[o] = err.Error()
	}
	a.mu.Unlock()
	if err == nil || was == err.Error() {
		return
	}
	a.log.Warn("part of an object cannot be used", "object", o, "err", err)
	a.events.Warn(o, "PartIgnored", "Weft leaves out what it cannot use: "+err.Error())
}

// objectProblems are what the informers have told.
func (a *Agent) objectProblems() map[model.Owner]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.objects)
}

// objectCounts counts what there is and what is wrong with it.
func objectCounts(view *model.Snapshot, status Status, problems map[model.Owner]string) ObjectCounts {
	c := ObjectCounts{Services: len(view.Services), Policies: len(view.Policies), PoliciesWithErrors: status.refusedOf(model.KindPolicy)}
	bad := map[model.Owner]bool{}
	for _, list := range []map[model.Owner]string{problems, status.Quarantined} {
		for o := range list {
			if o.Kind == model.KindService {
				bad[o] = true
			}
		}
	}
	c.ServicesWithProblems = len(bad)
	return c
}
