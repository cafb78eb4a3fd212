package agent

import (
	"time"

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
	// pause is how long the last attempt waited; 0 when it is the compiler that refuses the flows: they will not be
	// others before the owner changes.
	pause time.Duration
	next  time.Time // when the flows are tried again
	// trying says that the flows are desired again, and whether the switch takes them is not known yet.
	trying bool
}

// quarantine leaves out an owner whose flows the switch refuses, and tries it again later.
func (l *Loop) quarantine(o model.Owner, err error) {
	q := l.quarantined[o]
	isolates := q != nil && !q.trying // only these flows of its were desired
	if q == nil {
		q = &quarantine{pause: firstRetry}
	} else {
		q.pause = min(2*q.pause, maxRetry)
	}
	q.next, q.trying = time.Now().Add(q.pause), false
	l.leaveOut(o, q, err)
	if isolates {
		return // nothing of it is in the switch
	}
	// What the owner had before is still in the switch, and must not stay; nobody else's doing.
	l.disturbed = true
	l.Verify()
}

// leaveOut records why an owner's flows are left out. It reports the first reason only: the texts of later ones differ
// in numbers.
func (l *Loop) leaveOut(o model.Owner, q *quarantine, err error) {
	_, known := l.quarantined[o]
	q.err = err
	l.quarantined[o] = q
	l.reindex(l.compiler.Exclude(o))
	if known {
		l.log.Debug("flows rejected again", "owner", o, "err", err, "retry", q.pause)
		return
	}
	if o.Kind == model.KindPolicy || o.Kind == model.KindService {
		l.sweepRequest() // what it allowed, or balanced
	}
	l.log.Error("flows rejected; the object is quarantined", "owner", o, "err", err)
	l.report(o, err)
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
		case o.Kind == model.KindPolicy && l.sweep == nil && !l.latest.KeepEstablished:
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
