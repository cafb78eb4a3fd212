package programmer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// compile takes everything that is queued into one new snapshot and the flows that follow from it.
func (l *Loop) compile() flows.Delta {
	l.mu.Lock()
	changes := l.pending.Take()
	l.taken = l.submitted
	if l.waitingSince.IsZero() {
		l.waitingSince = l.oldest
	}
	l.oldest = time.Time{}
	l.verify, l.readBack = l.verify || l.readBack, false
	l.mu.Unlock()
	for _, c := range changes {
		l.store.Apply(c)
	}
	before := l.store.Snapshot()
	snapshot, changed := l.store.Take()
	owners := l.compiler.Dirty(snapshot, changed)
	l.sweepAfter(before, snapshot, changed)
	l.checkPolicies(before, snapshot, owners)
	l.changed(owners)
	if l.lost.Swap(false) {
		l.retryAll()
	}
	delta, failed := l.compiler.Update(snapshot, append(owners, l.retries()...))
	l.reindex(delta)
	for _, bad := range failed {
		l.leaveOut(bad.Owner, &quarantine{}, bad.Err)
	}

	l.mu.Lock()
	l.latest = snapshot
	l.status.Desired = snapshot.Revision
	l.waiting = slices.DeleteFunc(l.waiting, func(r request) bool {
		seen := r.view && r.revision <= l.taken
		if seen {
			r.done <- nil
		}
		return seen
	})
	l.mu.Unlock()
	l.reportProblems(before, snapshot, changed)
	if l.opt.Viewed != nil {
		l.opt.Viewed(snapshot)
	}
	return delta
}

