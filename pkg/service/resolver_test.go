package service_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/weft-cni/weft/internal/testing/fuzzing"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/service"
)

func web(name, clusterIP string, external ...string) *service.Service {
	s := &service.Service{Name: "ns/" + name, Ports: []service.Port{{Name: "http", Protocol: model.TCP, Port: 80}}}
	if clusterIP != "" {
		s.ClusterIPs = []netip.Addr{netip.MustParseAddr(clusterIP)}
	}
	for _, ip := range external {
		s.ExternalIPs = append(s.ExternalIPs, netip.MustParseAddr(ip))
	}
	return s
}

func slice(name, of string, addresses ...string) *service.Slice {
	s := &service.Slice{Name: "ns/" + name, Service: "ns/" + of, Ports: []service.SlicePort{
		{Name: "http", Protocol: model.TCP, Port: 8080}}}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: netip.MustParseAddr(a), Ready: true, Serving: true,
			Node: "n1"})
	}
	return s
}

// flushed takes over what a resolver says is different.
func flushed(r *service.Resolver, into map[string]service.Resolved) (changes int) {
	for name, one := range r.Flush() {
		changes++
		if one.Service == nil && one.Problem == "" {
			delete(into, name)
		} else {
			into[name] = one
		}
	}
	return changes
}

// TestHistoryDoesNotMatter does random things with objects and compares what is left with a resolver that only ever saw
// what there is in the end, in another order.
func TestHistoryDoesNotMatter(t *testing.T) { rapid.Check(t, historyDoesNotMatter) }

func FuzzHistoryDoesNotMatter(f *testing.F) { fuzzing.Property(f, historyDoesNotMatter) }

func historyDoesNotMatter(t *rapid.T) {
	r, got := service.NewResolver("n1"), map[string]service.Resolved{}
	zone, refuse := "", false
	services, slices := map[string]*service.Service{}, map[string]*service.Slice{}
	zones, problem := rapid.SampledFrom([]string{"", "z1", "z2"}), rapid.SampledFrom([]string{"", "bad", "worse"})
	for range rapid.IntRange(1, 30).Draw(t, "steps") {
		name := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "service")
		sliceName := rapid.SampledFrom([]string{"s1", "s2", "s3"}).Draw(t, "slice")
		switch rapid.IntRange(0, 6).Draw(t, "step") {
		case 0:
			external := rapid.SampledFrom([][]string{nil, {"198.51.100.1"}}).Draw(t, "external")
			s := web(name, rapid.SampledFrom([]string{"10.96.0.1", "10.96.0.2", ""}).Draw(t, "ip"), external...)
			s.Problem = problem.Draw(t, "problem")
			services[s.Name] = s
			r.SetService(s)
		case 1:
			delete(services, "ns/"+name)
			r.DeleteService("ns/" + name)
		case 2:
			addresses := rapid.SliceOfN(rapid.SampledFrom([]string{"10.244.0.1", "10.244.0.2", "10.244.0.3"}), 0, 3).Draw(t,
				"addresses")
			s := slice(sliceName, name, addresses...)
			s.Problem = problem.Draw(t, "problem")
			for i := range s.Endpoints {
				if hint := zones.Draw(t, "hint"); hint != "" {
					s.Endpoints[i].ForZones = []string{hint}
				}
			}
			slices[s.Name] = s
			r.SetSlice(s)
		case 3:
			delete(slices, "ns/"+sliceName)
			r.DeleteSlice("ns/" + sliceName)
		case 4:
			zone = zones.Draw(t, "zone")
			r.SetZone(zone)
		case 5:
			refuse = rapid.Bool().Draw(t, "refuse external IPs")
			r.RefuseExternalIPs(refuse)
		case 6:
			flushed(r, got)
		}
	}
	flushed(r, got)
	fresh, want := service.NewResolver("n1"), map[string]service.Resolved{}
	steps := []func(){func() { fresh.SetZone(zone) }, func() { fresh.RefuseExternalIPs(refuse) }}
	for _, s := range services {
		steps = append(steps, func() { fresh.SetService(s) })
	}
	for _, s := range slices {
		steps = append(steps, func() { fresh.SetSlice(s) })
	}
	for _, step := range rapid.Permutation(steps).Draw(t, "order") {
		step()
	}
	flushed(fresh, want)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Errorf("Services (-what there is +after what happened):\n%s", diff)
	}
	for name, s := range services {
		if refused := strings.Contains(got[name].Problem, "externalIPs: false"); refused != (refuse &&
			len(s.ExternalIPs) > 0) {
			t.Errorf("%s, external IPs are refused %t: problem %q", name, refuse, got[name].Problem)
		}
		if served := got[name].Service; refuse && served != nil && len(served.Ports[0].ExternalIPs) > 0 {
			t.Errorf("%s has %v", name, served.Ports[0].ExternalIPs)
		}
		r.DeleteService(name)
	}
	for name := range slices {
		r.DeleteSlice(name)
	}
	flushed(r, got)
	if len(got) != 0 {
		t.Errorf("Services that do not exist: %v", got)
	}
	if services, slices := r.Size(); services+slices != 0 {
		t.Errorf("%d Services and %d slices are remembered that do not exist", services, slices)
	}
}

