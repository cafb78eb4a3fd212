package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

// Recover brings the node back to whole attachments, whatever an earlier agent was interrupted in, and returns those.
// It must be called before Serve, and before the flow loop reads the bridge's attachments: it does not speak to Flows.
//
// A record without its link (the node was rebooted, or the pod's namespace is gone) is removed, its addresses are free.
// Everything of an ADD that did not finish is removed. Where the record of a whole link is lost, cannot be read or was
// changed, the copy of it counts if the node proves it, see copies.go: RestorePorts and EnsureBridge bring the port and
// its record back. Without such a copy, a port whose record cannot be read is removed, and a whole link without a record
// is kept as an orphan when it leads to a pod, see orphan.go, and else removed.
func (s *Server) Recover(ctx context.Context) ([]model.Attachment, error) {
	if s.cfg.NFT == nil {
		nft, err := knftables.New(knftables.InetFamily, GuardTable)
		if err != nil {
			return nil, fmt.Errorf("recover CNI attachments: open nftables: %w", err)
		}
		s.cfg.NFT = nft
	}
	if err := s.Guard(ctx); err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	recorded, bad, err := s.cfg.Ports.Attachments(ctx)
	if err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	if s.book.resume, err = s.cfg.Ports.LastIPs(ctx); err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	links, err := ourLinks()
	if err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	var kept []model.Attachment
	var errs []error
	keep := func(att model.Attachment) {
		if err := s.book.load(att); err != nil {
			s.cfg.Log.Error("attachments conflict; delete one of the pods", "err", err)
		}
		kept = append(kept, att)
		delete(links, att.HostIfName)
	}
	for _, att := range recorded {
		if links[att.HostIfName] == GroupAttached {
			if known, err := s.copies.prove(att.HostIfName); err == nil && !known.Equal(att) {
				s.cfg.Log.Error("the record of a pod's port was changed in OVSDB while no agent ran; restoring it",
					"port", att.HostIfName, "recorded", att, "restored", known)
				att = known
			}
			keep(att)
			continue
		}
		s.cfg.Log.Warn("removing the port of an attachment that is not whole", "pod", att.Pod, "port", att.HostIfName)
		if err := s.cfg.Ports.RemovePort(ctx, att.HostIfName); err != nil {
			errs = append(errs, fmt.Errorf("remove port %s: %w", att.HostIfName, err))
		}
	}
	for _, b := range bad {
		if links[b.Name] == GroupAttached {
			if known, err := s.copies.prove(b.Name); err == nil {
				s.cfg.Log.Error("the record of a pod's port cannot be read; restoring it", "port", b.Name, "pod", known.Pod, "err", b.Err)
				keep(known)
				continue
			}
		}
		s.cfg.Log.Error("removing a pod's port whose record cannot be read", "port", b.Name, "err", b.Err)
		if err := s.cfg.Ports.RemovePort(ctx, b.Name); err != nil {
			errs = append(errs, fmt.Errorf("remove port %s: %w", b.Name, err))
		}
	}
	for name, group := range links {
		if group == GroupAttached {
			known, err := s.copies.prove(name)
			if err == nil && s.book.free(known) {
				s.cfg.Log.Warn("the record of a pod is lost in OVSDB; restoring it from its copy",
					"pod", known.Pod, "link", name, "addresses", known.IPs)
				keep(known)
				continue
			}
			s.cfg.Log.Warn("a link has no record in OVSDB and no copy that can be proven", "link", name, "err", err)
			errs = append(errs, s.adopt(name))
			continue
		}
		s.cfg.Log.Warn("removing the link of an attachment that is not whole", "link", name)
		errs = append(errs, deleteLink(name))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	s.copyAll(kept)
	s.recovered = true
	return kept, nil
}

// copyAll makes the copies those of the attachments. What fails is logged: the pods work without.
func (s *Server) copyAll(kept []model.Attachment) {
	keep := make(map[string]bool, len(kept))
	for _, att := range kept {
		keep[att.HostIfName] = true
		link, err := netlink.LinkByName(att.HostIfName)
		if err == nil {
			err = s.copies.write(att, link.Attrs().HardwareAddr)
		}
		if err != nil {
			s.cfg.Log.Error("an attachment has no copy", "pod", att.Pod, "err", err)
		}
	}
	if err := s.copies.clean(keep); err != nil {
		s.cfg.Log.Error("remove the copies of attachments that are gone", "err", err)
	}
}

// ourLinks lists the node's ends of our veths with the group they are in.
func ourLinks() (map[string]uint32, error) {
	const tries = 20
	all, err := netlink.LinkList()
	for i := 1; i < tries && errors.Is(err, netlink.ErrDumpInterrupted); i++ {
		all, err = netlink.LinkList() // links came or went while they were listed, so some may be missing
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
