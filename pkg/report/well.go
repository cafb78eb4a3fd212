package report

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/model"
)

// AllProblems lists everything that is wrong with a node as a whole now, in a fixed order. What is wrong with single
// pods and peer nodes is said there.
func (s Status) AllProblems() []string {
	list := append([]string{}, s.Problems...)
	if s.Flows.Error != "" {
		list = append(list, "switch: "+s.Flows.Error)
	}
	for _, owner := range slices.Sorted(maps.Keys(s.Flows.Quarantined)) {
		what := " is left out: "
		if strings.HasPrefix(owner, model.KindPolicy.String()+"/") {
			what = " isolates its pods and allows nothing: "
		}
		list = append(list, owner+what+s.Flows.Quarantined[owner])
	}
	return append(list, s.Flows.Conflicts...)
}

// EveryProblem lists AllProblems, and what is wrong with the node's objects, pods and peer nodes, a line each.
func (s Status) EveryProblem() []string {
	var list []string
	if !s.Ready {
		list = append(list, "not ready: "+s.NotReady)
	}
	if s.FromCopy != nil {
		list = append(list, "works from the copy of "+s.FromCopy.Format(time.RFC3339)+": the API server does not answer")
	}
	list = append(list, s.AllProblems()...)
	for _, f := range s.API {
		if f.Error != "" {
			list = append(list, "API server: "+f.Resource+": "+f.Error)
		}
	}
	for _, p := range s.Pods {
		if p.Problem != "" {
			list = append(list, "pod "+p.Pod+": "+p.Problem)
		}
	}
	for _, n := range s.Nodes {
		if n.Unreachable != "" {
			list = append(list, "node "+n.Name+": "+n.Unreachable)
		}
		for _, r := range n.Rejected {
			list = append(list, "node "+n.Name+": "+r)
		}
	}
	return list
}

// Well says whether the node works as it should: it is ready, works from the API server, and nothing of it has a
// problem. Changes that are on their way into the switch, and settings that wait for a restart, do not count.
func (s Status) Well() bool {
	bad := !s.Ready || s.FromCopy != nil || len(s.AllProblems()) > 0 ||
		slices.ContainsFunc(s.API, func(f Feed) bool { return f.Error != "" }) ||
		slices.ContainsFunc(s.Pods, func(p Pod) bool { return p.Problem != "" }) ||
		slices.ContainsFunc(s.Nodes, func(n Node) bool { return n.Unreachable != "" || len(n.Rejected) > 0 })
	return !bad
}

// Programmed says whether everything that is desired is in the switch.
func (s Status) Programmed() bool { return s.Flows.Flows > 0 && s.Flows.Programmed >= s.Flows.Desired }
