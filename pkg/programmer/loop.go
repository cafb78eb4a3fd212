// Package programmer makes the switch of a node hold the flows that follow from what is submitted to it.
//
// Loop.Run's goroutine is the one writer of the node's snapshot (pkg/state) and of the switch (pkg/ofswitch): it
// compiles what has changed (pkg/flows), sends one bundle, quarantines the owners whose flows the switch or the
// compiler rejects, and reads the switch back once a minute and when it reports what others did. Callers ask it one
// question: is revision R programmed?
package programmer

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/state"
)

// Switch is the bridge's OpenFlow side, as the loop needs it (pkg/ofswitch).
type Switch interface {
	Dump(ctx context.Context) (openflow.Contents, error)
	Apply(ctx context.Context, d openflow.Delta) error
	Watch(ctx context.Context, ready func(), changed func(ofswitch.Event)) error
}

const (
	// verifyEvery is how often the switch is read back although nothing hints at a difference.
	verifyEvery = time.Minute
	// verifyPause is the least time between two readings that hints ask for, so that a program that fights us over a
	// flow costs a bounded share of a core.
	verifyPause = 500 * time.Millisecond
	// learnedAgain is after which time the switch learns no more by what a bundle has changed. A cache entry from before
	// adds a flow again that it has learned once, when its statistics are collected: Open vSwitch,
	// ofproto_flow_mod_learn_refresh. Within a second no such entry is left.
	learnedAgain = 2 * time.Second
	// retryPause and maxRetryPause are how long the loop waits before it tries an unreachable switch again.
	retryPause    = 200 * time.Millisecond
	maxRetryPause = 2 * time.Second
	// applyTimeout and applyTimePerFlow bound one conversation with the switch. A bundle is all or nothing, so one that a
	// slow machine cannot finish in time would never end.
	applyTimeout     = 30 * time.Second
	applyTimePerFlow = time.Millisecond
	// stuckAfter is how late the loop's goroutine may be, after everything that it waits for has timed out, before it
	// counts as stuck.
	stuckAfter = 3 * time.Minute
)

// Options are what a Loop works with. The functions are called on the loop's goroutine; those that are nil are left
// out.
type Options struct {
	// Node is the name of this node.
	Node   string
	Switch Switch
	Log    *slog.Logger
	// Report is told of an owner whose flows the switch or the compiler refuses, and of nil when that is over. An
	// IncompleteError or ClosedError says that only some of them are missing.
	Report func(model.Owner, error)
	// Problem is told what of a Service or its EndpointSlices cannot be used, each time that this changes; nil when all of
	// it can.
	Problem func(model.Owner, error)
	// Viewed is told of every new snapshot.
	Viewed func(*model.Snapshot)
	// Costly says whether each bundle costs all traffic of the node something, so that they must not follow each other
	// without a pause.
	Costly func() bool
	// Bundle is told of each bundle: how long the switch took to answer, and its error.
	Bundle func(took time.Duration, err error)
	// Latency is told how long the oldest change of a round waited, from Submit until the switch held what follows from
	// it. Rounds that change no snapshot do not count.
	Latency func(time.Duration)
	// Hold keeps Run from touching the switch until it is closed: changes go into the snapshot only. It may be nil.
	Hold <-chan struct{}
	// Sweep asks for a sweep of the connections, once the switch holds what they are to be compared with (see
	// Programmed). It is called before Detach returns.
	Sweep func(SweepRequest)
}

// Loop takes changes, compiles them and makes them true on the switch. Its Run goroutine is the only one that writes
// desired state and the only one that writes the switch; every other method may be called from anywhere.
type Loop struct {
	opt Options
	sw  Switch
	log *slog.Logger

	mu sync.Mutex
	// pending are the changes that were not compiled yet, and waiting who waits for a revision. Each of these is a caller
	// that has not returned, so nothing here grows with the time that the switch is away.
	pending state.Pending
	waiting []request
	// submitted numbers what was submitted, and taken what of it was compiled. readBack says that the round that takes
	// more reads the switch.
	submitted, taken Revision
	// reached is the newest revision that the switch held.
	reached  Revision
	readBack bool
	oldest   time.Time // when the oldest of the pending changes was submitted; zero without any
	status   report.Programming
	latest   *model.Snapshot
	// settled is the snapshot that is in the switch, less the owners in refused: quarantined, as of this snapshot.
	settled *model.Snapshot
	refused map[model.Owner]error

	stopped chan struct{} // closed when Run has ended
	wake    chan struct{}
	hint    chan struct{}
	watch   chan ofswitch.Event
	ask     chan chan flows.Desired
	lost    atomic.Bool // the watch ended: it may be another switch by now
	watched atomic.Bool // a watch has begun, and the switch was not read since
	// due is when the Run goroutine comes round again at the latest, in nanoseconds since 1970; 0 while it does not run.
	due atomic.Int64

	// Of the Run goroutine only:
	sweep       *SweepRequest // what the next settle asks for
	store       *state.Store
	compiler    *flows.Compiler
	pacer       pacer
	index       map[place][]openflow.Key
	sent        *sentEvents
	quarantined map[model.Owner]*quarantine // the owners whose flows are not desired for now
	withdrawn   flows.Delta                 // what quarantined owners had in the switch, to be deleted by this round
	incomplete  map[model.Owner]error       // policies that lack clauses or close pods, as Report was told
	verify      bool                        // the switch must be read before it is written
	known       bool                        // the last conversation with the switch succeeded
	disturbed   bool                        // we have left something in the switch that a read-back will find
	complaint   string
	verifiedAt  time.Time
	// unsureUntil is when the switch must be read again, because sentEvents had no room or because the switch may have
	// learned again what it was to forget (learnedAgain); zero if it need not.
	unsureUntil time.Time
	// tried is the newest snapshot of which the switch was sent anything: it may hold what is of this one or of an
	// older one. It is not nil once Run has compiled.
	tried *model.Snapshot
	// waitingSince is when the oldest change was submitted that the switch does not hold yet; zero without any.
	waitingSince time.Time
}

