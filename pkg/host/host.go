// Package host configures the host's network for the pods on it: the gateway interface and its addresses, routes to all
// pods and Services, forwarding, the source addresses of packets that leave the pod network, and node ports (nftables).
//
// The kernel holds the state. Weft's part of it is recognizable without memory, and nothing else is changed or deleted:
// routes by their protocol number, nftables by the table, addresses by being the first of their subnet on the gateway
// interface. Routes may lead through uplinks, of which nothing else is changed. A foreign route to exactly a pod
// CIDR or a Service's address stays, Weft's route is not added, and the conflict is reported. The caller validates pod
// CIDRs (nodepath.Resolve). A Host remembers what it wrote only to save time (see tracker): it compares with the kernel
// when it starts, periodically, and after changes that Watch sees.
//
// Each Service costs the kernel elements of nftables sets, never a rule or a route. They lead packets to the switch,
// which balances them. As in kube-proxy's nftables mode, there are no node ports at 127.0.0.1.
//
// The kernel decides about NAT with a connection's first packet. FlushConnections removes connections whose decision is
// outdated.
//
// One goroutine calls Sync and FilterPodLinks. Watch and FlushConnections may be called from others, and Watch runs a
// goroutine of its own.
//
// Out of scope: a host firewall that drops forwarded packets by policy (Docker sets iptables' FORWARD to DROP) must
// accept those from and to the gateway interface itself, because no table can overrule another table's drop. Sync
// reports it. rp_filter may be strict on other links; on the gateway interface Sync changes strict to loose.
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
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

// RouteProtocol marks Weft's routes. /etc/iproute2/rt_protos does not use the number.
const RouteProtocol netlink.RouteProtocol = 87

// Desired is the desired network configuration of the node. Prefixes are masked.
type Desired struct {
	// Gateway is the name of the node's interface on the bridge.
	Gateway string
	// MTU of the gateway interface in bytes; 0 leaves it unchanged.
	MTU int
	// KernelDatapath: the switch reassembles fragments with the node's kernel, within its limits.
	KernelDatapath bool
	// Address is the source address of the node's tunnel packets; invalid while the node has none.
	Address netip.Addr
	// PodCIDRs are this node's ranges, at most one of each family. The gateway has the first address of each.
	PodCIDRs []netip.Prefix
	// Peers are the paths to the peer nodes, unreachable ones too. Their pod CIDRs of a family without a local range
	// get no routes. Those of a path are led to its Hops, to a device of IPIP or WireGuard, or to the switch, as
	// Routed says. Only the nodes' addresses may send tunnel packets, only their pods packets without a tunnel, and
	// pods' packets to these addresses are masqueraded.
	Peers []model.Path
	// WireGuard is the device to peer nodes; nil for none.
	WireGuard *WireGuard
	// IPIP: the node accepts packets of its pods in IPIP, and may send such.
	IPIP bool
	// Strict: what travels between pods of two nodes without encryption is dropped.
	Strict bool
	// wireGuard is the index of the device, 0 without one; Sync finds it. ipip are those of the devices for IPIP, by name.
	wireGuard int
	ipip      map[string]int
	// uplinks are the links that carry the addresses Local of Hops; Sync finds them.
	uplinks map[netip.Addr]uplink
	// Masquerade gives packets of local pods to destinations outside the pod network the node's source address.
	Masquerade bool
	// NoMasquerade are destinations, in addition to pods, that see pods' own addresses.
	NoMasquerade []netip.Prefix
	// ServiceCIDRs are the ranges of ClusterIPs. The node routes all of them to the switch.
	ServiceCIDRs []netip.Prefix
	// ServicePorts are ports of external IPs and load balancers' addresses; packets that the node sends or forwards to
	// them go to the switch. Addresses of this node need ExternalIPs instead.
	ServicePorts []ServicePort
	// NodePortAddrs are the addresses that serve node ports; a family without any serves them at all its addresses.
	NodePortAddrs []netip.Prefix
	// NodePorts are the node ports; they lead to the NodePort address.
	NodePorts []NodePort
	// HostPorts lead to pods of this node.
	HostPorts []HostPort
	// ExternalIPs are ports of external IPs and load balancers' addresses; they apply only while the address is this
	// node's own.
	ExternalIPs []ExternalIP
}

