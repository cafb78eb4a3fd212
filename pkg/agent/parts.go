package agent

import (
	"context"
	"time"
)

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

// keep calls sync at once, whenever one of the triggers fires, once in a while, and again soon after it failed.
func (a *Agent) keep(ctx context.Context, part string, sync func(context.Context) error, triggers ...<-chan struct{}) {
	merged := make(chan struct{}, 1)
	for _, t := range triggers {
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-t:
					notify(merged)
				}
			}
		}()
	}
	const every = time.Minute
	failures := 0
	for ctx.Err() == nil {
		err := sync(ctx)
		if ctx.Err() != nil {
			return
		}
		a.setProblem(part, err)
		pause := every
		if err != nil {
			failures++
			pause = min(100*time.Millisecond<<min(failures, 7), 10*time.Second)
		} else {
			failures = 0
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-merged:
		case <-timer.C:
		}
		timer.Stop()
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

// notify leaves a token in a channel of capacity one: many notifications become one wake-up.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
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
