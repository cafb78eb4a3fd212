package agent

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// sourceTo sends to every peer from one address.
type sourceTo struct{ source netip.Addr }

func (s sourceTo) To(netip.Addr) (netip.Addr, bool) { return s.source, s.source.IsValid() }

// TestWrongSource: peers to which packets leave from another address than the tunnel's are named.
func TestWrongSource(t *testing.T) {
	self, other := addr("fd57::12"), addr("fd57::99")
	view := &model.Snapshot{Paths: map[string]model.Path{
		"n1": {}, "n2": {Local: self, NextHop: addr("fd57::11")}, "n3": {Local: self, NextHop: addr("fd57::13")},
		"n4": {Unreachable: "no InternalIP"},
	}}
	const want = "this Open vSwitch ignores the flows' IPv6 source: tunnel packets to 2 nodes, as n2 leave from " +
		"fd57::99, and only those " +
		"from fd57::12 are accepted there; upgrade Open vSwitch (2.17.10, 3.0.7, 3.1.5, 3.2.3, 3.3.1, 3.4), or add " +
		"fd57::12 to its " +
		"link after fd57::99, since the newest address is taken"
	if err := wrongSource(view, sourceTo{other}); err == nil || err.Error() != want {
		t.Errorf("named as %v", err)
	}
	for _, right := range []netip.Addr{self, {}} {
		if err := wrongSource(view, sourceTo{right}); err != nil {
			t.Errorf("from %s: %v", right, err)
		}
	}
}
