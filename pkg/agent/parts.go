package agent

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// part is a row of the agent's table (see table.go): something that runs beside the others, on a goroutine of its own.
// It has one of once, sync and run.
type part struct {
	// name is that of the part's problem, does what the documentation says of it.
	name, does string
	// after are the parts that are ready before this one starts. They end after it, and are closed after it.
	after []string
	// wokenBy are the changes after which sync is called. A part that runs gets a token by its channel.
	wokenBy []change
	// sources are opened when the part starts. Their changes wake any part.
	sources sources
	// userspace says that the part is of the userspace datapath only.
	userspace bool

	// once is called until it succeeds, with growing pauses; then the part is ready.
	once func(context.Context) error
	// sync is called at once, after each change, once a minute, and soon again after it failed, with growing pauses. The
	// part is ready when it has succeeded, or with mayFail when it was tried.
	sync    func(context.Context) error
	mayFail bool
	// run returns when its context ends; an error ends the agent. It says when the part is ready.
	run func(ctx context.Context, woken <-chan struct{}, ready func()) error
	// close is called when the part has started, and it and all parts after it have ended.
	close func()
}

const (
	// syncEvery is how often a part in order is looked at although no change woke it.
	syncEvery = time.Minute
	// firstPause and maxFirstPause bound the pauses of a part that is not ready yet; the others wait for it.
	firstPause, maxFirstPause = 50 * time.Millisecond, 5 * time.Second
	// syncPause and maxSyncPause bound those of a part that was ready once.
	syncPause, maxSyncPause = 200 * time.Millisecond, 10 * time.Second
)

// table is the parts of an agent.
type table struct {
	parts   []part
	problem func(part string, err error) // is told of each try
	woken   []chan struct{}              // by part, of capacity one
}

func newTable(parts []part, problem func(string, error)) *table {
	t := &table{parts: parts, problem: problem, woken: make([]chan struct{}, len(parts))}
	for i := range t.woken {
		t.woken[i] = make(chan struct{}, 1)
	}
	return t
}

// wake wakes the parts that these changes concern. It never blocks. A part that has not started is woken when it has.
func (t *table) wake(changes ...change) {
	for i, p := range t.parts {
		if slices.ContainsFunc(p.wokenBy, func(c change) bool { return slices.Contains(changes, c) }) {
			notify(t.woken[i])
		}
	}
}

// progress is how far a part has come.
type progress struct{ ready, ended chan struct{} }

// run starts each part when those before it are ready, and returns when all have ended: when the context ends, or when
// a part that runs fails. They end in the reverse order, each when those after it have ended and were closed.
func (t *table) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	at := map[string]progress{}
	for _, p := range t.parts {
		at[p.name] = progress{make(chan struct{}), make(chan struct{})}
	}
	for i, p := range t.parts {
		group.Go(func() error {
			defer close(at[p.name].ended)
			for _, name := range p.after {
				select {
				case <-at[name].ready:
				case <-ctx.Done():
					return nil
				}
			}
			if ctx.Err() != nil { // which select may not have chosen
				return nil
			}
			own, stop := context.WithCancel(context.WithoutCancel(ctx))
			defer stop()
			context.AfterFunc(ctx, func() {
				for _, other := range t.parts {
					if slices.Contains(other.after, p.name) {
						<-at[other.name].ended
					}
				}
				stop()
			})
			err := t.start(own, p, t.woken[i], at[p.name].ready)
			if err == nil {
				<-own.Done() // what it has made is there for those after it
			}
			if p.close != nil {
				p.close()
			}
			return err
		})
	}
	return group.Wait()
}

// start runs a part until its context ends or, if it is to succeed once, until it has.
func (t *table) start(ctx context.Context, p part, woken, ready chan struct{}) error {
	for c, open := range p.sources {
		go t.forward(ctx, c, open(ctx))
	}
	if p.run != nil {
		return p.run(ctx, woken, func() { close(ready) })
	}
	t.keep(ctx, p, woken, ready)
	return nil
}

// keep calls once or sync of a part.
func (t *table) keep(ctx context.Context, p part, woken, ready chan struct{}) {
	try := p.once
	if try == nil {
		try = p.sync
	}
	isReady := false
	for failures := 0; ctx.Err() == nil; {
		err := try(ctx)
		if ctx.Err() != nil {
			break
		}
		t.problem(p.name, err)
		if !isReady && (err == nil || p.mayFail) {
			isReady, failures = true, 0
			close(ready)
			if p.once != nil {
				break
			}
		}
		pause := syncEvery
		if err == nil {
			failures = 0
		} else {
			first, most := syncPause, maxSyncPause
			if !isReady {
				first, most = firstPause, maxFirstPause
			}
			pause = min(first<<min(failures, 10), most)
			failures++
		}
		sleepOr(ctx, pause, woken)
	}
}

// forward wakes the parts that a change concerns whenever its channel has a token.
func (t *table) forward(ctx context.Context, c change, tokens <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-tokens:
			t.wake(c)
		}
	}
}

// notify leaves a token in a channel of capacity one: many notifications become one wake-up.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func sleep(ctx context.Context, d time.Duration) { sleepOr(ctx, d, nil) }

// sleepOr sleeps for a while, until the context ends, or until it is woken.
func sleepOr(ctx context.Context, d time.Duration, woken <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-woken:
	case <-timer.C:
	}
}

// retry calls do until it succeeds, with growing pauses, and lets people see what the agent waits for.
func (a *Agent) retry(ctx context.Context, part string, do func(context.Context) error) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := do(ctx)
		a.setProblem(part, err)
		if err == nil {
			return nil
		}
		sleep(ctx, pause)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// setProblem records what is wrong with a part, and logs it when it is news.
func (a *Agent) setProblem(part string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		if _, ok := a.problems[part]; ok {
			a.log.Info(part + " ready")
			delete(a.problems, part)
		}
		return
	}
	if a.problems[part] != err.Error() {
		a.log.Warn(part+" not ready", "err", err)
		a.problems[part] = err.Error()
	}
}
