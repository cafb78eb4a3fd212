package model

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
)

// The devices of the node's kernel for IPIP. Over IPv4 there is one for the packets of each family, which finds the
// outer destination in the next hop of a route. Over IPv6 there is one for each peer node: IPv6 routes accept no next
// hop that is a neighbor on another link ("device mismatch", net/ipv6/route.c).
const (
	IPIPName = "weft-ipip" // IPv4 in IPv4
	SITName  = "weft-sit"  // IPv6 in IPv4
	// IP6TnlPrefix begins the names of the devices over IPv6, for packets of both families.
	IP6TnlPrefix = "weft6-"
)

// IPIPDevice is the name of the device for packets to a peer node's address, of IPv4 or not.
func IPIPDevice(peer netip.Addr, inner4 bool) string {
	switch {
	case peer.Is4() && inner4:
		return IPIPName
	case peer.Is4():
		return SITName
	}
	const digits = 9 // with which the name is as long as the kernel allows
	sum := fnv.New64a()
	sum.Write(peer.AsSlice())
	return IP6TnlPrefix + fmt.Sprintf("%016x", sum.Sum64())[:digits]
}

// IsIPIPDevice reports whether it is the name of one.
func IsIPIPDevice(name string) bool {
	return name == IPIPName || name == SITName || strings.HasPrefix(name, IP6TnlPrefix)
}

// IPIPModules are the modules of Linux that the devices need.
func IPIPModules() []string { return slices.Clone([]string{"ipip", "sit", "ip6_tunnel"}) }
