package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
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
	if a.synced.Load() { // before, the other nodes are not known; see reportObjects
		a.warnPart(o, err.Error())
	}
}

// reportObjects writes the Events about what the informers told of while the API server's objects were not complete.
func (a *Agent) reportObjects() {
	for o, text := range a.objectProblems() {
		a.warnPart(o, text)
	}
}

// warnPart tells of a part of an object that no agent can use: one of them writes.
func (a *Agent) warnPart(o model.Owner, text string) {
	a.events.WarnIf(func() bool { return a.speaks(o) }, o, "PartIgnored", "Weft leaves out what it cannot use: "+text)
}

// speaks says whether this agent is the one to write an Event about an object in which all agents that the object
// concerns see the same fault: of a policy those of the nodes whose pods it selects, of others all.
func (a *Agent) speaks(o model.Owner) bool {
	var nodes []string
	if namespace, name, ok := strings.Cut(o.Name, "/"); ok && o.Kind == model.KindPolicy {
		nodes = a.kube.PolicyNodes(namespace, name)
	} else {
		nodes = append(slices.Collect(maps.Keys(a.loop.View().Nodes)), a.opt.Node)
	}
	return len(nodes) == 0 || kube.Speaker(o, nodes) == a.opt.Node
}

// reportOwner tells Kubernetes of an object whose flows are refused.
func (a *Agent) reportOwner(o model.Owner, err error) {
	var incomplete *IncompleteError
	switch {
	case err == nil:
	case errors.As(err, &incomplete):
		a.events.Warn(o, "PolicyIncomplete", err.Error())
	case errors.As(err, new(*ClosedError)):
		a.events.Warn(o, "PodsClosed", err.Error())
	case o.Kind == model.KindPolicy && (errors.As(err, new(*ofswitch.RejectedError)) || errors.As(err, new(*LocalError))): // other nodes may accept it
		a.events.Warn(o, "PolicyAllowsNothing", err.Error())
	case o.Kind == model.KindPolicy:
		a.events.WarnIf(func() bool { return a.speaks(o) }, o, "PolicyAllowsNothing", err.Error())
	default:
		a.events.Warn(o, "FlowsRefused", err.Error())
	}
}

// reportLost tells Kubernetes of Services that name external addresses which other Services have, or that are over
// budget.
func (a *Agent) reportLost(view *model.Snapshot) {
	now := map[model.Owner]string{}
	for name, s := range view.Services {
		if len(s.Lost) > 0 {
			now[model.ServiceOwner(name)] = describeLost(s.Lost)
		}
		if s.OverBudget != "" {
			now[model.ServiceOwner(name)] = joinProblems(s.OverBudget, now[model.ServiceOwner(name)])
		}
	}
	a.mu.Lock()
	before := a.lost
	a.lost = now
	a.mu.Unlock()
	for o, what := range now {
		if before[o] != what {
			reason := "AddressTaken"
			if view.Services[o.Name].OverBudget != "" {
				reason = "OverBudget"
			}
			a.log.Warn("a Service does not get all that it names", "object", o, "reason", reason, "why", what)
			a.events.Warn(o, reason, what)
		}
	}
}

// describeLost names the first few addresses that a Service does not get, and why.
func describeLost(lost []model.LostAddress) string {
	const few = 5
	list := make([]string, 0, few+1)
	for _, l := range lost[:min(few, len(lost))] {
		list = append(list, fmt.Sprintf("%s %s is Service %s's", l.At, l.Protocol, l.Winner))
	}
	if more := len(lost) - few; more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return "external addresses that other Services have: " + strings.Join(list, ", ") +
		" (load balancers' addresses go before externalIPs, older Services before younger ones); remove them from this Service"
}

// objectProblems are what the informers have told, and the addresses that Services do not get.
func (a *Agent) objectProblems() map[model.Owner]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := maps.Clone(a.objects)
	for o, what := range a.lost {
		all[o] = joinProblems(all[o], what)
	}
	return all
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
