package flows_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
)

// TestStaleConnections: a UDP client keeps its endpoint for as long as that one serves, whether or not new connections still go there.
func TestStaleConnections(t *testing.T) {
	endpoints := func(list ...string) (out []model.Endpoint) {
		for _, e := range list {
			at := netip.MustParseAddrPort(e)
			out = append(out, model.Endpoint{Addr: at.Addr(), Port: at.Port(), Weight: 1})
		}
		return out
	}
	const one, two, three = "10.244.1.2:53", "10.244.2.2:53", "10.244.3.2:53"
	type port struct{ cluster, local, retained []string }
	for _, tc := range []struct {
		name          string
		before, after port
		want          []string
	}{
		{"two begins to terminate", port{cluster: []string{one, two}}, port{cluster: []string{one}, retained: []string{two}}, nil},
		{"two stops serving", port{cluster: []string{one}, retained: []string{two}}, port{cluster: []string{one}}, []string{two}},
		{"two is gone at once", port{cluster: []string{one, two}}, port{cluster: []string{one}}, []string{two}},
		{"policy Local leaves two and three out", port{cluster: []string{one, two, three}}, port{local: []string{one}, retained: []string{two, three}}, nil},
		{"three goes while two is retained", port{cluster: []string{one, two, three}}, port{cluster: []string{one}, retained: []string{two}}, []string{three}},
		{"all not ready, one still serves", port{cluster: []string{one, two}}, port{retained: []string{one}}, []string{two}},
		{"rejected clients are served", port{}, port{cluster: []string{one}}, []string{"169.254.87.3:0"}},
		{"rejected clients are served, one is retained", port{retained: []string{two}}, port{cluster: []string{one}, retained: []string{two}}, []string{"169.254.87.3:0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			service := func(p port) model.Service {
				out := model.ServicePort{Protocol: model.UDP, Port: 53, ClusterIP: netip.MustParseAddr("10.96.0.10"), Cluster: endpoints(p.cluster...), Local: endpoints(p.local...)}
				for _, e := range p.retained {
					out.Retained = append(out.Retained, netip.MustParseAddrPort(e))
				}
				return model.Service{Name: "kube-system/dns", Ports: []model.ServicePort{out}}
			}
			var got []string
			for _, s := range flows.StaleConnections(service(tc.before), service(tc.after)) {
				got = append(got, s.Endpoint.String())
			}
			slices.Sort(got)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("stale endpoints (-want +got):\n%s", diff)
			}
		})
	}
}

// TestServing lists the endpoints of UDP ports under every traffic policy, those for existing connections among them.
func TestServing(t *testing.T) {
	at := netip.MustParseAddrPort
	endpoint := func(e string) []model.Endpoint {
		return []model.Endpoint{{Addr: at(e).Addr(), Port: at(e).Port(), Weight: 1}}
	}
	got := flows.Serving(model.Service{Ports: []model.ServicePort{
		{Protocol: model.UDP, Cluster: endpoint("10.244.1.2:53"), Local: endpoint("10.244.2.2:53"), Retained: []netip.AddrPort{at("10.244.3.2:53")}},
		{Protocol: model.TCP, Cluster: endpoint("10.244.1.2:80")},
	}})
	if want := []netip.AddrPort{at("10.244.1.2:53"), at("10.244.2.2:53"), at("10.244.3.2:53")}; !slices.Equal(got, want) {
		t.Errorf("serving: %v, want %v", got, want)
	}
}
