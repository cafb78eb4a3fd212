package report

import (
	"maps"
	"slices"
	"strings"

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
