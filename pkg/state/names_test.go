package state_test

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// TestNames: a snapshot has the names that are known, stays as it is when that changes, and a name of which nothing is
// known is in none.
func TestNames(t *testing.T) {
	s := state.New("n1")
	learned := model.LearnedName{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	s.Apply(state.SetName{Name: "a.example", Learned: learned})
	first, _ := s.Take()
	s.Apply(state.SetName{Name: "b.example", Learned: learned})
	second, _ := s.Take()
	s.Apply(state.SetName{Name: "a.example"})
	third, _ := s.Take()
	for i, c := range []struct {
		names map[string]model.LearnedName
		a, b  bool
	}{{first.Names, true, false}, {second.Names, true, true}, {third.Names, false, true}} {
		if c.names["a.example"].Empty() == c.a || c.names["b.example"].Empty() == c.b {
			t.Errorf("snapshot %d has %v", i, c.names)
		}
	}
}
