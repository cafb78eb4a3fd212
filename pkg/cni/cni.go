// Package cni is the agent's side of CNI: it answers what weft-cni forwards from the container runtime. It gives a pod
// its addresses and its switch port, makes its veth, and has the bridge's port and the pod's flows realised before it
// says so.
//
// State: the external_ids that Ports keeps are the lasting record of an attachment; copies of them are
// below /run (copies.go). The Server's book is filled from them by Recover, owned by the Server, and guarded by one mutex that is never held over a call into the kernel,
// OVSDB or the flow loop. Every request runs on its own goroutine; requests for one attachment exclude each other, all
// others run in parallel. Threads that enter a pod's network namespace serve nothing else meanwhile.
package cni

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

// Ports is the bridge, as the CNI server needs it: an *ovsdb.Client.
type Ports interface {
	// AddPort adds the attachment's port and records the whole attachment in its external_ids, in one transaction. It
	// returns when the switch has the port under the OpenFlow number that the attachment asks for.
	AddPort(ctx context.Context, att model.Attachment) error
	// RemovePort removes the port; one that does not exist is no error.
	RemovePort(ctx context.Context, hostIfName string) error
	// SetLastIPs records the addresses that were given last, LastIPs reads them.
	SetLastIPs(ctx context.Context, ips []netip.Addr) error
	LastIPs(ctx context.Context) ([]netip.Addr, error)
	// Attachments reads back what AddPort recorded, and names the pods' ports whose record cannot be read.
	Attachments(ctx context.Context) ([]model.Attachment, []ovsdb.BadPort, error)
}

// Flows is the loop that compiles and programs.
type Flows interface {
	// Attach returns when the pod's flows are realised in the switch.
	Attach(ctx context.Context, att model.Attachment) error
	// Detach returns when the pod's flows are gone. One that was never attached is no error.
	Detach(ctx context.Context, key model.AttachmentKey) error
	// Realised returns nil when the pod's flows are in the switch, and otherwise what is wrong.
	Realised(ctx context.Context, key model.AttachmentKey) error
}

// Settings is what the node currently gives its pods.
type Settings struct {
	// NotReady says why the node cannot connect pods now; empty when it can.
	NotReady string
	// Degraded says why an ADD would have to wait now: the switch is away for the moment. STATUS tells the runtime; an ADD
	// still waits, because the switch may be back at once.
	Degraded string
	// NoAddresses says why no pod may get an address of PodCIDRs; empty when pods may. An ADD fails, all else goes on.
	NoAddresses string
	// PodCIDRs are the ranges of the node, at most one of each family.
	PodCIDRs []netip.Prefix
	// MTU of the pods' interfaces.
	MTU int
	// UserspaceDatapath is set for datapath_type=netdev, which needs complete checksums from the pods.
	UserspaceDatapath bool
}

func (s Settings) unready() string {
	if s.NotReady == "" && len(s.PodCIDRs) == 0 {
		return "the node has no pod CIDR yet"
	}
	return s.NotReady
}

// The link groups (IFLA_GROUP) that mark the node's ends of our veths: they are set in the message that makes the link,
// so there is no moment in which a link of ours could not be recognised. A link in GroupAdding belongs to an ADD that has
// not finished; after a restart of the agent that means: never will.
// The packet filter knows the links by their group, too; see Guard.
const (
	GroupAttached uint32 = 0x77656674 // "weft"
	GroupAdding   uint32 = GroupAttached + 1
)

// Error codes of our own; docs/cni.md explains them to operators. CNI reserves those below 100.
const (
	ErrAlreadyAttached uint = 100
	ErrPoolExhausted   uint = 101
	ErrDamaged         uint = 102
)

// errNotAvailable is STATUS's code for "cannot service ADD requests" (CNI 1.1.0).
const errNotAvailable uint = 50

func errorf(code uint, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}