// compareEvery is the interval at which Sync compares with the kernel, unless Watch saw a change. While Sync has
// changes to write, the interval is compareEveryBusy: with 10,000 Services a comparison takes longer than a client of a
// new Service should wait.
const (
	compareEvery     = 30 * time.Second
	compareEveryBusy = 5 * time.Minute
)

// Host applies a Desired to the kernel.
type Host struct {
	sysctl sysctl
	routes *tracker[routeKey, route]
	rules  *tracker[ruleKey, struct{}]
	nft    *nat
	// flushing is shared with FlushConnections.
	flushing flushing
	log      *slog.Logger

	now      func() time.Time
	compared time.Time // time of the last comparison
	filtered error     // its result about other programs' tables
	// endpoints are those of the WireGuard peers as they were written last.
	endpoints map[wgtypes.Key]netip.AddrPort

	mu    sync.Mutex
	name  string // of the gateway interface
	index int    // the same
	dirty bool   // Watch saw a change of links, addresses or routes
	// dirtyTable: Watch saw a change of Weft's nftables table by another program.
	dirtyTable bool
}

// New returns a Host that writes sysctls below sysctlRoot (a writable mount of /proc/sys) and NAT rules through nft.
func New(nft knftables.Interface, sysctlRoot string, log *slog.Logger) *Host {
	return &Host{
		sysctl: sysctl{root: sysctlRoot}, nft: newNAT(nft, tableLayout), log: log, now: time.Now,
		routes: newTracker[routeKey, route](compareRouteKeys), rules: newTracker[ruleKey, struct{}](nil),
	}
}

// NFTables opens Weft's nftables table. It needs the nft program.
func NFTables() (knftables.Interface, error) {
	nft, err := knftables.New(knftables.InetFamily, tableName)
	if err != nil {
		return nil, fmt.Errorf("open nftables table %s (is nft installed, and does the agent run as root?): %w", tableName,
			err)
	}
	return nft, nil
}

// Sync applies the desired configuration. It is idempotent and does not rewrite what is in sync. After an error it
// continues with the independent parts, and returns all errors; the next call retries. Routes and set elements may be
// many, so Sync first writes the difference to what it remembers. Then, when due, it compares with the kernel:
// everything at an interval, the table or the routes also after a change that Watch saw.
func (h *Host) Sync(ctx context.Context, d Desired) (Result, error) {
	c := &changes{}
	d, invalid := d.normalized()
	if err := d.check(); err != nil {
		return Result{}, fmt.Errorf("sync host network: %w", errors.Join(err, h.FilterPodLinks(ctx)))
	}
	uplinks, missing, err := findUplinks(d)
	if err != nil {
		return Result{}, fmt.Errorf("sync host network: %w", errors.Join(err, h.FilterPodLinks(ctx)))
	}
	d.uplinks, invalid = uplinks, append(invalid, missing...)
	h.mu.Lock()
	h.name = d.Gateway
	dirty, dirtyTable := h.dirty, h.dirtyTable
	h.dirty, h.dirtyTable = false, false
	h.mu.Unlock()
	started, first := h.now(), h.compared.IsZero() // at first nothing is known
	err = h.apply(ctx, c, d, first, first)
	age := started.Sub(h.compared)
	due := age >= compareEveryBusy || age >= compareEvery && len(c.list) == 0
	if !first && (dirty || dirtyTable || due) {
		err = h.apply(ctx, c, d, true, due || dirtyTable)
	}
	if err != nil && dirtyTable {
		h.mu.Lock()
		h.dirtyTable = true
		h.mu.Unlock()
	}
	if first || due {
		h.compared = started
	}
	if first || due || dirtyTable {
		h.filtered = filteredForwarding(d)
	}
	result := Result{Changed: c.list, Filtered: h.filtered, WireGuard: c.wireGuard, IPIP: c.ipip,
		Unrouted: errors.Join(append(c.unrouted, invalid...)...)}
	if err != nil {
		return result, fmt.Errorf("sync host network: %w", err)
	}
	return result, nil
}