// place is where an event of the switch says something happened; it does not say at which priority.
type place struct {
	table openflow.TableID
	match openflow.Match
}

// New makes the loop of a node.
func New(opt Options) *Loop {
	l := &Loop{
		opt: opt, sw: opt.Switch, log: opt.Log,
		stopped: make(chan struct{}), settled: &model.Snapshot{},
		wake: make(chan struct{}, 1), hint: make(chan struct{}, 1), watch: make(chan ofswitch.Event,
			1024), ask: make(chan chan flows.Desired),
		store: state.New(opt.Node), compiler: flows.NewCompiler(), pacer: newPacer(),
		index: map[place][]openflow.Key{}, sent: newSentEvents(),
		quarantined: map[model.Owner]*quarantine{}, incomplete: map[model.Owner]error{},
	}
	l.latest = l.store.Snapshot()
	return l
}

// expect notes that the Run goroutine comes round again within a time.
func (l *Loop) expect(within time.Duration) { l.due.Store(time.Now().Add(max(within, 0)).UnixNano()) }

// Stuck returns why the Run goroutine is of no more use, or nil: it has not come round for minutes although nothing
// that it waits for takes that long. It takes no lock.
func (l *Loop) Stuck() error {
	due := l.due.Load()
	if due == 0 {
		return nil
	}
	if late := time.Since(time.Unix(0, due)); late > stuckAfter {
		return fmt.Errorf("the loop that programs the switch has been stuck for %s; the agent must be restarted",
			late.Round(time.Second))
	}
	return nil
}

// suspect hints that the switch may differ from what is desired. It is read soon, but not too often.
func (l *Loop) suspect() { notify(l.hint) }

// Status says how far the loop has come.
func (l *Loop) Status() report.Programming {
	l.mu.Lock()
	status, settled, refused := l.status, l.settled, l.refused
	l.mu.Unlock()
	status.Quarantined = map[model.Owner]string{}
	for _, p := range settled.Policies {
		if p.Err != "" {
			status.Quarantined[p.Owner()] = invalidPolicy(p).Error()
		}
	}
	for o, err := range refused {
		status.Quarantined[o] = err.Error()
	}
	return status
}

// SwitchError is why the switch could not be programmed in the last round, or "".
func (l *Loop) SwitchError() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status.Error
}

// View is the newest snapshot.
func (l *Loop) View() *model.Snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.latest
}

// Installed is the snapshot that is in the switch, and the owners whose flows are not.
func (l *Loop) Installed() (*model.Snapshot, map[model.Owner]error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.settled, l.refused
}

// Desired returns a copy of the desired flows and groups.
func (l *Loop) Desired(ctx context.Context) (flows.Desired, error) {
	answer := make(chan flows.Desired, 1)
	select {
	case l.ask <- answer:
		return <-answer, nil
	case <-l.stopped:
		return flows.Desired{}, errStopped
	case <-ctx.Done():
		return flows.Desired{}, ctx.Err()
	}
}

// notify leaves a token in a channel of capacity one: many notifications become one wake-up.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run programs the switch until the context ends. It must not do so before the informers have synced and the pods'
// attachments were submitted (Options.Hold): the first thing it does is to remove whatever of ours these do not ask
// for.
func (l *Loop) Run(ctx context.Context) error {
	defer close(l.stopped)
	if l.opt.Hold != nil && !l.hold(ctx) {
		return nil
	}
	l.waitingSince = time.Time{} // the wait for the start is not the switch's
	watching := make(chan struct{})
	go func() { defer close(watching); l.watchSwitch(ctx) }()
	defer func() { <-watching }()

	l.verify = true
	retry := retryPause
	defer l.due.Store(0)
	for ctx.Err() == nil {
		l.expect(0)
		l.pace(ctx)
		change := l.compile()
		if l.tried == nil {
			l.tried = l.latest // of an earlier agent the switch may hold what was attached then
		}
		var pause time.Duration
		if err := l.program(ctx, change); err != nil {
			if ctx.Err() != nil {
				break
			}
			l.complain(err)
			l.verify, l.known = true, false
			l.retryAll()
			pause, retry = retry, min(2*retry, maxRetryPause)
			l.setError(err)
		} else {
			l.known, l.complaint, retry = true, "", retryPause
			l.settle()
			// Changes put neither off.
			pause = time.Until(l.nextRetry(l.nextReading()))
		}
		l.wait(ctx, pause)
	}
	return nil // callers that wait learn of it by l.stopped
}

