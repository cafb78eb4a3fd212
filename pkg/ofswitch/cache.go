package ofswitch

import (
	"context"
	"fmt"

	"github.com/weft-cni/weft/pkg/unixctl"
)

// refresh empties the userspace datapath's cache of decisions, after every bundle.
//
// The cache's entries may overlap as long as they do the same. When a bundle makes them differ, Open vSwitch 3.1 changes the
// entry that it finds by looking up a packet, which may be another than the one it means: that one then stays as it was while
// packets use it, an endpoint that is gone or a connection that a policy denies by now. (Newer ones look it up by its
// identity, as the kernel's datapath always has.) The next packet of each connection makes its entry again.
func (s *Switch) refresh(ctx context.Context) error {
	if !s.userspace || !s.behind {
		return nil
	}
	socket, err := unixctl.Socket(s.runDir, "ovs-vswitchd")
	if err == nil {
		_, err = unixctl.Call(ctx, socket, "revalidator/purge")
	}
	if err != nil {
		return fmt.Errorf("empty the datapath's cache, which may keep what was changed: %w", err)
	}
	s.behind = false
	return nil
}