// program brings the switch to what is desired: by the change alone when the switch is known to be right otherwise, by
// what differs from its dump when not. An error means that the switch could not be reached.
func (l *Loop) program(ctx context.Context, change flows.Delta) error {
	timeout := applyTimeout + time.Duration(len(l.compiler.Desired().Flows))*applyTimePerFlow
	l.expect(timeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	delta := change
	if l.verify {
		actual, err := l.sw.Dump(ctx)
		if err != nil {
			return err
		}
		if !l.known { // what changed while there was no agent, or no switch
			l.sweepRequest().Start = true
		}
		l.findForeign(actual)
		delta = flows.Diff(actual, l.compiler.Desired())
		if l.watched.Swap(false) {
			l.sent.watchBegan()
		}
		l.countRepairs(delta, change)
		l.disturbed = false // until apply quarantines an owner
	}
	l.withdrawn = flows.Delta{}
	if err := l.apply(ctx, l.parts(delta)); err != nil {
		return err
	}
	if !l.withdrawn.Empty() { // nothing counts as programmed before a pod that has to be closed is closed
		if err := l.send(ctx, l.withdrawn); err != nil {
			return err
		}
	}
	if l.verify {
		l.verify, l.verifiedAt = false, time.Now()
		if !l.verifiedAt.Before(l.unsureUntil) {
			l.unsureUntil = time.Time{}
		}
	}
	return nil
}

// findForeign names the flows that are not Weft's. Weft leaves them alone (only what is recognizable as its own is ever
// deleted), but they can outrank its own.
func (l *Loop) findForeign(actual openflow.Contents) {
	const few = 5
	foreign := flows.Foreign(actual, l.compiler.Desired())
	var names []string
	for _, f := range foreign[:min(few, len(foreign))] {
		names = append(names, fmt.Sprintf("table %s, priority=%d, match %q, actions=%s", flows.TableName(f.Table), f.Priority,
			f.Match, f.Actions))
	}
	l.mu.Lock()
	news := !slices.Equal(names, l.status.Foreign)
	l.status.ForeignFlows, l.status.Foreign = len(foreign), names
	l.mu.Unlock()
	if news && len(foreign) > 0 {
		l.log.Warn("the bridge has flows that are not Weft's and may outrank its own", "count", len(foreign), "flows", names)
	}
}

// part is a change that goes in as a whole or not at all. Its owner is to blame when the switch refuses it.
type part struct {
	owner model.Owner
	flows.Delta
}

// apply sends the parts in one bundle. When the switch refuses it, the parts are halved until those at fault stand
// alone; these are quarantined, all others are in effect.
func (l *Loop) apply(ctx context.Context, parts []part) error {
	whole := flows.Delta{}
	for _, p := range parts {
		whole.Set = append(whole.Set, p.Set...)
		whole.Delete = append(whole.Delete, p.Delete...)
		whole.SetGroups = append(whole.SetGroups, p.SetGroups...)
		whole.DeleteGroups = append(whole.DeleteGroups, p.DeleteGroups...)
		whole.Forget = append(whole.Forget, p.Forget...)
	}
	if whole.Empty() {
		return l.sw.Apply(ctx, whole.OpenFlow()) // what the last one left undone
	}
	err := l.send(ctx, whole)
	var rejected *ofswitch.RejectedError
	if !errors.As(err, &rejected) {
		return err
	}
	if len(parts) == 1 {
		if len(whole.Set) == 0 && len(whole.SetGroups) == 0 {
			return err // a deletion cannot be at fault for what it holds
		}
		l.quarantine(parts[0], rejected)
		return nil
	}
	half := len(parts) / 2
	if err := l.apply(ctx, parts[:half]); err != nil {
		return err
	}
	return l.apply(ctx, parts[half:])
}

// send sends a change in one bundle.
func (l *Loop) send(ctx context.Context, d flows.Delta) error {
	l.expectEvents(d)
	l.tried = l.latest
	begun := time.Now()
	err := l.sw.Apply(ctx, d.OpenFlow())
	if l.opt.Bundle != nil {
		l.opt.Bundle(time.Since(begun), err)
	}
	if rejected := (*ofswitch.RejectedError)(nil); errors.As(err, &rejected) {
		l.sent.remove(d)
	}
	l.pacer.take()
	l.mu.Lock()
	l.status.Bundles++
	l.mu.Unlock()
	return err
}

// parts splits a delta into parts that can be refused one by one: an owner's flows and groups, and with a pod's flows
// those that isolate it. Deletions whose owner is forgotten are a part of their own.
func (l *Loop) parts(d flows.Delta) []part {
	parts := map[model.Owner]*part{}
	of := func(o model.Owner) *part {
		if parts[o] == nil {
			parts[o] = &part{owner: o}
		}
		return parts[o]
	}
	for _, f := range d.Delete {
		p := of(l.compiler.Part(f))
		p.Delete = append(p.Delete, f)
	}
	for _, f := range d.Set {
		p := of(l.compiler.Part(f))
		p.Set = append(p.Set, f)
	}
	for _, f := range d.Forget {
		p := of(f.Owner)
		p.Forget = append(p.Forget, f)
	}
	for _, g := range d.DeleteGroups {
		p := of(g.Owner)
		p.DeleteGroups = append(p.DeleteGroups, g)
	}
	for _, g := range d.SetGroups {
		p := of(g.Owner)
		p.SetGroups = append(p.SetGroups, g)
	}
	list := make([]part, 0, len(parts))
	// Halves are not one atomic change any more, so a pod is never open before what isolates it: policies come before pods
	// that come, and after pods that go.
	rank := func(o model.Owner) int {
		switch {
		case o.Kind == model.KindPod && len(parts[o].Set) == 0:
			return 0
		case o.Kind.IsPolicy():
			return 1
		}
		return 2
	}
	for _, o := range slices.SortedFunc(maps.Keys(parts), func(a, b model.Owner) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Compare(b))
	}) {
		list = append(list, *parts[o])
	}
	return list
}

