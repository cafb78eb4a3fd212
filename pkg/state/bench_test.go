package state_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/service"
	"github.com/weft-cni/weft/pkg/state"
)

// BenchmarkOnePolicyAmong5000 is one more policy, from its change to the snapshot that has it, and its end.
func BenchmarkOnePolicyAmong5000(b *testing.B) {
	s := state.New("n1")
	a := pod("web", 16)
	a.IPs = []netip.Addr{netip.MustParseAddr("10.244.1.2")}
	s.Apply(state.SetAttachment{Attachment: a})
	s.Apply(state.SetPod{Pod: policy.Pod{Namespace: "ns", Name: "web", Node: "n1"}})
	set := func(i int) model.Owner {
		p := policy.Policy{Namespace: "ns", Name: fmt.Sprint("p", i), Ingress: []policy.Rule{
			{Ports: []policy.Port{{Number: 80}}}}}
		s.Apply(state.SetPolicy{Policy: p})
		return p.ID().Owner()
	}
	for i := range 5000 {
		set(i)
	}
	s.Take()
	for b.Loop() {
		want := set(5000)
		if _, owners := s.Take(); len(owners) != 1 || owners[0] != want {
			b.Fatalf("changed %v", owners)
		}
		s.Apply(state.DeletePolicy{ID: model.NetworkPolicy("ns", "p5000")})
		s.Take()
	}
}

// BenchmarkOneEndpoint is one more endpoint among 10,000 Services, from its change to the snapshot that has it, and its
// end.
func BenchmarkOneEndpoint(b *testing.B) {
	s := state.New("n1")
	slice := func(name string, addrs ...string) state.SetSlice {
		slice := service.Slice{Name: name, Service: name, Ports: []service.SlicePort{{Name: "http", Protocol: model.TCP,
			Port: 8080}}}
		for _, a := range addrs {
			slice.Endpoints = append(slice.Endpoints, service.Endpoint{Addr: netip.MustParseAddr(a), Ready: true, Serving: true})
		}
		return state.SetSlice{Slice: &slice}
	}
	for i := range 10000 {
		name := fmt.Sprint("ns/s", i)
		s.Apply(state.SetService{Service: &service.Service{
			Name: name, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
			Ports: []service.Port{{Name: "http", Protocol: model.TCP, Port: 80}},
		}})
		s.Apply(slice(name, "10.244.0.1", "10.244.0.2"))
	}
	s.Take()
	versions := []state.SetSlice{slice("ns/s7", "10.244.0.1"), slice("ns/s7", "10.244.0.1", "10.244.0.2")}
	b.ReportAllocs()
	for b.Loop() {
		for _, version := range versions {
			s.Apply(version)
			if _, owners := s.Take(); len(owners) != 1 {
				b.Fatalf("changed %v", owners)
			}
		}
	}
}
