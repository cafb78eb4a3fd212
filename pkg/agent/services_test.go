package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
)

// TestServiceRoutes: no Service takes the node's way to nodes and API servers, and an address whose clients are limited is not
// offered where the limit is not known.
func TestServiceRoutes(t *testing.T) {
	addr := netip.MustParseAddr
	view := &model.Snapshot{
		Self:  model.Node{Name: "n1", Addrs: []netip.Addr{addr("172.30.0.1")}},
		Nodes: map[string]model.Node{"n2": {Name: "n2", Addrs: []netip.Addr{addr("172.30.0.2")}}},
		Services: map[string]model.Service{
			"default/kubernetes": {Name: "default/kubernetes", Ports: []model.ServicePort{{Protocol: model.TCP, Port: 443, ClusterIP: addr("10.96.0.1"),
				Cluster: []model.Endpoint{{Addr: addr("172.30.0.9"), Port: 6443}}}}},
			"ns/web": {Name: "ns/web", Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, ClusterIP: addr("10.96.0.2"), NodePort: 30080,
				ExternalIPs:     []netip.Addr{addr("172.30.0.1"), addr("172.30.0.2"), addr("172.30.0.8"), addr("172.30.0.9"), addr("192.0.2.1")},
				LoadBalancerIPs: []netip.Addr{addr("192.0.2.2")}, LoadBalancerSources: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}}},
		},
	}
	var d host.Desired
	serviceRoutes(&d, view, "https://172.30.0.8:6443")
	if want := []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")}; !slices.Equal(d.ServiceIPs, want) {
		t.Errorf("routed: %v, want %v", d.ServiceIPs, want)
	}
	if len(d.ExternalIPs) != 5 || slices.ContainsFunc(d.ExternalIPs, func(e host.ExternalIP) bool { return e.Addr == addr("192.0.2.2") }) {
		t.Errorf("offered at the node's own address: %v, want the external ones alone", d.ExternalIPs)
	}
	if want := netip.MustParseAddrPort("169.254.87.1:30080"); d.ExternalIPs[0].To != want {
		t.Errorf("an external address leads to %s, want %s", d.ExternalIPs[0].To, want)
	}
}
