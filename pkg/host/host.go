// Package host keeps the node's own network right for the pods on it: the gateway interface and its addresses, the routes
// to all pods and Services, forwarding, the source addresses of what leaves the pods' network, and node ports (nftables).
//
// The kernel owns the state. What is ours there is recognised without memory, and nothing else is changed or deleted:
// routes by their protocol number, nftables by its table, addresses by being the first of their subnet on the gateway
// interface. Somebody else's route to exactly a pod CIDR or a Service's address stays, and ours is not made; that is reported.
// The caller validates pod CIDRs (nodepath.Resolve). A Host remembers what it wrote,
// but only to be quick: it looks at the kernel when it starts, from time to time, and at routes when Watch saw a change.
//
// Services cost the node's kernel an element of an nftables set each, never a rule or a route. All they need there is
// to lead packets to the switch, which balances them. As in kube-proxy's nftables mode there are no node ports at
// 127.0.0.1.
//
// The kernel decides about translation with a connection's first packet. FlushConnections makes it decide again where
// that has to be.
//
// A Host has one user, who calls Sync from one goroutine; Watch and FlushConnections may be called from others, and
// Watch runs one of its own.
//
// Not done here: a firewall of the host that drops forwarded packets by policy (Docker sets iptables' FORWARD to
// DROP) has to accept those in and out of the gateway interface itself, for no table can overrule another one's drop.
// Sync reports it. rp_filter may be strict on other links; on the gateway interface a strict one is made loose.
package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

// RouteProtocol marks our routes. The number is one that /etc/iproute2/rt_protos leaves free.
const RouteProtocol netlink.RouteProtocol = 87

// Desired is what the node's network shall be. Prefixes are masked.
type Desired struct {
	// Gateway is the name of the node's interface on the bridge.
	Gateway string
	// MTU of the gateway interface; 0 leaves it as it is.
	MTU int
	// KernelDatapath: the switch reassembles fragments with the node's kernel, within its limits.
	KernelDatapath bool
	// Address is the address of the node that its tunnel packets come from; invalid as long as it has none.
	Address netip.Addr
	// PodCIDRs are this node's ranges, at most one of each family. The first address of each is the gateway's.
	PodCIDRs []netip.Prefix
	// RemotePodCIDRs are the other nodes' ranges. Those of a family in which this node has none are not routed.
	RemotePodCIDRs []netip.Prefix
	// Nodes are the other nodes' addresses: only they may send tunnel packets, and pods' packets to them have the
	// source address of this node.
	Nodes []netip.Addr
	// Masquerade gives what local pods send to anywhere but pods the source address of the node.
	Masquerade bool
	// NoMasquerade are destinations, besides pods, that see the pods' own addresses.
	NoMasquerade []netip.Prefix
	// ServiceCIDRs are the ranges of ClusterIPs. The node's way to all of them is the switch.
	ServiceCIDRs []netip.Prefix
	// ServicePorts are ports of external and LoadBalancer addresses; what the node sends or forwards to one goes to the
	// switch. An address that is this node's own is not reached so, see ExternalIPs.
	ServicePorts []ServicePort
	// NodePortAddrs are the addresses at which there are node ports; a family without any has them at all of its addresses.
	NodePortAddrs []netip.Prefix
	// NodePorts are the ports that the node offers at its addresses; they lead to the NodePort address.
	NodePorts []NodePort
	// HostPorts lead to pods of this node.
	HostPorts []HostPort
	// ExternalIPs are ports of external and LoadBalancer addresses; they count as far as the address is this node's.
	ExternalIPs []ExternalIP
}

// compareEvery is how often Sync looks at what it has written, unless Watch saw a change. While there is much to write, it does
// so less often: at 10,000 Services a look takes longer than a Service's client should have to wait.
const (
	compareEvery     = 30 * time.Second
	compareEveryBusy = 5 * time.Minute
)

// Host applies it.
type Host struct {
	sysctl  sysctl
	routing routing
	nft     *nat
	// flushing is shared with FlushConnections.
	flushing flushing
	log      *slog.Logger

	// diverted are the routes of divert that are in the kernel; nil when that is not known.
	diverted map[diverted]route

	now      func() time.Time
	compared time.Time // when the last comparison was
	filtered error     // what that found of others' tables

	mu    sync.Mutex
	name  string // of the gateway interface, for Watch
	index int
	stale bool // Watch saw a change of what it looks at
	// staleTable: it saw one of our nftables table that was not a Sync's.
	staleTable bool

	otherTables map[string]chan struct{} // see WatchTable
}

// New returns a Host that writes kernel settings below sysctlRoot (/proc/sys, or wherever it is mounted writable) and
// translates addresses through nft.
func New(nft knftables.Interface, sysctlRoot string, log *slog.Logger) *Host {
	return &Host{
		sysctl: sysctl{root: sysctlRoot}, nft: &nat{nft: nft, layout: tableLayout},
		otherTables: map[string]chan struct{}{}, log: log, now: time.Now,
	}
}

