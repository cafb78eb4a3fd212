package scenario

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// names are the addresses of what scenarios name: pods and Services by namespace/name, nodes, and the host outside.
type names struct {
	pods     map[string]podAddrs
	services map[string][]netip.Addr
	// nodes are the addresses on the underlay and of the gateway; of the former there is one of each family.
	nodes    map[string][]netip.Addr
	gateways map[string][]netip.Addr
	outside  []netip.Addr
}

// podAddrs are the addresses and the node of a pod, whose network it may have.
type podAddrs struct {
	ips    []netip.Addr
	node   string
	onHost bool
}

const outsideName = "outside"

// resolve returns the address of a step's target in a family; false when it has none there.
func (n names) resolve(t target, is4 bool) (netip.AddrPort, bool, error) {
	addrs := []netip.Addr{t.addr}
	if t.name != "" {
		service, namespace, dotted := strings.Cut(t.name, ".")
		pod, isPod := n.pods[t.name]
		node, isNode := n.nodes[t.name]
		switch clusterIPs, isService := n.services[namespace+"/"+service]; {
		case dotted && isService:
			addrs = clusterIPs
		case isPod:
			addrs = pod.ips
		case isNode:
			addrs = node
		case t.name == outsideName:
			addrs = n.outside
		default:
			return netip.AddrPort{}, false, fmt.Errorf("there is no pod NAMESPACE/NAME, Service NAME.NAMESPACE or node %q",
				t.name)
		}
	}
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == is4 })
	if i < 0 {
		return netip.AddrPort{}, false, nil
	}
	return netip.AddrPortFrom(addrs[i], t.port), true, nil
}

// of are the addresses that packets of a client may have: of a node, also that of its gateway.
func (n names) of(client string) []netip.Addr {
	if node, ok := n.nodes[client]; ok {
		return slices.Concat(node, n.gateways[client])
	}
	if client == outsideName {
		return n.outside
	}
	return n.pods[client].ips
}

// of is the address of a family; invalid when there is none.
func of(addrs []netip.Addr, is4 bool) netip.Addr {
	if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == is4 }); i >= 0 {
		return addrs[i]
	}
	return netip.Addr{}
}
