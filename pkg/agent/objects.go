package agent

import (
	"errors"
	"maps"
	"slices"

	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/report"
)

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
	a.events.WarnIf(func() bool { return a.speaks(o) }, o, eventPartIgnored, "Weft leaves out what it cannot use: "+text)
}

// speaks says whether this agent is the one to write an Event about an object in which all agents that the object
// concerns see the same fault: of a policy those of the nodes whose pods it selects, of others all.
func (a *Agent) speaks(o model.Owner) bool {
	var nodes []string
	if o.Kind.IsPolicy() {
		nodes = a.kube.PolicyNodes(o.Policy())
	} else {
		nodes = append(slices.Collect(maps.Keys(a.loop.View().Nodes)), a.opt.Node)
	}
	return len(nodes) == 0 || kube.Speaker(o, nodes) == a.opt.Node
}

// reportOwner tells Kubernetes of an object whose flows are refused.
func (a *Agent) reportOwner(o model.Owner, err error) {
	var incomplete *programmer.IncompleteError
	switch {
	case err == nil:
	case errors.As(err, &incomplete):
		a.events.Warn(o, eventPolicyIncomplete, err.Error())
	case errors.As(err, new(*programmer.ClosedError)):
		a.events.Warn(o, eventPodsClosed, err.Error())
	case o.Kind.IsPolicy() && (errors.As(err, new(*ofswitch.RejectedError)) ||
		errors.As(err, new(*programmer.LocalError))): // other nodes may accept it
		a.events.Warn(o, eventPolicyAllowsNothing, err.Error())
	case o.Kind.IsPolicy():
		a.events.WarnIf(func() bool { return a.speaks(o) }, o, eventPolicyAllowsNothing, err.Error())
	default:
		a.events.Warn(o, eventFlowsRefused, err.Error())
	}
}

// reportLost tells Kubernetes of Services that name external addresses which other Services have, or that are over
// budget.
func (a *Agent) reportLost(view *model.Snapshot) {
	now := report.Losses(view)
	a.mu.Lock()
	before := a.lost
	a.lost = now
	a.mu.Unlock()
	for o, what := range now {
		if before[o] != what {
			reason := eventAddressTaken
			if view.Services[o.Name].OverBudget != "" {
				reason = eventOverBudget
			}
			a.log.Warn("a Service does not get all that it names", "object", o, "reason", reason, "why", what)
			a.events.Warn(o, reason, what)
		}
	}
}
