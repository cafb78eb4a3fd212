package nodepath

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// direct decides whether packets go to and come from a reachable node without a tunnel.
//
// Each node says whether it receives such packets, and others send them to those nodes alone. So while a cluster
// changes its transport node by node, each pair of nodes uses a form that the receiver accepts. Whether two nodes are
// neighbors follows from what both publish about their links, never from one node's own view, so both decide alike.
func direct(s *model.Snapshot, self, n *node) {
	path, mode := &n.path, s.Transport.Mode
	if s.Transport.Strict || mode == model.ModeOverlay && !self.ReceivesDirect && !s.ReceiveGrace {
		return
	}
	hops, err := hops(s.Transport.FabricRoutes, self, n)
	if err == nil {
		path.Hops, path.ReceivesDirect = hops, true
	}
	switch {
	case mode == model.ModeOverlay || path.Routed != "":
		return
	case !n.ReceivesDirect:
		path.Why = fmt.Sprintf("node %s does not publish that it receives packets without a tunnel", n.Name)
		return
	case err != nil && mode == model.ModeDirect:
		unreachable(path, fmt.Errorf("%w; set transport: hybrid, or directRoutes: none where the network has the routes", err))
		return
	case err != nil:
		path.Why = err.Error()
		return
	}
	path.Routed = model.ModeDirect
	cidrs := make([]netip.Prefix, len(hops))
	for i, hop := range hops {
		cidrs[i] = hop.CIDR
	}
	if path.Why = notRouted(s, cidrs); path.Why == "" {
		path.Mode, path.FabricRoutes, path.Overhead = model.ModeDirect, s.Transport.FabricRoutes, 0
	}
}

// notRouted says which of the pod CIDRs the node's kernel still leads to the switch, or "".
func notRouted(s *model.Snapshot, cidrs []netip.Prefix) string {
	for _, cidr := range cidrs {
		if _, routed := slices.BinarySearchFunc(s.Routed, cidr, netip.Prefix.Compare); !routed {
			return fmt.Sprintf("the node's kernel does not route %s to it yet", cidr)
		}
	}
	return ""
}

// hops are the ways to all pod CIDRs of a node, or an error. Two nodes are neighbors in a family when both publish a
// link with an address in the same subnet.
func hops(fabric bool, self, n *node) ([]model.Hop, error) {
	list := make([]model.Hop, 0, len(n.path.PodCIDRs))
	for _, cidr := range n.path.PodCIDRs {
		is4 := cidr.Addr().Is4()
		local, here := uplink(&self.Node, is4)
		remote, there := uplink(&n.Node, is4)
		hop := model.Hop{CIDR: cidr, Local: local.Prefix.Addr(), NextHop: remote.Prefix.Addr(), MAC: remote.MAC}
		own, hasOwn := ofFamily(self.path.PodCIDRs, is4)
		switch {
		case !hasOwn: // no packets of the family
			continue
		case !here:
			return nil, fmt.Errorf("this node publishes no %s address of its underlay", familyName(is4))
		case fabric:
			hop.NextHop, hop.MAC = netip.Addr{}, model.MAC{}
		case !there:
			return nil, fmt.Errorf("node %s publishes no %s address of its underlay", n.Name, familyName(is4))
		case local.Prefix.Masked() != remote.Prefix.Masked():
			return nil, fmt.Errorf("node %s is in the subnet %s, this node in %s", n.Name, remote.Prefix.Masked(),
				local.Prefix.Masked())
		case own.Bits() != cidr.Bits(): // see the set neighbors of pkg/host
			return nil, fmt.Errorf("the pod CIDR %s of node %s has another length than this node's %s", cidr, n.Name, own)
		}
		list = append(list, hop)
	}
	return list, nil
}

// uplink is a node's published link of a family. It counts only with one of the node's own addresses.
func uplink(n *model.Node, is4 bool) (model.Uplink, bool) {
	for _, u := range n.Underlay {
		if u.Prefix.Addr().Is4() == is4 && slices.Contains(n.Addrs, u.Prefix.Addr()) {
			return u, true
		}
	}
	return model.Uplink{}, false
}

func ofFamily(list []netip.Prefix, is4 bool) (netip.Prefix, bool) {
	if i := slices.IndexFunc(list, func(p netip.Prefix) bool { return p.Addr().Is4() == is4 }); i >= 0 {
		return list[i], true
	}
	return netip.Prefix{}, false
}

func familyName(is4 bool) string {
	if is4 {
		return "IPv4"
	}
	return "IPv6"
}
