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

// An orphan is a pod's link whose record and copy are lost. Nobody knows which pod it is, so it cannot be connected again. But the pod runs and everybody believes that
// it has its addresses. So its link is kept, and its addresses are given to nobody else, until the link is gone.

// netnsDir is where container runtimes keep the network namespaces of pods.
const netnsDir = "/run/netns"

// orphanAddrs finds the addresses of the pod at the other end of our link. There are none when the other end is not in
// a pod's namespace.
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
			continue // it is just going away
		}
		ips, found := addrsAtOtherEnd(netns, link)
		netns.Close()
		if found {
			return ips, path, nil
		}
	}
	return nil, "", nil
}

// addrsAtOtherEnd tells whether the link's other end is in that namespace.
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

// adopt keeps the link of a pod whose record is lost, or removes it when there is no pod.
func (s *Server) adopt(name string) error {
	ips, path, err := orphanAddrs(name)
	if err != nil {
		return err
	}
	if len(ips) == 0 {
		s.cfg.Log.Warn("removing a link that no pod has", "link", name)
		return deleteLink(name)
	}
	s.cfg.Log.Error("a pod is cut off because its record in OVSDB is lost; delete the pod, so that it is made again. Its addresses stay reserved until then",
		"link", name, "addresses", ips, "netns", path)
	s.book.reserveOrphan(name, ips)
	return nil
}

// releaseOrphans frees the addresses of the orphans whose links are gone.
func (s *Server) releaseOrphans() {
	for _, name := range s.book.orphanNames() {
		if _, err := netlink.LinkByName(name); errors.As(err, &netlink.LinkNotFoundError{}) {
			s.book.releaseOrphan(name)
		}
	}
}

// deleteOrphan removes the attachment's link if it is an orphan.
func (s *Server) deleteOrphan(key model.AttachmentKey) error {
	for _, name := range s.book.orphanNames() {
		if !mayBeNameOf(name, key) {
			continue
		}
		if err := deleteLink(name); err != nil {
			return err
		}
		s.book.releaseOrphan(name)
	}
	return nil
}

// orphanKey is under which the book has an orphan's addresses. No request can ask for it: it has no container.
func orphanKey(name string) model.AttachmentKey { return model.AttachmentKey{IfName: name} }

func (b *book) reserveOrphan(name string, ips []netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.orphans[name] = struct{}{}
	b.names[name] = orphanKey(name)
	for _, ip := range ips {
		if _, used := b.ips[ip]; !used {
			b.ips[ip] = orphanKey(name)
		}
	}
}

func (b *book) orphanNames() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for name := range b.orphans {
		names = append(names, name)
	}
	return names
}

func (b *book) releaseOrphan(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.orphans, name)
	delete(b.names, name)
	b.forget(orphanKey(name))
}
