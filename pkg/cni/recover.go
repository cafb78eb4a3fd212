package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/model"
)

// Recover makes every attachment complete or removes it, however an earlier agent was interrupted, and returns the
// complete ones. It must be called before Serve, and before the flow loop reads the bridge's attachments; it does not
// call Flows.
//
//   - A record without its link (the node rebooted, or the pod's namespace was deleted) is removed and its
//     addresses are freed.
//   - All parts of an unfinished ADD are removed.
//   - When the record of a complete link is lost, invalid or changed, its copy is used if the node confirms
//     it, see copies.go. RestorePorts and EnsureBridge then restore the port and its record.
//   - Without such a copy, a port with an invalid record is removed. A complete link without a record is kept
//     as an orphan if it leads to a pod, see orphan.go, and deleted otherwise.
//
// It is safe to call again after an error.
func (s *Server) Recover(ctx context.Context) ([]model.Attachment, error) {
	if err := s.cfg.FilterPodLinks(ctx); err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	recorded, bad, err := s.cfg.Ports.Attachments(ctx)
	if err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	if s.allocations.resume, err = s.cfg.Ports.LastIPs(ctx); err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	links, err := ourLinks()
	if err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	var kept []model.Attachment
	var errs []error
	keep := func(att model.Attachment) {
		if err := s.allocations.load(att); err != nil {
			s.cfg.Log.Error("attachments conflict; delete one of the pods", "err", err)
		}
		kept = append(kept, att)
		delete(links, att.HostIfName)
	}
	for _, att := range recorded {
		if links[att.HostIfName] == GroupAttached {
			if known, err := s.copies.verify(att.HostIfName); err == nil && !known.Equal(att) {
				s.cfg.Log.Error("another program changed the record of a pod's port in OVSDB while no agent ran; "+
					"restoring it",
					"port", att.HostIfName, "recorded", att, "restored", known)
				att = known
			}
			keep(att)
			continue
		}
		s.cfg.Log.Warn("removing the port of an incomplete attachment", "pod", att.Pod, "port", att.HostIfName)
		if err := s.cfg.Ports.RemovePort(ctx, att.HostIfName); err != nil {
			errs = append(errs, fmt.Errorf("remove port %s: %w", att.HostIfName, err))
		}
	}
	for _, b := range bad {
		if links[b.Name] == GroupAttached {
			if known, err := s.copies.verify(b.Name); err == nil {
				s.cfg.Log.Error("invalid record of a pod's port; restoring it",
					"port", b.Name, "pod", known.Pod, "err", b.Err)
				keep(known)
				continue
			}
		}
		s.cfg.Log.Error("removing a pod's port with an invalid record", "port", b.Name, "err", b.Err)
		if err := s.cfg.Ports.RemovePort(ctx, b.Name); err != nil {
			errs = append(errs, fmt.Errorf("remove port %s: %w", b.Name, err))
		}
	}
	for name, group := range links {
		if group == GroupAttached {
			known, err := s.copies.verify(name)
			if err == nil && s.allocations.available(known) {
				s.cfg.Log.Warn("the record of a pod is lost in OVSDB; restoring it from its copy",
					"pod", known.Pod, "link", name, "addresses", known.IPs)
				keep(known)
				continue
			}
			s.cfg.Log.Warn("link without a record in OVSDB and without a valid copy", "link", name, "err", err)
			errs = append(errs, s.adopt(name))
			continue
		}
		s.cfg.Log.Warn("deleting the link of an incomplete attachment", "link", name)
		errs = append(errs, deleteLink(name))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	s.copyAll(kept)
	s.recovered = true
	return kept, nil
}

// copyAll makes the copies match the attachments. It only logs errors: pods work without copies.
func (s *Server) copyAll(kept []model.Attachment) {
	keep := make(map[string]bool, len(kept))
	for _, att := range kept {
		keep[att.HostIfName] = true
		link, err := netlink.LinkByName(att.HostIfName)
		if err == nil {
			err = s.copies.write(att, link.Attrs().HardwareAddr)
		}
		if err != nil {
			s.cfg.Log.Error("no copy of the attachment", "pod", att.Pod, "err", err)
		}
	}
	if err := s.copies.clean(keep); err != nil {
		s.cfg.Log.Error("remove the copies of removed attachments", "err", err)
	}
}

// ourLinks lists the node's ends of Weft's veths with their groups.
func ourLinks() (map[string]uint32, error) {
	const tries = 20
	all, err := netlink.LinkList()
	for i := 1; i < tries && errors.Is(err, netlink.ErrDumpInterrupted); i++ {
		all, err = netlink.LinkList() // links changed during the dump, so some may be missing
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	ours := map[string]uint32{}
	for _, link := range all {
		if isOurs(link) {
			ours[link.Attrs().Name] = link.Attrs().Group
		}
	}
	return ours, nil
}
