package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// SetMTU sets the MTU of all attached pods' interfaces. It continues after a pod that fails and returns all errors; a
// later call repeats only the missing ones.
func (s *Server) SetMTU(ctx context.Context, mtu int) error {
	var errs []error
	for _, key := range s.allocations.keys() {
		if err := s.setPodMTU(ctx, key, mtu); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Server) setPodMTU(ctx context.Context, key model.AttachmentKey, mtu int) error {
	unlock, err := s.locks.lock(ctx, key) // serializes with ADD and DEL
	if err != nil {
		return err
	}
	defer unlock()
	att, ok := s.allocations.get(key)
	if !ok {
		return nil
	}
	host, err := netlink.LinkByName(att.HostIfName)
	if err != nil {
		return fmt.Errorf("set the MTU of pod %s: find link %s: %w", att.Pod, att.HostIfName, err)
	}
	// The node's end is changed last, so an equal MTU there means there is nothing to do.
	if host.Attrs().MTU == mtu {
		return nil
	}
	if err := setMTUInPod(att, host, mtu); err != nil {
		return fmt.Errorf("set the MTU of pod %s to %d (it keeps %d until the pod is recreated): %w",
			att.Pod, mtu, host.Attrs().MTU, err)
	}
	if err := netlink.LinkSetMTU(host, mtu); err != nil {
		return fmt.Errorf("set the MTU of link %s to %d: %w", att.HostIfName, mtu, err)
	}
	return nil
}

func setMTUInPod(att model.Attachment, host netlink.Link, mtu int) error {
	if att.NetNS == "" {
		return errors.New("its network namespace is not recorded")
	}
	path := agentPath(att.NetNS)
	netns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer netns.Close()
	if err := checkNetns(netns, path); err != nil {
		return err
	}
	return inNetns(netns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink in the pod's network namespace: %w", err)
		}
		defer h.Close()
		link, err := h.LinkByName(att.IfName)
		if err != nil {
			return fmt.Errorf("find link %s in the pod: %w", att.IfName, err)
		}
		if link.Attrs().ParentIndex != host.Attrs().Index {
			return fmt.Errorf("%s in %s is not the other end of %s", att.IfName, path, att.HostIfName)
		}
		return h.LinkSetMTU(link, mtu)
	})
}

// agentPath translates the path of a network namespace from the runtime's view to the agent's: the agent's container
// mounts the node's /run at /run, and has no /var/run.
func agentPath(path string) string {
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		return "/run/" + rest
	}
	return path
}
