// Package nodepath validates what Node objects claim. It decides which pod CIDRs belong to which node, and how packets
// reach each peer node: the transport, the next hop, the overhead, or why they cannot. Flows, routes, nftables sets,
// the MTU, policies and reports read its result (model.Path) and validate nothing again.
//
// All functions are pure. They take no lock and keep no state.
package nodepath

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// The widest pod CIDRs that one node may have. A wider one is a mistake, or an attempt to draw other traffic into a
// tunnel.
const (
	widestIPv4 = 8
	widestIPv6 = 16
)

// special holds the ranges that no pod can have an address of (RFC 6890).
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast and reserved
	netip.MustParsePrefix("::/8"),        // unspecified, loopback, IPv4-mapped
	netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// node is a Node with its rank among all nodes: of two claims the one with the lower rank wins.
type node struct {
	model.Node
	rank int
	path model.Path
}

// address is a node's InternalIP.
type address struct {
	addr netip.Addr
	node *node
}

// claim is an accepted pod CIDR.
type claim struct {
	cidr netip.Prefix
	node *node
}

// balanced is a Service's address at a load balancer.
type balanced struct {
	addr    netip.Addr
	service string // namespace/name
	created int64
}

// resolver holds the claims of all nodes. The maps are keyed by prefixes of the lengths that the pod CIDRs have, so
// that finding what overlaps a range takes one lookup for each length.
type resolver struct {
	serviceCIDRs, clusterCIDRs []netip.Prefix
	lengths                    map[bool][]int // by IPv4 or not, ascending
	accepted                   map[netip.Prefix]claim
	// inside has, for each prefix around an accepted range, one such range.
	inside map[netip.Prefix]claim
	// addrs has, for each prefix around node addresses, the address of the node with the lowest rank.
	addrs map[netip.Prefix]address
	// balanced has, for each prefix around load balancers' addresses, the one of the oldest Service. It is empty with
	// ClusterCIDRs.
	balanced map[netip.Prefix]balanced
	// keys has the node with the lowest rank of those that publish a WireGuard key.
	keys map[model.WireGuardKey]*node
}

// Resolve gives the path of every node of a snapshot, this node's included. Cost: O(n log n) for n nodes.
//
// A pod CIDR is accepted when it is a unicast range of a usable size, lies in one of ClusterCIDRs (if there are any),
// and overlaps neither a Service CIDR, nor a node's address, nor an accepted pod CIDR. Of conflicting claims this
// node's own wins, then the older Node's (creation time), then the one that is first by name. A node's address goes
// before a pod CIDR of a Node that is not older.
//
// Without ClusterCIDRs the same holds for an address that a load balancer has given a Service. External IPs take
// nothing away from a pod CIDR: any tenant may write them, and could keep nodes out of the cluster that are yet to
// come.
func Resolve(s *model.Snapshot) map[string]model.Path {
	nodes := ranked(s)
	r := resolver{
		serviceCIDRs: s.ServiceCIDRs, clusterCIDRs: s.ClusterCIDRs, lengths: map[bool][]int{},
		accepted: make(map[netip.Prefix]claim, 2*len(nodes)), inside: map[netip.Prefix]claim{},
		addrs: map[netip.Prefix]address{}, balanced: map[netip.Prefix]balanced{}, keys: map[model.WireGuardKey]*node{},
	}
	r.index(nodes)
	if len(r.clusterCIDRs) == 0 {
		r.indexBalanced(s.Services)
	}
	for _, n := range nodes {
		for _, cidr := range n.PodCIDRs {
			cidr = cidr.Masked()
			if err := r.check(cidr, n); err != nil {
				n.path.Rejected = append(n.path.Rejected, fmt.Sprintf("pod CIDR %s is not used: %v", cidr, err))
				continue
			}
			r.accept(claim{cidr, n})
			n.path.PodCIDRs = append(n.path.PodCIDRs, cidr)
		}
	}
	paths := make(map[string]model.Path, len(nodes))
	self := nodes[0]
	for _, n := range nodes {
		n.path.Addrs = n.Addrs
		r.route(s, self, n)
		paths[n.Name] = n.path
	}
	return paths
}

// route decides about the transport and the next hop of a node's path.
func (r *resolver) route(s *model.Snapshot, self, n *node) {
	path, t := &n.path, s.Transport
	local, nextHop := outerAddrs(self.Addrs, n.Addrs)
	err := t.Check()
	if n == self {
		nextHop = netip.Addr{}
	} else if err == nil {
		err = r.reachable(n, self, nextHop)
	}
	switch {
	case err == nil && n == self:
		path.Transport, path.Local, path.Overhead = t, local, t.Overhead(local)
	case err == nil:
		path.Transport, path.Local, path.NextHop = model.Tunnel(t.Encapsulation.InSwitch()), local, nextHop
		path.Overhead = path.Transport.Overhead(local)
		r.wireGuard(s, self, n)
		direct(s, self, n)
		ipip(s, self, n)
		if path.Encapsulation == model.GRE && path.Mode == model.ModeOverlay && local.Is6() && s.KernelDatapath {
			unreachable(path, errNoGRE6)
		}
	case n != self:
		path.Unreachable = err.Error()
	}
}

