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
// A port whose record cannot be read, and everything of an ADD that did not finish, is removed. A whole link without a
// record is kept as an orphan when it leads to a pod, see orphan.go, and else removed.
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
	links, err := ourLinks()
	if err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	var kept []model.Attachment
	var errs []error
	for _, att := range recorded {
		if links[att.HostIfName] == GroupAttached {
			if err := s.book.load(att); err != nil {
				s.cfg.Log.Error("attachments conflict; delete one of the pods", "err", err)
			}
			kept = append(kept, att)
			delete(links, att.HostIfName)
			continue
		}
		s.cfg.Log.Warn("removing the port of an attachment that is not whole", "pod", att.Pod, "port", att.HostIfName)
		if err := s.cfg.Ports.RemovePort(ctx, att.HostIfName); err != nil {
			errs = append(errs, fmt.Errorf("remove port %s: %w", att.HostIfName, err))
		}
	}
	for _, b := range bad {
		s.cfg.Log.Error("removing a pod's port whose record cannot be read", "port", b.Name, "err", b.Err)
		if err := s.cfg.Ports.RemovePort(ctx, b.Name); err != nil {
			errs = append(errs, fmt.Errorf("remove port %s: %w", b.Name, err))
		}
	}
	for name, group := range links {
		if group == GroupAttached {
			errs = append(errs, s.adopt(name))
			continue
		}
		s.cfg.Log.Warn("removing the link of an attachment that is not whole", "link", name)
		errs = append(errs, deleteLink(name))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("recover CNI attachments: %w", err)
	}
	s.recovered = true
	return kept, nil
}

// ourLinks lists the node's ends of our veths with the group they are in.
func ourLinks() (map[string]uint32, error) {
	all, err := netlink.LinkList()
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
