package agent

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
)

// TestPodMTU: what the tunnel leaves of the underlay, or what is configured; but never so little that the kernel would
// take the IPv6 addresses of running pods away.
func TestPodMTU(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd44:1::/64")
	for _, tc := range []struct {
		outer      string
		cidrs      []netip.Prefix
		underlay   int
		configured int
		want       int // 0 for an error
	}{
		{"172.30.0.1", []netip.Prefix{v4}, 1500, 0, 1450},
		{"fd30::1", []netip.Prefix{v6}, 1500, 0, 1430},
		{"172.30.0.1", []netip.Prefix{v4, v6}, 9000, 1400, 1400},
		{"172.30.0.1", []netip.Prefix{v4}, 1300, 0, 1250},
		{"172.30.0.1", []netip.Prefix{v4, v6}, 1330, 0, 1280},
		{"172.30.0.1", []netip.Prefix{v4, v6}, 1329, 0, 0},
		{"172.30.0.1", []netip.Prefix{v4, v6}, 1500, 1279, 0},
		{"172.30.0.1", []netip.Prefix{v4}, 1500, 1000, 1000},
	} {
		cfg := config.Default()
		cfg.MTU = tc.configured
		view := &model.Snapshot{Transport: cfg.PeerTransport(),
			Self: model.Node{Addrs: []netip.Addr{netip.MustParseAddr(tc.outer)}, PodCIDRs: tc.cidrs}}
		view.Paths = nodepath.Resolve(view)
		got, err := podMTU(cfg, view, tc.underlay)
		if got != tc.want || (err == nil) != (tc.want != 0) {
			t.Errorf("%s, %v, underlay %d, configured %d: %d, %v; want %d", tc.outer, tc.cidrs, tc.underlay, tc.configured, got,
				err, tc.want)
		}
	}
}
