package ofswitch

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// TunnelSources are the outer source addresses of the tunnel packets that the userspace datapath sends over IPv6, where
// Open vSwitch takes them from its own routes and not from the flows.
type TunnelSources []tunnelRoute

// tunnelRoute is a route of ovs-vswitchd's.
type tunnelRoute struct {
	to     netip.Prefix
	source netip.Addr
}

// To returns the outer source address of packets to a peer, and false for one of IPv4, which is the flows' choice, and
// for one that no route leads to.
func (s TunnelSources) To(peer netip.Addr) (source netip.Addr, ok bool) {
	bits := -1
	for _, r := range s {
		if peer.Is6() && r.to.Contains(peer) && r.to.Bits() > bits {
			source, bits = r.source, r.to.Bits()
		}
	}
	return source, bits >= 0
}

// firstWithSource is the first release of each older branch whose userspace datapath sends with the IPv6 source that a
// flow sets: that with the change "ofproto-dpif-xlate: Fix ignoring IPv6 local_ip for native tunnels." (commit
// 166ee41d2 of Open vSwitch, of February 2024). All branches since 3.4 have it; IPv4 has never been ignored.
var firstWithSource = map[[2]int]int{{2, 17}: 10, {3, 0}: 7, {3, 1}: 5, {3, 2}: 3, {3, 3}: 1}

// ignoresSource says whether a version of ovs-vswitchd ignores the IPv6 source that a flow sets. An unknown one does.
func ignoresSource(version string) bool {
	release, ok := parseRelease(version)
	if !ok {
		return true
	}
	if patch, ok := firstWithSource[[2]int{release[0], release[1]}]; ok {
		return release[2] < patch
	}
	return release[0] < 3
}

// TunnelSources asks ovs-vswitchd for its choice of outer sources. It is empty where the flows decide: on the kernel's
// datapath, and with newer versions of Open vSwitch.
func (s *Switch) TunnelSources(ctx context.Context) (TunnelSources, error) {
	if !s.userspace {
		return nil, nil
	}
	version, err := s.appctl(ctx, "version")
	if err != nil {
		return nil, fmt.Errorf("read the version of Open vSwitch: %w", err)
	}
	if !ignoresSource(version) {
		return nil, nil
	}
	text, err := s.appctl(ctx, "ovs/route/show")
	if err != nil {
		return nil, fmt.Errorf("read the routes of Open vSwitch: %w", err)
	}
	return parseTunnelRoutes(text), nil
}

// parseTunnelRoutes reads the routes of an ovs/route/show, as "Cached: fd00::/64 dev br-phy SRC fd00::2". Those for
// marked packets are left out: Weft marks none.
func parseTunnelRoutes(text string) (routes TunnelSources) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		to, err := netip.ParsePrefix(words[1])
		if err != nil || to.Addr().Is4() {
			continue
		}
		r := tunnelRoute{to: to}
		for i, word := range words[:len(words)-1] {
			switch word {
			case "MARK":
				r.to = netip.Prefix{}
			case "SRC":
				r.source, _ = netip.ParseAddr(words[i+1]) // one that is none is left out
			}
		}
		if r.to.IsValid() && r.source.IsValid() {
			routes = append(routes, r)
		}
	}
	return routes
}
