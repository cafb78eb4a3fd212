//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/e2e/internal/dump"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// OVS's restart scripts set flow-restore-wait; left set, the node forwards nothing. Weft clears it when its flows are
// in.
func TestFlowRestoreWait(t *testing.T) {
	pods, _ := meshPods(t)
	n := env.nodes[0]
	if _, err := n.run(t.Context(), "ovs-vsctl", "set", "Open_vSwitch", ".",
		"other_config:flow-restore-wait=true"); err != nil {
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

// Another program removes a pod's port from the bridge, then the whole bridge: Weft brings back what was there, and the
// pods that run never have to be recreated.
func TestBridgeComesBack(t *testing.T) {
	pods, hosts := meshPods(t)
	n := env.nodes[0]
	port, err := n.portOf(t.Context(), pods[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range [][]string{{"del-port", bridge, port}, {"del-br", bridge}} {
		if _, err := n.run(t.Context(), append([]string{"ovs-vsctl"}, damage...)...); err != nil {
			t.Fatal(err)
		}
		must(t, time.Minute, func(ctx context.Context) error {
			s, err := n.ports(ctx)
			if err == nil && s[port] == (dump.Port{}) {
				err = fmt.Errorf("after %s there is no port %s", strings.Join(damage, " "), port)
			}
			return err
		})
		must(t, time.Minute, func(ctx context.Context) error {
			flows, err := n.flowIdentities(ctx)
			if err == nil && len(flows) < 50 {
				err = fmt.Errorf("after %s there are only %d flows", strings.Join(damage, " "), len(flows))
			}
			return err
		})
		reach(t, map[dialer][]wire.Target{
			pods[0]:  append(targetsOf(pods[1]), targetsOf(pods[2])...),
			pods[3]:  targetsOf(pods[0]),
			hosts[0]: append(targetsOf(pods[0]), targetsOf(pods[2])...),
		})
	}
}
