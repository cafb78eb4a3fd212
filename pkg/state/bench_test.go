package state_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
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
		p := policy.Policy{Namespace: "ns", Name: fmt.Sprint("p", i), Ingress: []policy.Rule{{Ports: []policy.Port{{Number: 80}}}}}
		s.Apply(state.SetPolicy{Policy: p})
		return model.PolicyOwner(p.ID())
	}
	for i := range 5000 {
		set(i)
	}
	s.Take()
	for b.Loop() {
		want := set(5000)
		if _, owners := s.Take(); len(owners) != 1 || owners[0] != want {
			b.Fatalf("touched %v", owners)
		}
		s.Apply(state.DeletePolicy{Namespace: "ns", Name: "p5000"})
		s.Take()
	}
}