// NFTables opens our nftables table. It needs the nft program.
func NFTables() (knftables.Interface, error) {
	nft, err := knftables.New(knftables.InetFamily, tableName)
	if err != nil {
		return nil, fmt.Errorf("open nftables table %s (is nft installed and are we root?): %w", tableName, err)
	}
	return nft, nil
}

// Sync makes everything what it shall be. It is idempotent, writes nothing that is right already, and goes on after a
// failure with what does not depend on it. Routes and elements of nftables sets may be many: what was written is remembered, and
// Sync writes what differs from that first. Then, when it is time, it compares with the kernel; routes also when Watch saw something.
func (h *Host) Sync(ctx context.Context, d Desired) (Result, error) {
	c := &changes{}
	d, unusable := d.normal()
	if err := d.check(); err != nil {
		return Result{}, fmt.Errorf("sync host network: %w", err)
	}
	h.mu.Lock()
	h.name = d.Gateway
	stale, staleTable := h.stale, h.staleTable
	h.stale, h.staleTable = false, false
	h.mu.Unlock()
	started, first := h.now(), h.compared.IsZero() // at first nothing is known
	err := h.apply(ctx, c, d, first, first)
	age := started.Sub(h.compared)
	due := age >= compareEveryBusy || age >= compareEvery && len(c.list) == 0
	if !first && (stale || staleTable || due) {
		err = h.apply(ctx, c, d, true, due || staleTable)
	}
	if err != nil && staleTable {
		h.mu.Lock()
		h.staleTable = true
		h.mu.Unlock()
	}
	if first || due {
		h.compared = started
	}
	if first || due || staleTable {
		h.filtered = filteredForwarding(d)
	}
	result := Result{Changed: c.list, Filtered: h.filtered, Unrouted: errors.Join(append(c.unrouted, unusable...)...)}
	if err != nil {
		return result, fmt.Errorf("sync host network: %w", err)
	}
	return result, nil
}

// Result is what a Sync did.
type Result struct {
	// Changed is what it had to change, in words.
	Changed []string
	// Unrouted says which remote pod CIDRs and addresses of Services could not be routed, and which ports of Services cannot be
	// offered, and why. The rest of the node's network does not suffer, so it is no failure of Sync.
	Unrouted error
	// Filtered names tables of others that may drop what the node forwards, as of the last comparison.
	Filtered error
}

func (h *Host) apply(ctx context.Context, c *changes, d Desired, compareRoutes, compareTable bool) error {
	c.unrouted = nil
	return errors.Join(
		h.forwarding(c, d),
		h.gateway(c, d, compareRoutes),
		h.table(ctx, c, d, compareTable),
	)
}

func (h *Host) table(ctx context.Context, c *changes, d Desired, compare bool) error {
	before, first := len(c.list), h.nft.rules == nil
	err := h.nft.sync(ctx, c, d, compare)
	if err == nil {
		h.flushing.written(d, first || len(c.list) > before, h.nft.gone)
		h.nft.gone = goneTranslations{}
	}
	return err
}

func (h *Host) gateway(c *changes, d Desired, compare bool) error {
	before := len(c.list)
	link, err := h.link(c, d)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.index = link.Attrs().Index
	h.mu.Unlock()
	if err := h.linkSysctls(c, d); err != nil {
		return err
	}
	if err := addresses(c, link, d); err != nil {
		return err
	}
	// Routes come and go with the link and its addresses.
	compare = compare || len(c.list) > before
	return errors.Join(h.routing.sync(c, link, d, compare), h.divert(c, link, d, compare))
}

// changes collects what was changed, and the remote routes that could not be made.
type changes struct {
	list     []string
	unrouted []error
}

func (c *changes) add(format string, args ...any) {
	c.list = append(c.list, fmt.Sprintf(format, args...))
}

// normal is a copy, as far as it is remembered, with what is for Services in order. It says what of that was left out.
func (d Desired) normal() (Desired, []error) {
	d.PodCIDRs, d.RemotePodCIDRs = slices.Clone(d.PodCIDRs), slices.Clone(d.RemotePodCIDRs)
	d.ServiceCIDRs = slices.Clone(d.ServiceCIDRs)
	errs := append(d.sortServices(), d.sortHostPorts()...)
	return d, errs
}

func (d Desired) check() error {
	if d.Gateway == "" {
		return errors.New("the gateway interface has no name")
	}
	for _, p := range slices.Concat(d.PodCIDRs, d.RemotePodCIDRs, d.NoMasquerade, d.ServiceCIDRs, d.NodePortAddrs) {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("%v is not a masked prefix", p)
		}
	}
	for i, p := range d.PodCIDRs {
		for _, q := range d.PodCIDRs[:i] {
			if p.Addr().Is4() == q.Addr().Is4() {
				return fmt.Errorf("the node has two pod CIDRs of one family, %v and %v", q, p)
			}
		}
	}
	return nil
}

// local is this node's range of a family, and whether it has one.
func (d Desired) local(is4 bool) (netip.Prefix, bool) {
	for _, p := range d.PodCIDRs {
		if p.Addr().Is4() == is4 {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// gatewayPrefix is the gateway's address with the length of its pod CIDR.
func gatewayPrefix(podCIDR netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(model.GatewayAddr(podCIDR), podCIDR.Bits())
}
