package host

import (
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// What the host network takes from the paths to peer nodes: routes, nftables sets, and what conntrack entries should
// look like because of them.

// peerPodCIDRs are the pod CIDRs of all peer nodes, in the order of Peers.
func (d Desired) peerPodCIDRs() []netip.Prefix {
	list := make([]netip.Prefix, 0, 2*len(d.Peers))
	for _, path := range d.Peers {
		list = append(list, path.PodCIDRs...)
	}
	return list
}

// routedToSwitch are the ranges that the node's routes lead to the switch, without this node's pods and without the
// addresses of single Services.
func (d Desired) routedToSwitch(is4 bool) ranges {
	return disjoint(slices.Concat(d.toSwitch(), d.ServiceCIDRs, model.VirtualPrefixes(is4)))
}

// toSwitch are the pod CIDRs of peer nodes that are routed to the switch.
func (d Desired) toSwitch() []netip.Prefix {
	var list []netip.Prefix
	for _, path := range d.Peers {
		if path.Routed == "" {
			list = append(list, path.PodCIDRs...)
		}
	}
	return list
}

// pods are the ranges of all pods and gateways. On an uplink, packets arrive from the neighbors alone. Ranges inside
// others are removed, as in direct.
func pods(d Desired, is4 bool) []element {
	return prefixElements(slices.Concat(d.PodCIDRs, d.peerPodCIDRs()), is4)
}

// nodes are the peer nodes' addresses.
func nodes(d Desired, is4 bool) []element {
	list := make([]netip.Prefix, 0, 2*len(d.Peers))
	for _, path := range d.Peers {
		for _, a := range path.Addrs {
			if routable(a) {
				list = append(list, single(a))
			}
		}
	}
	return prefixElements(list, is4)
}

// nodeTranslationsRemoved: pods' packets to another node get the node's address, even when those to other destinations
// do not.
func nodeTranslationsRemoved(deleted, _ []element) removedTranslations {
	return removedTranslations{direct: prefixesOf(deleted)}
}