// hold takes changes into the snapshot until the switch may be programmed. It is false when the context ends first.
func (l *Loop) hold(ctx context.Context) bool {
	for {
		l.expect(0)
		l.compile() // what the switch lacks of it, its first reading tells
		l.due.Store(0)
		select {
		case <-ctx.Done():
			return false
		case <-l.opt.Hold:
			return true
		case answer := <-l.ask:
			answer <- l.compiler.Desired().Clone()
		case <-l.wake:
		}
	}
}

// complain logs a failure when it is news.
func (l *Loop) complain(err error) {
	if l.complaint != err.Error() {
		l.complaint = err.Error()
		l.log.Error("the switch cannot be programmed; trying again until it can", "err", err)
	}
}

// wait sleeps until there is something to do.
func (l *Loop) wait(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		l.expect(pause)
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
			return
		case answer := <-l.ask:
			answer <- l.compiler.Desired().Clone()
			continue
		case <-timer.C:
			if !time.Now().Before(l.nextReading()) {
				l.verify = true
			}
			return
		case <-l.hint:
		case e := <-l.watch:
			if !l.drifted(e) {
				continue
			}
			switch { // the first of what may be hundreds; how many there are is counted when they are repaired
			case l.verify:
			case e.Group.ID != 0:
				l.log.Warn("another program changed a group", "group", e.Group.ID, "deleted", e.Deleted)
			default:
				l.log.Warn("another program changed a flow", "table", flows.TableName(e.Table), "match", e.Match, "deleted",
					e.Deleted)
			}
		}
		// A hint. Several come at once, and the switch may be in the middle of a restart: read it, but not too often.
		l.verify = true
		if since := time.Since(l.verifiedAt); since >= verifyPause {
			return
		} else if remaining := verifyPause - since; remaining < pause {
			timer.Reset(remaining)
			pause = remaining
		}
	}
}

// nextReading is when the switch must be read although nothing hints at a difference.
func (l *Loop) nextReading() time.Time {
	next := l.verifiedAt.Add(verifyEvery)
	if !l.unsureUntil.IsZero() && l.unsureUntil.Before(next) {
		next = l.unsureUntil
	}
	return next
}

// watchSwitch keeps a watch on the switch, and hands on the events that the loop's own changes do not cause. Whenever a
// watch begins, what happened before it is unknown.
func (l *Loop) watchSwitch(ctx context.Context) {
	pause, last := retryPause, ""
	for ctx.Err() == nil {
		begun := time.Now()
		err := l.sw.Watch(ctx, func() { l.watched.Store(true); l.suspect() }, func(e ofswitch.Event) {
			if l.sent.take(e) {
				return
			}
			select {
			case l.watch <- e:
			default:
				l.suspect() // more events than we keep: look at everything instead
			}
		})
		if ctx.Err() != nil {
			return
		}
		long := time.Since(begun) > maxRetryPause
		if why := fmt.Sprint(err); long || why != last {
			l.log.Warn("no watch on the switch; changes by other programs are found within a minute", "err", err)
			last = why
		}
		if long {
			pause = retryPause
			l.lost.Store(true)
		}
		l.suspect()
		sleep(ctx, pause)
		pause = min(2*pause, maxRetryPause)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// drifted says whether an event that no bundle of the loop explains is drift.
func (l *Loop) drifted(e ofswitch.Event) bool {
	if e.Group.ID != 0 {
		return l.groupDrifted(e)
	}
	if flows.Volatile(e.Table, e.Actions) {
		return false
	}
	keys := l.index[place{e.Table, e.Match}]
	if len(keys) == 0 {
		return !e.Deleted // a foreign flow
	}
	if !e.Deleted {
		// In the place of one of ours, or with its actions at another priority, which the event does not tell.
		return true
	}
	return slices.ContainsFunc(keys, func(key openflow.Key) bool {
		return l.compiler.Desired().Flows[key].Actions == e.Actions
	})
}

// groupDrifted says whether an event of a group is drift.
func (l *Loop) groupDrifted(e ofswitch.Event) bool {
	if e.Group.ID == ofswitch.AllGroups {
		return len(l.compiler.Desired().Groups) > 0
	}
	want, ok := l.compiler.Desired().Groups[e.Group.ID]
	// One that is not wanted was ours a moment ago, or is another program's.
	return ok && (e.Deleted || want.Group != e.Group)
}
