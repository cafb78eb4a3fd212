package state_test

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// TestLoadBalancerChangesPaths: paths follow the addresses that load balancers give to Services, and lose them, as a
// fresh store with the same objects has them.
func TestLoadBalancerChangesPaths(t *testing.T) {
	s := state.New("n1")
	s.Apply(state.SetNode{Node: model.Node{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.1")}}})
	s.Apply(state.SetNode{Node: model.Node{Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.2")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, Created: 10}})
	check := func(when string, used bool) {
		t.Helper()
		snapshot, owners := s.Take()
		if got := len(snapshot.Paths["n2"].PodCIDRs) == 1; got != used {
			t.Errorf("%s: the pod CIDR is used: %t; %v", when, got, snapshot.Paths["n2"].Rejected)
		}
		marked := false
		for _, o := range owners {
			marked = marked || o == model.NodeOwner("n2")
		}
		if !marked {
			t.Errorf("%s: the node is not compiled again", when)
		}
	}
	web := func(addr string, created int64) state.SetJoinedService {
		port := model.ServicePort{Protocol: model.TCP, Port: 80, ClusterIP: netip.MustParseAddr("10.96.0.9")}
		if addr != "" {
			port.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr(addr)}
		}
		return state.SetJoinedService{Service: model.Service{Name: "ns/web", Created: created, Ports: []model.ServicePort{
			port}}}
	}
	check("no Service", true)
	s.Apply(web("198.51.100.9", 5))
	check("the load balancer has an address", false)
	s.Apply(web("192.0.2.9", 5))
	check("another address", true)
	s.Apply(web("198.51.100.9", 5))
	check("the first again", false)
	s.Apply(web("198.51.100.9", 50))
	check("the Service was recreated", true)
	s.Apply(web("198.51.100.9", 5))
	check("and is the old one", false)
	s.Apply(state.SetClusterCIDRs{CIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/22")}})
	check("clusterCIDRs", true)
	s.Apply(state.SetClusterCIDRs{})
	check("no clusterCIDRs", false)
	s.Apply(state.DeleteService{Name: "ns/web"})
	check("no Service any more", true)
}
