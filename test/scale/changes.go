package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
)

// settled is how long nothing must have changed in the switch before a change counts as done.
const settled = 300 * time.Millisecond

// changes follows what is written to the switch: the switch itself tells, so a programmed flow is one that it holds.
type changes struct {
	stop func()

	mu     sync.Mutex
	flows  int
	groups int
	last   time.Time
}

// watch begins to follow the switch. It is to be stopped before an agent starts that writes much.
func (n *node) watch(ctx context.Context) (*changes, error) {
	// The agent watches, too, and has a socket of the same name in its own directory.
	dir := filepath.Join(n.dir, "watch")
	for begun := time.Now(); ; {
		c, err := follow(ctx, ofswitch.New(n.ovs.RunDir(), dir, model.BridgeName, ofswitch.Userspace))
		if err == nil || time.Since(begun) > deadline || ctx.Err() != nil {
			return c, err
		}
		time.Sleep(100 * time.Millisecond) // the switch has just been started, or is busy
	}
}

func follow(ctx context.Context, sw *ofswitch.Switch) (*changes, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	c := &changes{}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- sw.Watch(ctx, func() { close(ready) }, c.changed) }()
	c.stop = func() { cancel(); <-ended }
	select {
	case <-ready:
		return c, nil
	case err := <-ended:
		cancel()
		return nil, fmt.Errorf("follow the switch: %w", err)
	}
}

func (c *changes) changed(e ofswitch.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
	if e.Group.ID != 0 {
		c.groups++
	} else {
		c.flows++
	}
}

// reset forgets what was counted.
func (c *changes) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flows, c.groups = 0, 0
}

// after makes a change and waits for what follows from it. It gives the time until the switch held the last of it.
func (c *changes) after(ctx context.Context, change func() error) (took time.Duration, flows, groups int, err error) {
	c.reset()
	begun := time.Now()
	if err := change(); err != nil {
		return 0, 0, 0, err
	}
	for time.Since(begun) < deadline {
		select {
		case <-ctx.Done():
			return 0, 0, 0, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
		c.mu.Lock()
		flows, groups, last := c.flows, c.groups, c.last
		c.mu.Unlock()
		if flows+groups > 0 && time.Since(last) > settled {
			return last.Sub(begun), flows, groups, nil
		}
	}
	return 0, 0, 0, fmt.Errorf("nothing changed in the switch within %s", deadline)
}

// count waits and says what has changed since the last reset.
func (c *changes) count(ctx context.Context, wait time.Duration) (flows, groups int) {
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flows, c.groups
}