// settle is called when the switch holds everything that is not quarantined.
func (l *Loop) settle() {
	l.accepted()
	reasons := l.reasons()
	conflicts, incomplete := l.compiler.Conflicts(), l.findIncomplete()
	l.mu.Lock()
	grew := l.status.Programmed != l.latest.Revision
	l.status.Programmed = l.latest.Revision
	l.status.Flows, l.status.Groups = len(l.compiler.Desired().Flows), len(l.compiler.Desired().Groups)
	l.status.Error = ""
	l.status.Conflicts = conflicts
	l.status.Incomplete = map[model.Owner]string{}
	for o, err := range incomplete {
		l.status.Incomplete[o] = err.Error()
	}
	l.settled, l.refused = l.latest, reasons
	l.mu.Unlock()
	if since := l.waitingSince; grew && !since.IsZero() && l.opt.Latency != nil {
		l.opt.Latency(time.Since(since))
	}
	l.waitingSince = time.Time{}
	l.reportIncomplete(incomplete) // after the status, which who is told will read
	if l.sweep != nil && l.opt.Sweep != nil {
		l.opt.Sweep(*l.sweep)
	}
	l.sweep = nil
	l.answer(reasons)
}

// answer tells those who wait that everything up to their change is in the switch. Who waits for a pod that is not
// known waits on, until it is or is given up.
func (l *Loop) answer(refused map[model.Owner]error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reached = l.taken
	l.waiting = slices.DeleteFunc(l.waiting, func(r request) bool {
		unknown := func(o model.Owner) bool { return l.latest.Unknown[o.Attachment] }
		if r.revision > l.taken || slices.ContainsFunc(r.owners, unknown) {
			return false
		}
		var err error
		for _, o := range r.owners {
			_, attached := l.latest.Attachments[o.Attachment]
			switch {
			case err != nil:
			case o.Kind == model.KindPod && !attached:
				err = errors.New("it was detached meanwhile")
			default:
				err = refused[o]
			}
		}
		r.done <- err
		return true
	})
}

// checkPolicies finds the policies that are invalid or over budget.
func (l *Loop) checkPolicies(before, now *model.Snapshot, owners []model.Owner) {
	for _, o := range owners {
		if !o.Kind.IsPolicy() {
			continue
		}
		was, _ := before.PolicyOf(o)
		is, _ := now.PolicyOf(o)
		switch is.Err {
		case was.Err:
		case "":
			l.report(o, nil)
		default:
			l.log.Error("a policy fails closed", "owner", o, "err", is.Err)
			l.report(o, invalidPolicy(is))
		}
	}
}

// invalidPolicy is what is wrong with a policy that is invalid or over budget.
func invalidPolicy(p model.Policy) error {
	err := fmt.Errorf("the policy isolates its pods and allows nothing: %s", p.Err)
	if p.Tier.Ordered() {
		err = fmt.Errorf("rules of the policy that would accept accept nothing, and the others deny everything: %s", p.Err)
	}
	if p.Staged {
		err = fmt.Errorf("staged; if it were enforced: %w", err)
	}
	if p.OverBudget {
		return &LocalError{err}
	}
	return err
}

// reportProblems reports what of Services and their EndpointSlices, and of policies' annotations, cannot be used, where
// that has changed.
func (l *Loop) reportProblems(before, now *model.Snapshot, changed []model.Owner) {
	problemOf := func(s *model.Snapshot, o model.Owner) string {
		if o.Kind == model.KindService {
			return s.ServiceProblems[o.Name]
		}
		p, _ := s.PolicyOf(o)
		return p.Warning
	}
	for _, o := range changed {
		if o.Kind != model.KindService && !o.Kind.IsPolicy() || l.opt.Problem == nil {
			continue
		}
		switch problem := problemOf(now, o); problem {
		case problemOf(before, o):
		case "":
			l.opt.Problem(o, nil)
		default:
			l.opt.Problem(o, errors.New(problem))
		}
	}
}

// LocalError is about an object on this node: others may be able to do what it asks for.
type LocalError struct{ Err error }

func (e *LocalError) Error() string { return e.Err.Error() }

func (e *LocalError) Unwrap() error { return e.Err }

// ClosedError says that pods are closed because the flows that isolate them for a policy are not in the switch.
type ClosedError struct{ Pods []string }

