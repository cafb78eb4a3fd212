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

// SetMTU gives the interfaces of the pods that are attached another MTU. It goes on after a pod that fails and returns
// what failed; called again, it does what is missing.
func (s *Server) SetMTU(ctx context.Context, mtu int) error {
	var errs []error
	for _, key := range s.book.keys() {
		if err := s.setPodMTU(ctx, key, mtu); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Server) setPodMTU(ctx context.Context, key model.AttachmentKey, mtu int) error {
	unlock, err := s.locks.lock(ctx, key) // not while it is being attached or detached
	if err != nil {
		return err
	}
	defer unlock()
	att, ok := s.book.get(key)
	if !ok {
		return nil
	}
	host, err := netlink.LinkByName(att.HostIfName)
	if err != nil {
		return fmt.Errorf("set the MTU of pod %s: find link %s: %w", att.Pod, att.HostIfName, err)
	}
	// The node's end is changed last, so it tells whether there is anything to do.
	if host.Attrs().MTU == mtu {
		return nil
	}
	if err := setMTUInPod(att, host, mtu); err != nil {
		return fmt.Errorf("set the MTU of pod %s to %d (it keeps %d until it is made anew): %w", att.Pod, mtu, host.Attrs().MTU, err)
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

// agentPath is where the agent finds a network namespace that the runtime names: the agent's container has the node's
// /run where hosts have it, and no /var/run.
func agentPath(path string) string {
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		return "/run/" + rest
	}
	return path
}
