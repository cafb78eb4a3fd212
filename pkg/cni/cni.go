// Package cni is the agent's side of CNI: it serves the requests that weft-cni forwards from the container runtime. An
// ADD allocates the pod's addresses and switch port, creates its veth, and succeeds once the port is on the bridge and
// the pod's flows are programmed.
//
// State: the external_ids of the bridge's ports (see Ports) are the persistent record of the attachments; copies of
// them are in files below /run (copies.go). Recover fills the Server's allocations from these records. The Server owns
// the allocations and guards them with a mutex that is never held across calls into the kernel, OVSDB or the flow loop.
//
// Each request runs on its own goroutine. Requests for the same attachment are serialized; all others run in parallel.
// A thread that enters a pod's network namespace does no other work until it has returned.
package cni

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

// Ports gives the CNI server access to the bridge's ports. *ovsdb.Client implements it.
type Ports interface {
	// AddPort adds the attachment's port and records the whole attachment in its external_ids, in one transaction. It
	// blocks until the switch has the port under the attachment's OpenFlow number.
	AddPort(ctx context.Context, att model.Attachment) error
	// RemovePort removes the port. Idempotent.
	RemovePort(ctx context.Context, hostIfName string) error
	// SetLastIPs records the most recently allocated addresses; LastIPs reads them.
	SetLastIPs(ctx context.Context, ips []netip.Addr) error
	LastIPs(ctx context.Context) ([]netip.Addr, error)
	// Attachments returns the attachments that AddPort recorded, and the pods' ports whose record is invalid.
	Attachments(ctx context.Context) ([]model.Attachment, []ovsdb.BadPort, error)
}

// Flows is the loop that compiles flows and programs the switch.
type Flows interface {
	// Attach blocks until the pod's flows are programmed.
	Attach(ctx context.Context, att model.Attachment) error
	// Detach blocks until the pod's flows are deleted. Idempotent.
	Detach(ctx context.Context, key model.AttachmentKey) error
	// Check returns nil when the pod's flows are programmed, and otherwise the reason why not. It does not wait.
	Check(ctx context.Context, key model.AttachmentKey) error
}

// Settings are the node's current settings for its pods.
type Settings struct {
	// NotReady is the reason why the node cannot attach pods; empty when it can.
	NotReady string
	// Degraded is the reason why an ADD would have to wait, for example that ovs-vswitchd restarts. STATUS reports it
	// to the runtime; an ADD still waits, because the switch may be back at any moment.
	Degraded string
	// NoAddresses is the reason why no pod may get an address of PodCIDRs; empty when pods may. Only ADD fails then.
	NoAddresses string
	// PodCIDRs are the node's ranges, at most one of each family.
	PodCIDRs []netip.Prefix
	// MTU of the pods' interfaces, in bytes.
	MTU int
	// UserspaceDatapath is set with datapath_type=netdev, which needs complete checksums from the pods.
	UserspaceDatapath bool
}

func (s Settings) unready() string {
	if s.NotReady == "" && len(s.PodCIDRs) == 0 {
		return "the node has no pod CIDR yet"
	}
	return s.NotReady
}

// The link groups (IFLA_GROUP) that mark the node's ends of Weft's veths. The message that creates a link sets its
// group, so a link is recognizable at every moment. A link in GroupAdding belongs to an ADD that has not finished;
// after a restart of the agent, to one that never will. Config.FilterPodLinks matches links by group, too.
const (
	GroupAttached = model.LinkGroupAttached
	GroupAdding   = model.LinkGroupAdding
)

// Weft's own error codes; docs/cni.md explains them to operators. CNI reserves codes below 100.
const (
	ErrAlreadyAttached uint = 100
	ErrPoolExhausted   uint = 101
	ErrDamaged         uint = 102
)

// errNotAvailable is the code of STATUS for "cannot service ADD requests" (CNI 1.1.0).
const errNotAvailable uint = 50

func errorf(code uint, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}
