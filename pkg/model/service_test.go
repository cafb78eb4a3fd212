package model_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/model"
)

// TestFrontends: every address of a port once, with its traffic policy. The source ranges of a load balancer's address
// apply even when the Service also lists it as an external IP.
func TestFrontends(t *testing.T) {
	addr, sources := netip.MustParseAddr, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	p := model.ServicePort{
		Port: 80, ClusterIP: addr("10.96.0.1"), NodePort: 30080, ExternalLocal: true,
		ExternalIPs:     []netip.Addr{addr("192.0.2.1"), addr("192.0.2.9")},
		LoadBalancerIPs: []netip.Addr{addr("192.0.2.1")}, LoadBalancerSources: sources,
	}
	at := netip.MustParseAddrPort
	want := []model.Frontend{
		{Kind: model.ClusterIP, At: at("10.96.0.1:80")},
		{Kind: model.ExternalIP, At: at("192.0.2.9:80"), Local: true},
		{Kind: model.LoadBalancer, At: at("192.0.2.1:80"), Local: true, Sources: sources},
		{Kind: model.NodePort, At: at("169.254.87.1:30080"), Local: true},
	}
	same := []cmp.Option{
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.Comparer(func(a,
			b netip.Prefix) bool {
			return a == b
		}),
	}
	if diff := cmp.Diff(want, p.Frontends(), same...); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	p = model.ServicePort{Port: 80, ClusterIP: addr("fd96::1"), NodePort: 30080, InternalLocal: true}
	want = []model.Frontend{{Kind: model.ClusterIP, At: at("[fd96::1]:80"), Local: true},
		{Kind: model.NodePort, At: at("[fd57:6566:7400::1]:30080")}}
	if diff := cmp.Diff(want, p.Frontends(), same...); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
