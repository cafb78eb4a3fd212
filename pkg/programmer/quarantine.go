package programmer

import (
	"fmt"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
)

const (
	// firstRetry and maxRetry bound the pause before the flows of a quarantined owner are tried again; each pause is
	// twice the one before.
	firstRetry = time.Second
	maxRetry   = 5 * time.Minute
	// maxRetried is how many owners are tried again in one round: when the switch refuses all of them, it is given
	// twice as many bundles, and whatever else changes waits for these.
	maxRetried = 32
)

// quarantine is an owner whose flows are not in the switch, but those that isolate.
type quarantine struct {
	err error
	// isolators are the policies that isolate a pod, when the switch was sent flows of theirs with the pod's own.
	isolators []model.Owner
	// pause is how long the last attempt waited; 0 when it is the compiler that refuses the flows: they will not be
	// others before the owner changes.
	pause time.Duration
	next  time.Time // when the flows are tried again
	// trying says that the flows are desired again, and whether the switch takes them is not known yet.
	trying bool
}

// quarantine leaves out an owner whose flows the switch refuses, and tries it again later. A pod that policies isolate
// is left out when the switch has no room for what isolates it, too: no policy is not what was asked for.
func (l *Loop) quarantine(p part, err error) {
	o := p.owner
	q := l.quarantined[o]
	isolates := q != nil && !q.trying // only these flows of its were desired
	if q == nil {
		q = &quarantine{pause: firstRetry}
	} else {
		q.pause = min(2*q.pause, maxRetry)
	}
	q.next, q.trying, q.isolators = time.Now().Add(q.pause), false, nil
	if slices.ContainsFunc(p.Set, func(f flows.Flow) bool { return f.Owner != o }) {
		q.isolators = l.compiler.Isolators(o)
		err = fmt.Errorf("with the flows that isolate it for %v: %w", q.isolators, err)
	}
	l.leaveOut(o, q, err)
	if isolates {
		return // nothing of it is in the switch
	}
	// What the owner had before is still in the switch, and must not stay. What this leaves, a read-back finds, and it
	// is not another program's doing.
	l.withdrawn.Delete = append(l.withdrawn.Delete, p.Delete...)
	l.disturbed = true
	l.suspect()
}

// leaveOut records why an owner's flows are left out. It reports the first reason only: the texts of later ones differ
// in numbers.
func (l *Loop) leaveOut(o model.Owner, q *quarantine, err error) {
	_, known := l.quarantined[o]
	q.err = err
	l.quarantined[o] = q
	out := l.compiler.Exclude(o)
	l.reindex(out)
	l.withdrawn.Delete = append(l.withdrawn.Delete, out.Delete...)
	if known {
		l.log.Debug("flows rejected again", "owner", o, "err", err, "retry", q.pause)
		return
	}
	if o.Kind.IsPolicy() || o.Kind == model.KindService {
		l.sweepRequest() // what it allowed, or balanced
	}
	l.log.Error("flows rejected; the object is quarantined", "owner", o, "err", err)
	l.report(o, err)
}

// changed gives quarantined owners another chance: those that have changed, and pods whose isolation has.
func (l *Loop) changed(owners []model.Owner) {
	for _, o := range owners {
		if l.quarantined[o] != nil {
			delete(l.quarantined, o)
			l.report(o, nil)
		}
	}
	for _, q := range l.quarantined {
		if slices.ContainsFunc(q.isolators, func(o model.Owner) bool { return slices.Contains(owners, o) }) {
			q.next = time.Time{}
		}
	}
}

// closedPods lists, by policy, the pods that are closed because the switch rejected what isolates them.
func (l *Loop) closedPods() map[model.Owner][]string {
	closed := map[model.Owner][]string{}
	for pod, q := range l.quarantined {
		for _, policy := range q.isolators {
			closed[policy] = append(closed[policy], pod.Name)
		}
	}
	for _, pods := range closed {
		slices.Sort(pods)
	}
	return closed
}

// retryAll makes every owner that the switch has refused due: it may be another switch by now.
func (l *Loop) retryAll() {
	for _, q := range l.quarantined {
		if q.pause > 0 {
			q.next = time.Time{}
		}
	}
}

// retries takes the owners that are to be tried again now. They are quarantined until the switch has taken their flows.
func (l *Loop) retries() []model.Owner {
	trying := 0
	for _, q := range l.quarantined {
		if q.trying {
			trying++
		}
	}
	var due []model.Owner
	now := time.Now()
	for o, q := range l.quarantined {
		if trying+len(due) < maxRetried && q.pause > 0 && !q.trying && !q.next.After(now) {
			due = append(due, o)
			q.trying = true
		}
	}
	return due
}

// nextRetry is when the next owner is tried again, if one is before a given time.
func (l *Loop) nextRetry(before time.Time) time.Time {
	for _, q := range l.quarantined {
		if q.pause > 0 && !q.trying && q.next.Before(before) {
			before = q.next
		}
	}
	return before
}

// accepted ends the quarantine of the owners that were tried again: the switch has everything that is desired.
func (l *Loop) accepted() {
	for o, q := range l.quarantined {
		if !q.trying {
			continue
		}
		delete(l.quarantined, o)
		l.log.Info("the switch accepts the flows of a quarantined object", "owner", o)
		switch {
		case o.Kind == model.KindService:
			l.sweepRequest()
		case o.Kind.IsPolicy() && l.sweep == nil && !l.latest.KeepEstablished:
			l.sweep = &SweepRequest{Wider: true} // it allowed nothing
		}
		l.report(o, nil)
	}
}

// reasons are the errors of all quarantined owners.
func (l *Loop) reasons() map[model.Owner]error {
	reasons := make(map[model.Owner]error, len(l.quarantined))
	for o, q := range l.quarantined {
		reasons[o] = q.err
	}
	return reasons
}
