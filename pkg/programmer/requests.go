package programmer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// Revision numbers what was submitted to a Loop. To ask for one is to ask for everything up to it. The snapshot's own
// revision is another number: it grows only with what changes the snapshot.
type Revision uint64

// request is a caller that waits until a revision is in the switch.
type request struct {
	// done receives nil then, or why the flows of one of the owners are not in the switch. It has room for that.
	done     chan error
	revision Revision
	owners   []model.Owner
	view     bool // it waits for the snapshot alone
}

// errStopped is the answer of a loop that has ended.
var errStopped = errors.New("the agent is stopping, try again")

// Submit queues a change. It never blocks.
func (l *Loop) Submit(c state.Change) {
	l.mu.Lock()
	l.pending.Add(c)
	l.submitted++
	if l.oldest.IsZero() {
		l.oldest = time.Now()
	}
	l.mu.Unlock()
	notify(l.wake)
}

// Submitted is the revision of everything that was submitted so far.
func (l *Loop) Submitted() Revision {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.submitted
}

// Programmed answers whether a revision is programmed: it returns when the switch holds everything up to it. An error
// says why the flows of one of the owners are not in the switch, or why the caller was not answered in time. Flows of a
// pod that the API server has not reported are not in before it has.
func (l *Loop) Programmed(ctx context.Context, r Revision, owners ...model.Owner) error {
	if len(owners) == 0 && l.hasReached(r) {
		return nil
	}
	return l.await(ctx, request{revision: r, owners: owners}, "program the switch")
}

// hasReached spares a caller the wait for the loop's next round, which may be paced.
func (l *Loop) hasReached(r Revision) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reached > 0 && r <= l.reached
}

// Viewed returns when the snapshot has everything up to a revision, whether the switch has it or not.
func (l *Loop) Viewed(ctx context.Context, r Revision) error {
	return l.await(ctx, request{revision: r, view: true}, "compile what was submitted")
}

// Attach queues a pod's interface and returns when its flows are in the switch, or with the reason why they are not.
// They cannot be before the API server has told us of the pod, whose labels say which policies are about it, and of
// these.
func (l *Loop) Attach(ctx context.Context, a model.Attachment) error {
	l.Submit(state.SetAttachment{Attachment: a})
	err := l.await(ctx, request{revision: l.Submitted(), owners: []model.Owner{model.PodOwner(a)}},
		"program the flows of pod "+a.Pod.String())
	if err != nil && l.View().Unknown[a.Key()] {
		err = fmt.Errorf("%w: the API server has not told this node's agent of the pod or of all policies of its namespace",
			err)
	}
	return err
}

// Detach queues the end of a pod's interface and returns when its flows are gone.
func (l *Loop) Detach(ctx context.Context, key model.AttachmentKey) error {
	l.Submit(state.DeleteAttachment{Key: key})
	return l.await(ctx, request{revision: l.Submitted()}, "remove the flows of "+key.String())
}

// await queues a request and returns when it is answered or given up. Nothing of it is left then.
func (l *Loop) await(ctx context.Context, r request, what string) error {
	r.done = make(chan error, 1)
	l.mu.Lock()
	l.waiting = append(l.waiting, r)
	l.mu.Unlock()
	notify(l.wake)
	defer l.forget(r)
	select {
	case err := <-r.done:
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	case <-l.stopped:
		return fmt.Errorf("%s: %w", what, errStopped)
	case <-ctx.Done():
		if why := l.SwitchError(); why != "" {
			return fmt.Errorf("%s: %w: %s", what, context.Cause(ctx), why)
		}
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}

// forget takes out a request whose caller returns.
func (l *Loop) forget(r request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = slices.DeleteFunc(l.waiting, func(other request) bool { return other.done == r.done })
}

// Check returns nil when the flows of the attachment are in the switch now, and otherwise what is wrong. It does not
// wait.
func (l *Loop) Check(_ context.Context, key model.AttachmentKey) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, ok := l.settled.Attachments[key]
	if !ok {
		return fmt.Errorf("the flows of %s are not in the switch", key)
	}
	if l.settled.Unknown[key] {
		return fmt.Errorf(
			"pod %s is closed: the API server does not know it, or not by this UID, or its policies are not known", a.Pod)
	}
	if err := l.refused[model.PodOwner(a)]; err != nil {
		return fmt.Errorf("the flows of pod %s are not in the switch: %w", a.Pod, err)
	}
	if l.status.Error != "" {
		return fmt.Errorf("the switch cannot be reached: %s", l.status.Error)
	}
	return nil
}

// Verify asks the loop to read the switch back and repair what differs. The revision is programmed when it has.
func (l *Loop) Verify() Revision {
	l.mu.Lock()
	l.submitted++
	l.readBack = true
	r := l.submitted
	l.mu.Unlock()
	l.suspect()
	return r
}