// Result is the outcome of a Sync.
type Result struct {
	// Changed describes each change.
	Changed []string
	// Unrouted names the remote pod CIDRs, Service addresses and Service ports that could not be configured, and the
	// reasons. The rest of the configuration is applied, so this is not an error of Sync.
	Unrouted error
	// WireGuard is the error of the device: it is missing, or lacks a part of the configuration. Sync does not return it.
	WireGuard error
	// IPIP is the error of its devices: one is missing. Sync does not return it.
	IPIP error
	// Filtered names other programs' tables that may drop packets that the node forwards, as of the last comparison.
	Filtered error
}

func (h *Host) apply(ctx context.Context, c *changes, d Desired, compareRoutes, compareTable bool) error {
	c.unrouted = nil
	before := len(c.list)
	d.wireGuard, c.wireGuard = h.syncWireGuard(c, d)
	d.ipip, c.ipip = h.syncIPIP(c, d)
	return errors.Join(
		h.syncForwarding(c, d),
		h.syncGateway(c, d, compareRoutes || len(c.list) > before),
		h.syncTable(ctx, c, d, compareTable),
	)
}

func (h *Host) syncTable(ctx context.Context, c *changes, d Desired, compare bool) error {
	before, first := len(c.list), h.nft.rules == ""
	if err := h.nft.sync(ctx, c, d, compare); err != nil {
		return errors.Join(err, h.FilterPodLinks(ctx)) // which does not depend on what the table cannot hold
	}
	h.flushing.tableWritten(d, first || len(c.list) > before, h.nft.removed)
	h.nft.removed = removedTranslations{}
	return nil
}

func (h *Host) syncGateway(c *changes, d Desired, compare bool) error {
	before := len(c.list)
	link, err := h.syncLink(c, d)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.index = link.Attrs().Index
	h.mu.Unlock()
	if err := h.linkSysctls(c, d); err != nil {
		return err
	}
	if err := syncAddresses(c, link, d); err != nil {
		return err
	}
	// Routes are deleted with the link and its addresses.
	compare = compare || len(c.list) > before
	return errors.Join(h.syncRoutes(c, d, link.Attrs().Index, compare), h.syncRules(c, d, compare))
}

// changes collects the changes, and the errors about remote routes that could not be added.
type changes struct {
	list            []string
	unrouted        []error
	wireGuard, ipip error
}

func (c *changes) add(format string, args ...any) {
	c.list = append(c.list, fmt.Sprintf(format, args...))
}

// normalized returns a copy of the remembered fields, with the Service fields sorted, and an error for each invalid
// entry, which it removes.
func (d Desired) normalized() (Desired, []error) {
	d.PodCIDRs, d.Peers = slices.Clone(d.PodCIDRs), slices.Clone(d.Peers)
	d.ServiceCIDRs = slices.Clone(d.ServiceCIDRs)
	errs := append(d.sortServices(), sortPorts(&d.HostPorts)...)
	return d, errs
}

func (d Desired) check() error {
	if d.Gateway == "" {
		return errors.New("the gateway interface has no name")
	}
	all := slices.Concat(d.PodCIDRs, d.peerPodCIDRs(), d.NoMasquerade, d.ServiceCIDRs, d.NodePortAddrs)
	for _, p := range all {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("invalid CIDR %v: not a masked prefix", p)
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

// local is this node's range of a family; false when it has none.
func (d Desired) local(is4 bool) (netip.Prefix, bool) {
	for _, p := range d.PodCIDRs {
		if p.Addr().Is4() == is4 {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// gatewayPrefix is the gateway's address with the prefix length of the pod CIDR.
func gatewayPrefix(podCIDR netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(model.GatewayAddr(podCIDR), podCIDR.Bits())
}
