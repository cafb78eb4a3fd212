//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// OVS's restart scripts set flow-restore-wait; left set, the node forwards nothing. Weft clears it when its flows are in.
func TestFlowRestoreWait(t *testing.T) {
	pods, _ := meshPods(t)
	n := env.nodes[0]
	if _, err := n.run(t.Context(), "ovs-vsctl", "set", "Open_vSwitch", ".", "other_config:flow-restore-wait=true"); err != nil {
		t.Fatal(err)
	}
	must(t, time.Minute, func(ctx context.Context) error {
		out, err := n.run(ctx, "ovs-vsctl", "get", "Open_vSwitch", ".", "other_config")
		if err != nil {
			return err
		}
		if strings.Contains(out, "flow-restore-wait") {
			return fmt.Errorf("still set on %s: %s", n.name, out)
		}
		return nil
	})
	reach(t, map[dialer][]wire.Target{pods[0]: append(targetsOf(pods[1]), targetsOf(pods[2])...)})
}
