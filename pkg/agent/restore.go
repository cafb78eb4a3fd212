package agent

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/weft-cni/weft/pkg/state"
)

const (
	// apiPatience is how long a start waits for the API server's objects before it takes the copy, apiFailing how long it
	// waits when there are errors.
	apiPatience = 15 * time.Second
	apiFailing  = 3 * time.Second
	// copyDelay is how long changes are collected before a copy is written, copyEvery the least time between two.
	copyDelay = 5 * time.Second
	copyEvery = 30 * time.Second

	copyProblem = "copy of the API server's objects"
)

// awaitObjects is ready when the view has the API server's objects or, when these do not come, those of the copy. Those
// of the API server then replace the copy as soon as they are complete.
func (a *Agent) awaitObjects(ctx context.Context, _ <-chan struct{}, ready func()) error {
	loop := a.loop
	complete := make(chan error, 1)
	go func() { complete <- a.kube.WaitSynced(ctx) }()
	taken := func(err error) error {
		if err == nil {
			loop.Submit(state.Synced{})
			a.mu.Lock()
			a.copyTime = time.Time{}
			a.mu.Unlock()
			a.synced.Store(true)
			a.setProblem(apiProblem, a.apiError())
			a.reportObjects()
		}
		return err
	}
	c, copyErr := readCopy(a.copyFile(), a.opt.Node)
	if copyErr == nil {
		loop.Submit(state.Recall{PodCIDRs: c.Self.PodCIDRs})
	}
	begun := time.Now()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for !a.apiIsAway(time.Since(begun)) {
		select {
		case err := <-complete:
			if err = taken(err); err == nil {
				ready()
			}
			return err
		case <-ticker.C:
		}
	}
	if copyErr != nil {
		if !errors.Is(copyErr, os.ErrNotExist) {
			a.setProblem(copyProblem, copyErr)
		}
		err := taken(<-complete)
		if err == nil {
			ready()
		}
		return err
	}
	a.log.Warn("the API server's objects are not there yet; working from a copy of them",
		"of", c.Time, "nodes", len(c.Nodes),
		"services", len(c.Services), "policies", len(c.Policies), "pods", len(c.Attachments))
	loop.Submit(state.Restore{Copy: c})
	a.mu.Lock()
	a.copyTime = c.Time
	a.mu.Unlock()
	ready()
	return taken(<-complete)
}

// apiIsAway says whether a start has waited long enough for the API server.
func (a *Agent) apiIsAway(waited time.Duration) bool {
	if waited < apiFailing {
		return false
	}
	for _, f := range a.kube.Feeds() {
		if f.Err != nil {
			return true
		}
	}
	return waited >= apiPatience
}

// keepCopy writes the copy whenever the view has changed, at a bounded rate, and once more at the end.
func (a *Agent) keepCopy(ctx context.Context, woken <-chan struct{}, ready func()) error {
	ready()
	loop := a.loop
	var written uint64
	write := func() {
		if view := loop.View(); a.synced.Load() && view.Revision != written {
			err := writeCopy(a.copyFile(), a.opt.Node, state.NewCopy(view, time.Now()))
			a.setProblem(copyProblem, err)
			written = view.Revision // a failure is tried again with the next change
		}
	}
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-woken:
			sleep(ctx, copyDelay)
			write() // also when the agent stops
			sleep(ctx, copyEvery-copyDelay)
		}
	}
	write()
	return nil
}
