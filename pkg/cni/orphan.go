package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// An orphan is a pod's link whose record and copy are lost. The agent cannot tell which pod it belongs to, so it cannot
// connect it again. But the pod runs, and the rest of the cluster expects it at its addresses. So the agent keeps the
// link and reserves its addresses until the link is deleted.

// netnsDir is the directory of the pods' network namespaces (containerd, CRI-O).
const netnsDir = "/run/netns"

// orphanAddrs finds the addresses of the pod at the other end of the link, and the path of its namespace; none when the
// other end is not in a pod's namespace.
func orphanAddrs(name string) (ips []netip.Addr, path string, err error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, "", fmt.Errorf("find link %s: %w", name, err)
	}
	files, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, "", fmt.Errorf("find the pod's network namespace: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(netnsDir, f.Name())
		netns, err := os.Open(path)
		if err != nil {
			continue // deleted meanwhile
		}
		ips, found := addrsAtOtherEnd(netns, link)
		netns.Close()
		if found {
			return ips, path, nil
		}
	}
	return nil, "", nil
}

// addrsAtOtherEnd returns the addresses of the link's peer if it is in that namespace.
func addrsAtOtherEnd(netns *os.File, link netlink.Link) (ips []netip.Addr, found bool) {
	id, err := netlink.GetNetNsIdByFd(int(netns.Fd()))
	if err != nil || id < 0 || id != link.Attrs().NetNsID {
		return nil, false
	}
	err = inNetns(netns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		peer, err := h.LinkByIndex(link.Attrs().ParentIndex)
		if err != nil {
			return err
		}
		addrs, err := h.AddrList(peer, netlink.FAMILY_ALL)
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap().IsGlobalUnicast() {
				ips = append(ips, ip.Unmap())
			}
		}
		return err
	})
	return ips, err == nil
}

// adopt reserves the addresses of a pod whose record is lost, or deletes the link when it has no pod.
func (s *Server) adopt(name string) error {
	ips, path, err := orphanAddrs(name)
	if err != nil {
		return err
	}
	if len(ips) == 0 {
		s.cfg.Log.Warn("deleting a link without a pod", "link", name)
		return deleteLink(name)
	}
	s.cfg.Log.Error("pod disconnected because its record in OVSDB is lost; delete the pod, so that it is recreated. "+
		"Its addresses stay reserved until then",
		"link", name, "addresses", ips, "netns", path)
	s.allocations.reserveOrphan(name, ips)
	return nil
}

// releaseOrphans frees the addresses of orphans whose links no longer exist.
func (s *Server) releaseOrphans() {
	for _, name := range s.allocations.orphanNames() {
		if _, err := netlink.LinkByName(name); errors.As(err, &netlink.LinkNotFoundError{}) {
			s.allocations.releaseOrphan(name)
		}
	}
}

// deleteOrphan deletes the attachment's link if it is an orphan.
func (s *Server) deleteOrphan(key model.AttachmentKey) error {
	for _, name := range s.allocations.orphanNames() {
		if !mayBeNameOf(name, key) {
			continue
		}
		if err := deleteLink(name); err != nil {
			return err
		}
		s.allocations.releaseOrphan(name)
	}
	return nil
}

// orphanKey is the owner of an orphan's addresses in allocations. No request can name it: it has no container ID.
func orphanKey(name string) model.AttachmentKey { return model.AttachmentKey{IfName: name} }

func (al *allocations) reserveOrphan(name string, ips []netip.Addr) {
	al.mu.Lock()
	defer al.mu.Unlock()
	al.orphans[name] = struct{}{}
	al.names[name] = orphanKey(name)
	for _, ip := range ips {
		if _, used := al.ips[ip]; !used {
			al.ips[ip] = orphanKey(name)
		}
	}
}

func (al *allocations) orphanNames() []string {
	al.mu.Lock()
	defer al.mu.Unlock()
	var names []string
	for name := range al.orphans {
		names = append(names, name)
	}
	return names
}

func (al *allocations) releaseOrphan(name string) {
	al.mu.Lock()
	defer al.mu.Unlock()
	delete(al.orphans, name)
	delete(al.names, name)
	al.retireIPs(orphanKey(name))
}
