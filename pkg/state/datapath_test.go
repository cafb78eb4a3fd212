package state_test

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// TestDatapathChange: paths follow the datapath: that of the kernel has no GRE over IPv6.
func TestDatapathChange(t *testing.T) {
	s := state.New("n1")
	for i, name := range []string{"n1", "n2"} {
		s.Apply(state.SetNode{Node: model.Node{
			Name:  name,
			Addrs: []netip.Addr{netip.MustParseAddr([]string{"fd30::1", "fd30::2"}[i])},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix(
				[]string{"fd44:0:0:1::/64", "fd44:0:0:2::/64"}[i])},
		}})
	}
	s.Apply(state.SetTransport{Transport: model.Tunnel(model.GRE)})
	for _, kernel := range []bool{false, true, false} {
		s.Apply(state.SetKernelDatapath{Kernel: kernel})
		snapshot, _ := s.Take()
		path, ok := snapshot.Paths["n2"]
		if !ok || (path.Unreachable != "") != kernel {
			t.Errorf("kernel datapath %v: %+v", kernel, path)
		}
	}
}
