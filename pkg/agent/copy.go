package agent

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

const (
	copyName = "objects.json.gz"
	// copyVersion is that of the file's content. Another one is not read.
	copyVersion = 2
	// maxCopy bounds the file, which is in memory (a tmpfs); maxCopyPlain bounds what it may unpack to.
	maxCopy      = 32 << 20
	maxCopyPlain = 512 << 20
)

// copyHead begins the file; a copyRecord for each object follows. The last one is the end.
type copyHead struct {
	Version int       `json:"version"`
	Node    string    `json:"node"`
	Time    time.Time `json:"time"`
}

type copyRecord struct {
	Self       *model.Node       `json:"self,omitempty"`
	Node       *model.Node       `json:"node,omitempty"`
	Service    *model.Service    `json:"service,omitempty"`
	Policy     *model.Policy     `json:"policy,omitempty"`
	Attachment *model.Attachment `json:"attachment,omitempty"`
	End        *copyEnd          `json:"end,omitempty"`
}

type copyEnd struct {
	Records      int                     `json:"records"`
	ServiceCIDRs []netip.Prefix          `json:"serviceCIDRs"`
	NewPodCIDRs  []netip.Prefix          `json:"newPodCIDRs,omitempty"`
	OtherProxies map[string][]netip.Addr `json:"otherProxies,omitempty"`
}

// copyFile is the file of the copy: in the directory of the CNI socket, which is root's alone and lasts until the node
// restarts, as its pods do.
func (a *Agent) copyFile() string { return filepath.Join(filepath.Dir(a.opt.CNISocket), copyName) }

// writeCopy replaces the file in one step. On failure the file from before stays.
func writeCopy(file, node string, c state.Copy) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", file, err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), copyName+".") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // there is none after the rename
	packed, err := gzip.NewWriterLevel(&bounded{f, maxCopy}, gzip.BestSpeed)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	err = encodeCopy(json.NewEncoder(packed), node, c)
	if err := errors.Join(err, packed.Close(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func encodeCopy(out *json.Encoder, node string, c state.Copy) error {
	err := out.Encode(copyHead{copyVersion, node, c.Time})
	records := 0
	put := func(r copyRecord) {
		records++
		if err == nil {
			err = out.Encode(r)
		}
	}
	put(copyRecord{Self: &c.Self})
	for i := range c.Nodes {
		put(copyRecord{Node: &c.Nodes[i]})
	}
	for i := range c.Services {
		put(copyRecord{Service: &c.Services[i]})
	}
	for i := range c.Policies {
		put(copyRecord{Policy: &c.Policies[i]})
	}
	for i := range c.Attachments {
		put(copyRecord{Attachment: &c.Attachments[i]})
	}
	put(copyRecord{End: &copyEnd{records, c.ServiceCIDRs, c.NewPodCIDRs, c.OtherProxies}})
	return err
}

// bounded fails a write beyond its limit.
type bounded struct {
	to   io.Writer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, fmt.Errorf("the copy is larger than %d MiB", maxCopy>>20)
	}
	return b.to.Write(p)
}

// readCopy reads the file. An error other than os.ErrNotExist names a file that cannot be used.
func readCopy(file, node string) (c state.Copy, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read %s: %w", file, err)
		}
	}()
	f, err := os.Open(file)
	if err != nil {
		return c, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return c, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || int(stat.Uid) != os.Geteuid() {
		return c, fmt.Errorf("it is not a file of this user alone (mode %s)", info.Mode())
	}
	packed, err := gzip.NewReader(f)
	if err != nil {
		return c, err
	}
	// The whole file is read before any of it counts: the checksum is at its end.
	plain := &io.LimitedReader{R: packed, N: maxCopyPlain}
	if c, err = decodeCopy(json.NewDecoder(plain), node); err != nil {
		return state.Copy{}, err
	}
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return state.Copy{}, err
	}
	return c, nil
}

func decodeCopy(in *json.Decoder, node string) (c state.Copy, err error) {
	var head copyHead
	if err := in.Decode(&head); err != nil {
		return c, err
	}
	if head.Version != copyVersion || head.Node != node {
		return c, fmt.Errorf("it has version %d and is of node %q; this is version %d, node %q",
			head.Version, head.Node, copyVersion, node)
	}
	c.Time = head.Time
	for records := 0; ; records++ {
		var r copyRecord
		if err := in.Decode(&r); err != nil {
			return c, err
		}
		switch {
		case r.Self != nil:
			c.Self = *r.Self
		case r.Node != nil:
			c.Nodes = append(c.Nodes, *r.Node)
		case r.Service != nil:
			c.Services = append(c.Services, *r.Service)
		case r.Policy != nil:
			c.Policies = append(c.Policies, *r.Policy)
		case r.Attachment != nil:
			c.Attachments = append(c.Attachments, *r.Attachment)
		case r.End == nil:
			return c, errors.New("it has an empty record")
		case r.End.Records != records || c.Self.Name != node:
			return c, fmt.Errorf("it ends after %d of %d records", records, r.End.Records)
		default:
			c.ServiceCIDRs, c.NewPodCIDRs, c.OtherProxies = r.End.ServiceCIDRs, r.End.NewPodCIDRs, r.End.OtherProxies
			return c, nil
		}
	}
}
