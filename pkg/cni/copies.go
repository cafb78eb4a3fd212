package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/model"
)

// copies are files with the attachments, outside OVSDB: one each, readable only by root, under /run, so that they are
// deleted at boot like the links. OVSDB's record takes precedence while it is intact. A copy restores it when OVSDB is
// empty or the record was changed while no agent ran, and only after the node's links confirm it, see verify.
type copies string

// copiesDir is the directory of the copies, beside the CNI socket.
const copiesDir = "attachments"

const (
	copyVersion = 1
	copySuffix  = ".json"
	// maxCopy bounds the bytes read of a file.
	maxCopy = 16 << 10
)

// attachmentCopy is the content of a file.
type attachmentCopy struct {
	Version    int              `json:"version"`
	Attachment model.Attachment `json:"attachment"`
	// HostMAC is the MAC of the node's end. It is random (46 bits), so it distinguishes the link from another of the
	// same name.
	HostMAC string `json:"hostMAC"`
}

func (c copies) path(hostIfName string) string {
	return filepath.Join(string(c), hostIfName+copySuffix)
}

// write adds or replaces the copy of an attachment, atomically. It does not write a file that is up to date.
func (c copies) write(att model.Attachment, hostMAC net.HardwareAddr) error {
	if err := os.MkdirAll(string(c), 0o700); err != nil {
		return fmt.Errorf("copy the attachment of pod %s: %w", att.Pod, err)
	}
	b, err := json.Marshal(attachmentCopy{copyVersion, att, hostMAC.String()})
	if err == nil {
		_, err = replaceFile(c.path(att.HostIfName), append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("copy the attachment of pod %s: %w", att.Pod, err)
	}
	return nil
}

// remove removes the copy. Idempotent.
func (c copies) remove(hostIfName string) error {
	if err := os.Remove(c.path(hostIfName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the copy of attachment %s: %w", hostIfName, err)
	}
	return nil
}

// read returns the copy for a link; the error wraps fs.ErrNotExist when there is none.
func (c copies) read(hostIfName string) (cp attachmentCopy, err error) {
	f, err := os.Open(c.path(hostIfName))
	if err != nil {
		return cp, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCopy))
	if err != nil {
		return cp, err
	}
	if err := json.Unmarshal(b, &cp); err != nil {
		return cp, err
	}
	if cp.Version != copyVersion {
		return cp, fmt.Errorf("version %d, want %d", cp.Version, copyVersion)
	}
	a := cp.Attachment
	if a.HostIfName != hostIfName || a.ContainerID == "" || a.IfName == "" || a.Pod.Name == "" || len(a.IPs) == 0 ||
		a.OFPort < model.PortPodMin || a.OFPort > model.PortPodMax {
		return cp, fmt.Errorf("incomplete attachment %+v", a)
	}
	return cp, nil
}

// verify returns the copy's attachment for a link of Weft's if the node confirms it: the link has the random MAC of the
// copy, and its peer is in a pod's network namespace.
func (c copies) verify(hostIfName string) (model.Attachment, error) {
	cp, err := c.read(hostIfName)
	if err != nil {
		return model.Attachment{}, fmt.Errorf("read the copy of attachment %s: %w", hostIfName, err)
	}
	link, err := netlink.LinkByName(hostIfName)
	if err != nil {
		return model.Attachment{}, fmt.Errorf("find link %s: %w", hostIfName, err)
	}
	if have := link.Attrs().HardwareAddr.String(); have != cp.HostMAC {
		return model.Attachment{}, fmt.Errorf("copy of attachment %s: link has MAC %s, want %s", hostIfName, have, cp.HostMAC)
	}
	if leadsTo(link, cp.Attachment.NetNS) {
		return cp.Attachment, nil
	}
	if _, path, err := orphanAddrs(hostIfName); err != nil {
		return model.Attachment{}, err
	} else if path == "" {
		return model.Attachment{}, fmt.Errorf("copy of attachment %s: no pod's network namespace has the other end of the "+
			"link",
			hostIfName)
	}
	return cp.Attachment, nil
}

// leadsTo reports whether the link's peer is in the network namespace at that path.
func leadsTo(link netlink.Link, path string) bool {
	if path == "" {
		return false
	}
	netns, err := os.Open(agentPath(path))
	if err != nil {
		return false
	}
	defer netns.Close()
	if checkNetns(netns, path) != nil {
		return false
	}
	_, found := addrsAtOtherEnd(netns, link)
	return found
}

// clean removes the copies of all other links, and the remains of interrupted writes.
func (c copies) clean(keep map[string]bool) error {
	files, err := os.ReadDir(string(c))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list the copies of attachments: %w", err)
	}
	var errs []error
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), copySuffix); ok && keep[name] {
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(string(c), f.Name())))
	}
	return errors.Join(errs...)
}