// errNoGRE6: the port type gre of the kernel datapath sends and receives IPv4 alone (dpif-netlink-rtnl.c of Open
// vSwitch, gretap); over IPv6 that datapath needs a port of the type ip6gre, which Weft does not make. The userspace
// datapath's gre has both families.
var errNoGRE6 = errors.New("the kernel datapath has no GRE over IPv6; set tunnelType: geneve or vxlan, or datapath: netdev")

// unreachable takes a node's transport away.
func unreachable(path *model.Path, why error) {
	path.Transport, path.Local, path.NextHop, path.Overhead = model.Transport{}, netip.Addr{}, netip.Addr{}, 0
	path.Unreachable = why.Error()
}

// PodMTU is the largest MTU in bytes of pods' interfaces with which packets on all paths fit into an underlay with this
// MTU. With no reachable node it is the one that a first peer node with this node's primary family needs.
func PodMTU(paths map[string]model.Path, underlay int) int {
	overhead := 0
	for _, path := range paths {
		overhead = max(overhead, path.Overhead)
	}
	return underlay - overhead
}

// OuterIPv6 reports whether packets on a path have an outer IPv6 header, or will have one on the path to a first peer
// node with this node's primary family.
func OuterIPv6(paths map[string]model.Path) bool {
	for _, path := range paths {
		if path.Local.Is6() {
			return true
		}
	}
	return false
}

// ranked lists this node first, then the others by age and name.
func ranked(s *model.Snapshot) []*node {
	nodes := make([]*node, 1, 1+len(s.Nodes))
	nodes[0] = &node{Node: s.Self}
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		nodes = append(nodes, &node{Node: s.Nodes[name]})
	}
	slices.SortStableFunc(nodes[1:], func(a, b *node) int { return cmp.Compare(a.Created, b.Created) })
	for i, n := range nodes {
		n.rank = i
	}
	return nodes
}

// index notes the lengths of the pod CIDRs and the addresses of all nodes.
func (r *resolver) index(nodes []*node) {
	lengths := map[bool]map[int]bool{true: {}, false: {}}
	for _, n := range nodes {
		for _, cidr := range n.PodCIDRs {
			if checkRange(cidr) == nil {
				lengths[cidr.Addr().Is4()][cidr.Bits()] = true
			}
		}
	}
	for is4, set := range lengths {
		r.lengths[is4] = slices.Sorted(maps.Keys(set))
	}
	for _, n := range nodes { // the first has the lowest rank
		if _, taken := r.keys[n.WireGuard.Key]; !taken {
			r.keys[n.WireGuard.Key] = n
		}
		for _, a := range n.Addrs {
			if n.rank > 0 && len(r.clusterCIDRs) > 0 && r.inCluster(netip.PrefixFrom(a, a.BitLen())) {
				continue // a kubelet may claim any address; one among pods takes nothing away from them
			}
			for p := range r.around(a, a.BitLen()) {
				if _, taken := r.addrs[p]; !taken {
					r.addrs[p] = address{a, n}
				}
			}
		}
	}
}

// indexBalanced notes the addresses that Services have at load balancers.
func (r *resolver) indexBalanced(services map[string]model.Service) {
	for _, s := range services {
		for _, a := range s.LoadBalancerIPs() {
			b := balanced{a, s.Name, s.Created}
			for p := range r.around(a, a.BitLen()) {
				if old, taken := r.balanced[p]; !taken || compareBalanced(b, old) < 0 {
					r.balanced[p] = b
				}
			}
		}
	}
}

func compareBalanced(a, b balanced) int {
	return cmp.Or(cmp.Compare(a.created, b.created), cmp.Compare(a.service, b.service), a.addr.Compare(b.addr))
}

// around goes through the prefixes around an address that are at most this long, the widest first.
func (r *resolver) around(a netip.Addr, longest int) func(func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		for _, bits := range r.lengths[a.Is4()] {
			if bits > longest || !yield(netip.PrefixFrom(a, bits).Masked()) {
				return
			}
		}
	}
}

func (r *resolver) accept(c claim) {
	r.accepted[c.cidr] = c
	for p := range r.around(c.cidr.Addr(), c.cidr.Bits()-1) {
		if _, taken := r.inside[p]; !taken {
			r.inside[p] = c
		}
	}
}

// covering finds the accepted pod CIDR that a range of this length at an address is in.
func (r *resolver) covering(a netip.Addr, bits int) (claim, bool) {
	for p := range r.around(a, bits) {
		if c, ok := r.accepted[p]; ok {
			return c, true
		}
	}
	return claim{}, false
}

// inCluster says whether a range is in one of ClusterCIDRs.
func (r *resolver) inCluster(cidr netip.Prefix) bool {
	return slices.ContainsFunc(r.clusterCIDRs, func(p netip.Prefix) bool {
		return p.Bits() <= cidr.Bits() && p.Contains(cidr.Addr())
	})
}

