package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/state"
)

// Plan implements api.Source. It works on a store and a compiler of its own: neither the loop nor the switch is asked.
func (r reporter) Plan(_ context.Context, request api.PlanRequest) (report.Plan, error) {
	if !r.a.synced.Load() {
		return report.Plan{}, errors.New("the agent has not received all objects of the API server yet; see weftctl status")
	}
	if !r.a.planning.TryLock() { // each costs what a start costs
		return report.Plan{}, errors.New("the agent compiles another question's objects; ask again")
	}
	defer r.a.planning.Unlock()
	watcher := r.a.watcher()
	proposed, warnings, err := watcher.Proposed(request.Objects, request.Delete)
	if err != nil {
		return report.Plan{}, err
	}
	p, after := newPlan(r.a.loop.View(), flowSettings(r.a.config()), watcher.Replay, proposed)
	p.Warnings = append(p.Warnings, warnings...)
	if request.All {
		p.Flows = after(request.Object)
	}
	return p, nil
}

// newPlan compiles what a node knows, from a snapshot, its settings and the objects that replay emits, and then what it
// would know after more changes. FlowsOf are all flows then, or those of an object.
func newPlan(view *model.Snapshot, settings []state.Change, replay func(func(state.Change)), proposed []state.Change,
) (p report.Plan, flowsOf func(object string) []report.Flow) {
	store := state.New(view.Self.Name)
	for _, c := range slices.Concat(settings, state.Node(view, time.Now())) {
		store.Apply(c)
	}
	store.Take() // what is in use stays so, although the Node object may say something else
	replay(store.Apply)
	before, _ := store.Take()
	compiler := flows.NewCompiler()
	_, wrong := compiler.Update(before, nil)
	known := problems(before, wrong)
	was := report.Compiled(compiler.Desired(), before, "")
	for _, c := range proposed {
		store.Apply(c)
	}
	after, changed := store.Take()
	_, wrong = compiler.Update(after, changed)
	flowsOf = func(object string) []report.Flow { return report.Compiled(compiler.Desired(), after, object) }
	p = report.Plan{Changes: report.Changes(was, flowsOf("")), Problems: []string{}, Warnings: []string{}}
	for _, text := range problems(after, wrong) {
		if !slices.Contains(known, text) {
			p.Problems = append(p.Problems, text)
		}
	}
	return p, flowsOf
}

// problems are what of a snapshot's objects is not in its flows, in order.
func problems(view *model.Snapshot, failed []*flows.OwnerError) []string {
	var list []string
	for _, err := range failed {
		list = append(list, err.Error())
	}
	for _, p := range view.Policies {
		if p.Err != "" {
			list = append(list, fmt.Sprintf("%s: %s", p.Owner(), p.Err))
		}
	}
	for name, text := range view.ServiceProblems {
		list = append(list, fmt.Sprintf("%s: %s", model.ServiceOwner(name), text))
	}
	for o, text := range report.Losses(view) {
		list = append(list, fmt.Sprintf("%s: %s", o, text))
	}
	slices.Sort(list)
	return list
}
