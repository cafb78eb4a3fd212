package cni

import (
	"context"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// WatchLinks receives, coalesced, when the node's end of a pod's veth was deleted, renamed or moved to another network
// namespace by somebody else, and when the watch on the links began. The receiver calls RestorePorts, which finds out.
func (s *Server) WatchLinks(ctx context.Context) <-chan struct{} {
	hints := make(chan struct{}, 1)
	go func() {
		for ctx.Err() == nil {
			if err := s.watchLinks(ctx, hints); err != nil {
				s.cfg.Log.Debug("watch the links of pods", "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second): // what happens meanwhile is found when the next watch begins
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
		known, complete := s.book.hasName(u.Attrs().Name)
		if u.Header.Type == unix.RTM_DELLINK && complete {
			hint()
		}
		if u.Header.Type == unix.RTM_NEWLINK && !known {
			if _, err := netlink.LinkByName(u.Attrs().Name); err == nil { // renamed, not the last news of one that is gone
				hint()
			}
		}
	}
	return nil
}

// hasName tells whether a link of that name belongs to an attachment or an orphan, and whether that is complete.
func (b *book) hasName(name string) (known, complete bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key, known := b.names[name]
	return known, b.entries[key].complete
}
