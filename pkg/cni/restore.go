package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/pkg/model"
)

// restoreAtOnce bounds how many ports are put back in parallel; the bridge's transactions are shared.
const restoreAtOnce = 32

// Known returns the attachments whose ports belong on the bridge, by port name, for EnsureBridge. A name counts only
// while the link of that name is ours, so a foreign port of the same name is never taken over.
func (s *Server) Known() (map[string]model.Attachment, error) {
	whole := s.book.whole()
	links, err := ourLinks()
	if err != nil {
		return nil, err
	}
	known := make(map[string]model.Attachment, len(whole))
	for _, att := range whole {
		if links[att.HostIfName] == GroupAttached {
			known[att.HostIfName] = att
		}
	}
	return known, nil
}

// RestorePorts puts back the ports of whole attachments that somebody removed from the bridge, or whose record somebody
// damaged, and returns their names in order. It goes on after a port that fails and returns what failed, and names the
// pods whose link is gone; called again, it does what is missing. The bridge must exist. When nothing is missing it only
// compares the book with Ports.Attachments and the node's links.
func (s *Server) RestorePorts(ctx context.Context) ([]string, error) {
	// The book first: what is whole there was on the bridge before, so an ADD that ends now is not taken for damage.
	whole := s.book.whole()
	recorded, bad, err := s.cfg.Ports.Attachments(ctx)
	if err != nil {
		return nil, fmt.Errorf("restore ports: %w", err)
	}
	links, err := ourLinks()
	if err != nil {
		return nil, fmt.Errorf("restore ports: %w", err)
	}
	present := make(map[string]model.Attachment, len(recorded))
	for _, att := range recorded {
		present[att.HostIfName] = att
	}
	damaged := map[string]bool{}
	for _, b := range bad {
		damaged[b.Name] = true
	}
	var mu sync.Mutex
	var restored []string
	var errs []error
	var g errgroup.Group
	g.SetLimit(restoreAtOnce)
	for _, att := range whole {
		record, there := present[att.HostIfName]
		switch {
		case !there:
		case !record.Equal(att):
			damaged[att.HostIfName] = true
		case links[att.HostIfName] == 0 && s.book.isWhole(att):
			mu.Lock()
			errs = append(errs, fmt.Errorf("link %s of pod %s is gone from the node (deleted, renamed or moved to another "+
				"network namespace); delete the pod, so that it is made again", att.HostIfName, att.Pod))
			mu.Unlock()
			continue
		default:
			continue
		}
		g.Go(func() error {
			done, err := s.restorePort(ctx, att, damaged[att.HostIfName])
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("restore port %s of pod %s: %w", att.HostIfName, att.Pod, err))
			} else if done {
				restored = append(restored, att.HostIfName)
			}
			return nil
		})
	}
	_ = g.Wait() // errs has the errors
	slices.Sort(restored)
	if last := s.book.last(); len(restored) > 0 && len(last) > 0 { // the bridge may be a new one
		errs = append(errs, s.cfg.Ports.SetLastIPs(ctx, last))
	}
	return restored, errors.Join(errs...)
}

// restorePort tells whether it put the port back: it does not when the attachment has been removed meanwhile.
func (s *Server) restorePort(ctx context.Context, att model.Attachment, damaged bool) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, doTimeout)
	defer cancel()
	unlock, err := s.locks.lock(ctx, att.Key()) // not while it is being detached
	if err != nil {
		return false, err
	}
	defer unlock()
	if !s.book.isWhole(att) {
		return false, nil
	}
	link, err := netlink.LinkByName(att.HostIfName)
	if err != nil {
		return false, fmt.Errorf("find its link (without it the pod must be deleted and made again): %w", err)
	}
	if !isOurs(link) {
		return false, errors.New("the link of that name is not ours; the pod must be deleted and made again")
	}
	if damaged {
		if err := s.cfg.Ports.RemovePort(ctx, att.HostIfName); err != nil {
			return false, err
		}
	}
	return true, s.cfg.Ports.AddPort(ctx, att)
}
