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

// restoreAtOnce bounds the ports that are restored in parallel; the bridge's transactions are batched.
const restoreAtOnce = 32

// Known returns the attachments whose ports belong on the bridge, by port name, for EnsureBridge. A name counts only
// while the link of that name is Weft's, so a foreign port of the same name is never taken over.
func (s *Server) Known() (map[string]model.Attachment, error) {
	attached := s.allocations.listComplete()
	links, err := ourLinks()
	if err != nil {
		return nil, err
	}
	known := make(map[string]model.Attachment, len(attached))
	for _, att := range attached {
		if links[att.HostIfName] == GroupAttached {
			known[att.HostIfName] = att
		}
	}
	return known, nil
}

// Changing reports that the node's link of that name belongs to an attachment that an ADD or DEL is working on, or has
// left behind. It does not block.
func (s *Server) Changing(hostIfName string) bool {
	known, complete := s.allocations.hasName(hostIfName)
	return known && !complete
}

// RestorePorts restores the ports of complete attachments that another program removed from the bridge, or whose record
// it changed, and returns their names in order. It continues after a port that fails, returns all errors, and names the
// pods whose link is missing. Idempotent; the bridge must exist. Without damage it only compares allocations with
// Ports.Attachments and the node's links.
func (s *Server) RestorePorts(ctx context.Context) ([]string, error) {
	// Read allocations first: a complete attachment was on the bridge before, so an ADD that ends now does not look
	// like damage.
	attached := s.allocations.listComplete()
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
	for _, att := range attached {
		record, there := present[att.HostIfName]
		switch {
		case !there:
		case !record.Equal(att):
			damaged[att.HostIfName] = true
		case links[att.HostIfName] == 0 && s.allocations.isComplete(att):
			mu.Lock()
			errs = append(errs, fmt.Errorf("link %s of pod %s is missing on the node (deleted, renamed or moved to another "+
				"network namespace); delete the pod, so that it is recreated", att.HostIfName, att.Pod))
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
	if last := s.allocations.lastIPs(); len(restored) > 0 && len(last) > 0 { // the bridge may be a new one
		errs = append(errs, s.cfg.Ports.SetLastIPs(ctx, last))
	}
	return restored, errors.Join(errs...)
}

// restorePort reports whether it restored the port; false when the attachment was removed meanwhile.
func (s *Server) restorePort(ctx context.Context, att model.Attachment, damaged bool) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, doTimeout)
	defer cancel()
	unlock, err := s.locks.lock(ctx, att.Key()) // serializes with DEL
	if err != nil {
		return false, err
	}
	defer unlock()
	if !s.allocations.isComplete(att) {
		return false, nil
	}
	link, err := netlink.LinkByName(att.HostIfName)
	if err != nil {
		return false, fmt.Errorf("find its link (if it is missing, delete the pod, so that it is recreated): %w", err)
	}
	if !isOurs(link) {
		return false, errors.New("the link of that name is not Weft's; delete the pod, so that it is recreated")
	}
	if damaged {
		if err := s.cfg.Ports.RemovePort(ctx, att.HostIfName); err != nil {
			return false, err
		}
	}
	return true, s.cfg.Ports.AddPort(ctx, att)
}
