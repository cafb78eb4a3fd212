package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// tunnelSourceProblem is the part that a tunnel's wrong outer source belongs to.
const tunnelSourceProblem = "tunnel source"

// tunnelSources are the outer sources that Open vSwitch chooses by itself (ofswitch.TunnelSources).
type tunnelSources interface {
	To(peer netip.Addr) (source netip.Addr, ok bool)
}

// wrongSource says to which peers Open vSwitch sends tunnel packets from another address than the one that they accept;
// nil when there are none.
func wrongSource(view *model.Snapshot, sources tunnelSources) error {
	count, first := 0, ""
	var wrong, right netip.Addr
	for _, name := range slices.Sorted(maps.Keys(view.Paths)) {
		path := view.Paths[name]
		if !path.Reachable() || path.Mode.Routed() {
			continue
		}
		source, known := sources.To(path.NextHop)
		if !known || source == path.Local {
			continue
		}
		count++
		if count == 1 {
			first, wrong, right = name, source, path.Local
		}
	}
	if count == 0 {
		return nil
	}
	peers := "node " + first
	if count > 1 {
		peers = fmt.Sprintf("%d nodes, as %s", count, first)
	}
	return fmt.Errorf(
		"this Open vSwitch ignores the flows' IPv6 source: tunnel packets to %s leave from %s, and only those "+
			"from %s are accepted there; upgrade Open vSwitch (2.17.10, 3.0.7, 3.1.5, 3.2.3, 3.3.1, 3.4), or add %[3]s to its "+
			"link after %[2]s, since the newest address is taken", peers, wrong, right)
}
