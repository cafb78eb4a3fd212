//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// The underlay's MTU changes under running pods: they follow, and so does what is told to new ones.
func TestMTUFollowsUnderlay(t *testing.T) {
	pods, hosts := meshPods(t)
	const index = 1
	n := env.nodes[index]
	link := underlayLink(t, hosts[index], n)
	before, err := n.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	set := func(ctx context.Context, mtu int) {
		t.Helper()
		if _, err := n.run(ctx, "ip", "link", "set", "dev", link.Name, "mtu", strconv.Itoa(mtu)); err != nil {
			t.Error(err)
			return
		}
		want := mtu - before.overhead(n.addrs[0])
		must(t, time.Minute, func(ctx context.Context) error {
			for _, p := range pods[2*index : 2*index+2] {
				var reply wire.LinksReply
				if err := p.probe(ctx, nil, &reply, "links"); err != nil {
					return err
				}
				for _, l := range reply.Links {
					if l.Name == "eth0" && l.MTU != want {
						return fmt.Errorf("eth0 of %s has MTU %d, want %d", p, l.MTU, want)
					}
				}
			}
			status, err := n.status(ctx)
			if err == nil && status.MTU != want {
				err = fmt.Errorf("weftctl status of %s says MTU %d, want %d", n.name, status.MTU, want)
			}
			return err
		})
	}
	defer set(t.Context(), link.MTU) // not a Cleanup: the test's context would have ended
	set(t.Context(), link.MTU-100)
	reach(t, map[dialer][]wire.Target{
		pods[2*index]: targetsOf(pods[0]),
		pods[0]:       targetsOf(pods[2*index]),
	})
}