func (e *ClosedError) Error() string {
	const few = 5
	names := strings.Join(e.Pods[:min(few, len(e.Pods))], ", ")
	if more := len(e.Pods) - few; more > 0 {
		names = fmt.Sprintf("%s and %d more", names, more)
	}
	return fmt.Sprintf("%d pods of this node are closed, because its switch rejected the flows that isolate them: %s "+
		"(weftctl status on the node has the reason)", len(e.Pods), names)
}

// IncompleteError says that some of an owner's flows are left out, because others want the same room.
type IncompleteError struct{ Flows int }

func (e *IncompleteError) Error() string {
	return fmt.Sprintf("%d of its flows are full with clauses of other policies, so its rules allow less there; "+
		"merge policies and rules of this namespace that name the same peers and ports", e.Flows)
}

// findIncomplete finds the policies that lack clauses, or because of which pods are closed.
func (l *Loop) findIncomplete() map[model.Owner]error {
	now := map[model.Owner]error{}
	for o, n := range l.compiler.Losers() {
		if o.Kind.IsPolicy() {
			now[o] = &IncompleteError{Flows: n}
		}
	}
	for o, pods := range l.closedPods() {
		now[o] = &ClosedError{Pods: pods}
	}
	return now
}

// reportIncomplete reports these policies, each once until that is over.
func (l *Loop) reportIncomplete(now map[model.Owner]error) {
	for o := range l.incomplete {
		if now[o] == nil {
			delete(l.incomplete, o)
			var err error
			if q := l.quarantined[o]; q != nil {
				err = q.err
			}
			l.report(o, err)
		}
	}
	for o, err := range now {
		if l.incomplete[o] == nil {
			l.log.Warn("a policy is not programmed as a whole", "owner", o, "err", err)
			l.report(o, err)
		}
		l.incomplete[o] = err
	}
}

func (l *Loop) setError(err error) {
	l.mu.Lock()
	l.status.Error = err.Error()
	l.mu.Unlock()
}

func (l *Loop) report(o model.Owner, err error) {
	if l.opt.Report != nil {
		l.opt.Report(o, err)
	}
}

// countRepairs counts what others changed: what a read-back finds that our own change does not explain.
func (l *Loop) countRepairs(d, change flows.Delta) {
	if !l.known || l.disturbed {
		return // nothing was expected of the switch: the agent has just started, or could not reach it, or left it half done
	}
	own := map[any]bool{} // keys of flows, numbers of groups
	for what := range touches(change) {
		own[what] = true
	}
	repairs := 0
	for what := range touches(d) {
		if !own[what] {
			repairs++
		}
	}
	if repairs > 0 {
		l.log.Warn("the switch differs from the desired flows; repairing it", "differences", repairs)
		l.mu.Lock()
		l.status.Repairs += uint64(repairs)
		l.mu.Unlock()
	}
}

// touches goes through the keys and group numbers of a delta, but not what the switch has learned.
func touches(d flows.Delta) iter.Seq[any] {
	return func(yield func(any) bool) {
		for _, list := range [][]flows.Flow{d.Set, d.Delete} {
			for _, f := range list {
				if !yield(f.Key) {
					return
				}
			}
		}
		for _, list := range [][]flows.Group{d.SetGroups, d.DeleteGroups} {
			for _, g := range list {
				if !yield(g.ID) {
					return
				}
			}
		}
	}
}

// reindex follows a delta in the index of places.
func (l *Loop) reindex(d flows.Delta) {
	for _, f := range d.Delete {
		p := place{f.Table, f.Match}
		rest := slices.DeleteFunc(l.index[p], func(k openflow.Key) bool { return k == f.Key })
		if len(rest) == 0 {
			delete(l.index, p)
		} else {
			l.index[p] = rest
		}
	}
	for _, f := range d.Set {
		p := place{f.Table, f.Match}
		if !slices.Contains(l.index[p], f.Key) {
			l.index[p] = append(l.index[p], f.Key)
		}
	}
}