// TestOneChangeOneService: a change is about one Service, and one that says what is known is about none.
func TestOneChangeOneService(t *testing.T) {
	r, got := service.NewResolver("n1"), map[string]service.Resolved{}
	for i := range 50 {
		r.SetService(web(fmt.Sprint("s", i), fmt.Sprint("10.96.0.", i+1)))
		r.SetSlice(slice(fmt.Sprint("s", i, "-x"), fmt.Sprint("s", i), "10.244.0.1"))
	}
	flushed(r, got)
	for _, step := range []struct {
		name string
		want int
		do   func()
	}{
		{"another endpoint", 1, func() { r.SetSlice(slice("s7-x", "s7", "10.244.0.1", "10.244.0.2")) }},
		{"the same again", 0, func() { r.SetSlice(slice("s7-x", "s7", "10.244.0.1", "10.244.0.2")) }},
		{"the same Service again", 0, func() { r.SetService(web("s7", "10.96.0.8")) }},
		{"another zone, and no hints", 0, func() { r.SetZone("a") }},
		{"external IPs refused, and none", 0, func() { r.RefuseExternalIPs(true) }},
		{"a Service that is not known", 0, func() { r.DeleteService("ns/other") }},
		{"a slice that goes over to another Service", 2, func() { r.SetSlice(slice("s7-x", "s8", "10.244.0.9")) }},
		{"a Service that became headless", 1, func() { r.SetService(web("s7", "")) }},
	} {
		step.do()
		if changes := flushed(r, got); changes != step.want {
			t.Errorf("%s: %d changes, want %d", step.name, changes, step.want)
		}
	}
	if _, served := got["ns/s7"]; served {
		t.Error("a Service that became headless is still served")
	}
	if endpoints := got["ns/s8"].Service.Ports[0].Cluster; len(endpoints) != 2 {
		t.Errorf("after a slice went over, the Service has the endpoints %v", endpoints)
	}
}

// TestProblems: what is wrong with a Service and its slices is told as one, also of a Service that is not served.
func TestProblems(t *testing.T) {
	r, got := service.NewResolver("n1"), map[string]service.Resolved{}
	bad := func(name, problem string) *service.Slice {
		s := slice(name, "a")
		s.Problem = problem
		return s
	}
	invalid := web("a", "10.96.0.1", "198.51.100.1")
	invalid.Problem = "spec.ports: no port"
	nothing := web("a", "")
	nothing.Problem = "spec.clusterIPs: invalid"
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"a slice without its Service", func() { r.SetSlice(bad("a-1", "no address")) }, ""},
		{"a Service with a bad slice", func() { r.SetService(web("a", "10.96.0.1")) }, "EndpointSlice ns/a-1: no address"},
		{"another mistake", func() { r.SetSlice(bad("a-1", "no port")) }, "EndpointSlice ns/a-1: no port"},
		{"a headless Service, whose slices do not matter", func() { r.SetService(web("a", "")) }, ""},
		{"a Service without a valid address", func() { r.SetService(nothing) }, "spec.clusterIPs: invalid"},
		{"one more problem", func() { r.SetService(invalid) }, "spec.ports: no port\nEndpointSlice ns/a-1: no port"},
		{"refused", func() {
			r.RefuseExternalIPs(true)
		}, "spec.externalIPs: the cluster's configuration refuses them (externalIPs: false); " +
			"remove them, or use a load balancer\nspec.ports: no port\nEndpointSlice ns/a-1: no port"},
		{"more than are spelled out", func() {
			r.RefuseExternalIPs(false)
			for i := range 6 {
				r.SetSlice(bad(fmt.Sprint("a-", i), "x"))
			}
		}, "spec.ports: no port\nEndpointSlice ns/a-0: x\nEndpointSlice ns/a-1: x\nEndpointSlice ns/a-2: x\nEndpointSlice " +
			"ns/a-3: x\nand 2 more"},
		{"the Service is gone", func() { r.DeleteService("ns/a") }, ""},
	} {
		step.do()
		flushed(r, got)
		if problem := got["ns/a"].Problem; problem != step.want {
			t.Errorf("%s: problem %q, want %q", step.name, problem, step.want)
		}
	}
}
