package lab

import (
	"context"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/test/lab/sandbox"
)

// outsideName is what people call the host on the underlay that is not a node.
const outsideName = "outside"

// routerName is what people call the router between the segments of the underlay.
const routerName = "router"

// startOutside brings up a host beside the nodes, for what comes from beyond the cluster.
func (l *Lab) startOutside(ctx context.Context) (err error) {
	if l.outside, err = l.group.Start(outsideName, sandbox.Files{}); err != nil {
		return err
	}
	if err := l.datapath.Attach(ctx, l.underlay[0], l.outside); err != nil {
		return err
	}
	return l.datapath.Address(l.outside, l.opt.Family.member(outside), l.gateways(0))
}

// routeOutside gives the host outside ways to new LoadBalancer and external addresses, through the first node, as a
// router would have them. They are the host's from then on: a person may change them.
func (l *Lab) routeOutside(ctx context.Context) error {
	var want []netip.Addr
	for _, s := range l.services() {
		for _, addr := range externalAddrs(s) {
			via, ok := l.nodes[0].addr(addr.Is4())
			if ok && !slices.ContainsFunc(l.nodes, func(n *node) bool {
				own, ok := n.addr(addr.Is4())
				return ok && own == addr
			}) {
				want = append(want, addr)
				if !l.routed[addr] {
					if _, err := l.outside.Run(ctx, "ip", "route", "replace", addr.String(), "via", via.String()); err != nil {
						return err
					}
				}
			}
		}
	}
	for addr := range l.routed {
		if !slices.Contains(want, addr) {
			if err := l.unrouteOutside(ctx, addr); err != nil {
				return err
			}
		}
	}
	l.routed = map[netip.Addr]bool{}
	for _, addr := range want {
		l.routed[addr] = true
	}
	return nil
}

// unrouteOutside takes away the host's way to an address that is not in use any more, if it still exists.
func (l *Lab) unrouteOutside(ctx context.Context, addr netip.Addr) error {
	family := "-6"
	if addr.Is4() {
		family = "-4"
	}
	there, err := l.outside.Run(ctx, "ip", family, "route", "show", "exact", addr.String())
	if err == nil && there != "" {
		_, err = l.outside.Run(ctx, "ip", family, "route", "del", addr.String())
	}
	return err
}

// addr is the node's address of a family.
func (n *node) addr(is4 bool) (netip.Addr, bool) {
	for _, prefix := range n.underlay {
		if prefix.Addr().Is4() == is4 {
			return prefix.Addr(), true
		}
	}
	return netip.Addr{}, false
}
