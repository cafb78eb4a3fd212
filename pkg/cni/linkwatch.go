package cni

import (
	"context"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// WatchLinks returns a channel that receives, coalesced, when another program has deleted, renamed or moved the node's
// end of a pod's veth, and whenever a watch begins. The receiver calls RestorePorts, which finds the damage.
func (s *Server) WatchLinks(ctx context.Context) <-chan struct{} {
	hints := make(chan struct{}, 1)
	go func() {
		for ctx.Err() == nil {
			if err := s.watchLinks(ctx, hints); err != nil {
				s.cfg.Log.Debug("watch the links of pods", "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second): // the next watch begins with a hint, so no change is missed
			}
		}
	}()
	return hints
}

func (s *Server) watchLinks(ctx context.Context, hints chan<- struct{}) error {
	updates := make(chan netlink.LinkUpdate, 256)
	if err := netlink.LinkSubscribe(updates, ctx.Done()); err != nil {
		return err
	}
	hint := func() {
		select {
		case hints <- struct{}{}:
		default:
		}
	}
	hint()
	for u := range updates {
		if u.Link == nil || !isOurs(u.Link) || u.Attrs().Group != GroupAttached {
			continue
		}
		known, complete := s.allocations.hasName(u.Attrs().Name)
		if u.Header.Type == unix.RTM_DELLINK && complete {
			hint()
		}
		if u.Header.Type == unix.RTM_NEWLINK && !known {
			// renamed, not the last message about a deleted link
			if _, err := netlink.LinkByName(u.Attrs().Name); err == nil {
				hint()
			}
		}
	}
	return nil
}

// hasName reports whether the link belongs to an attachment or an orphan, and whether that is complete.
func (al *allocations) hasName(name string) (known, complete bool) {
	al.mu.Lock()
	defer al.mu.Unlock()
	key, known := al.names[name]
	return known, al.entries[key].complete
}