// check says why a node's pod CIDR is rejected, or nil. Ranges of lower rank have been checked before.
func (r *resolver) check(cidr netip.Prefix, n *node) error {
	if err := checkRange(cidr); err != nil {
		return err
	}
	for _, p := range r.serviceCIDRs {
		if p.Overlaps(cidr) {
			return fmt.Errorf("it overlaps the Service CIDR %s", p)
		}
	}
	if len(r.clusterCIDRs) > 0 && !r.inCluster(cidr) {
		return errors.New("it is in none of the ranges of the setting clusterCIDRs")
	}
	for _, a := range n.Addrs {
		if cidr.Contains(a) {
			return fmt.Errorf("it contains the node's own address %s", a)
		}
	}
	if a := r.addrs[cidr]; a.node != nil && n.rank != 0 {
		switch {
		case a.node.rank == 0:
			return fmt.Errorf("it contains this node's address %s", a.addr)
		case a.node.Created <= n.Created:
			return fmt.Errorf("it contains the address %s of node %s", a.addr, a.node.Name)
		}
	}
	if b, ok := r.balanced[cidr]; ok && n.rank != 0 && b.created <= n.Created {
		return fmt.Errorf("it contains the load balancer's address %s of Service %s", b.addr, b.service)
	}
	other, overlaps := r.covering(cidr.Addr(), cidr.Bits())
	if !overlaps {
		other, overlaps = r.inside[cidr]
	}
	switch {
	case !overlaps:
		return nil
	case other.node == n:
		return fmt.Errorf("it overlaps %s of the same node", other.cidr)
	case other.node.rank == 0:
		return fmt.Errorf("it overlaps this node's pod CIDR %s", other.cidr)
	case other.node.Created < n.Created:
		return fmt.Errorf("it overlaps %s of node %s, which is older", other.cidr, other.node.Name)
	}
	return fmt.Errorf("it overlaps %s of node %s, which is as old and first by name", other.cidr, other.node.Name)
}

// checkRange says why a range cannot be a pod CIDR of any node, or nil.
func checkRange(cidr netip.Prefix) error {
	is4 := cidr.Addr().Is4()
	widest := widestIPv6
	if is4 {
		widest = widestIPv4
	}
	inRange := func(p netip.Prefix) bool { return p.Overlaps(cidr) }
	switch {
	case cidr.Bits() < widest:
		return fmt.Errorf("it is wider than a /%d", widest)
	case !cidr.Contains(model.GatewayAddr(cidr)):
		return errors.New("it has no room for a gateway and a pod")
	case cidr.Addr().Is4In6() || slices.ContainsFunc(special, inRange):
		return errors.New("it is not a global unicast range")
	case slices.ContainsFunc(model.VirtualPrefixes(is4), inRange):
		return errors.New("it contains addresses that Weft uses inside each node")
	}
	return nil
}

// outerAddrs gives the outer addresses of the tunnel between two nodes: those of the family that both list first, else
// IPv4 when both have it, else IPv6. Both nodes choose the same, whatever the order of their addresses.
func outerAddrs(local, remote []netip.Addr) (from, to netip.Addr) {
	if len(local) == 0 || len(remote) == 0 {
		return from, to
	}
	if local[0].Is4() == remote[0].Is4() {
		return local[0], remote[0]
	}
	for _, is4 := range []bool{true, false} {
		ofFamily := func(a netip.Addr) bool { return a.Is4() == is4 }
		i, j := slices.IndexFunc(local, ofFamily), slices.IndexFunc(remote, ofFamily)
		if i >= 0 && j >= 0 {
			return local[i], remote[j]
		}
	}
	return from, to
}

// reachable says why no packets can be sent to a node through a next hop, or nil.
func (r *resolver) reachable(n, self *node, nextHop netip.Addr) error {
	switch {
	case len(self.Addrs) == 0:
		return errors.New("this node has no InternalIP")
	case len(n.Addrs) == 0:
		return fmt.Errorf("node %s has no InternalIP", n.Name)
	case !nextHop.IsValid():
		return fmt.Errorf("node %s has the InternalIPs %v, this node %v: a tunnel needs a common family",
			n.Name, n.Addrs, self.Addrs)
	}
	for _, a := range []netip.Addr{nextHop, n.Primary()} {
		if slices.Contains(self.Addrs, a) {
			return fmt.Errorf("node %s has the InternalIP %s of this node", n.Name, a)
		}
		if c, ok := r.covering(a, a.BitLen()); ok {
			return fmt.Errorf("node %s: its InternalIP %s is in the pod CIDR %s of node %s", n.Name, a, c.cidr, c.node.Name)
		}
	}
	switch {
	case len(n.PodCIDRs) == 0:
		return fmt.Errorf("node %s has no podCIDRs", n.Name)
	case len(n.path.PodCIDRs) == 0:
		return fmt.Errorf("node %s has no usable podCIDRs", n.Name)
	}
	return nil
}
