package ofswitch

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
)

// flushesAtOnce bounds the programs that run side by side.
const flushesAtOnce = 8

// Forget makes the switch forget UDP connections, so that their next packet begins a new one (ovs-ofctl(8), ct-flush; Open
// vSwitch 3.1 and newer).
func (s *Switch) Forget(ctx context.Context, stale []flows.Stale) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(flushesAtOnce)
	for _, c := range stale {
		group.Go(func() error {
			args := []string{"ct-flush", s.target, fmt.Sprintf("zone=%d", flows.Zone), tuple(c.Frontend, "dst")}
			if c.Endpoint.Addr().IsValid() {
				args = append(args, tuple(c.Endpoint, "src"))
			}
			cmd := ofctl(ctx, args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("forget the UDP connections to %s through %s: %w", c.Frontend, c.Endpoint, failure("ct-flush", err, stderr.String()))
			}
			return nil
		})
	}
	return group.Wait()
}

// tuple is one end of a UDP connection, src or dst; port 0 is every port.
func tuple(end netip.AddrPort, side string) string {
	if !end.Addr().IsValid() {
		return ""
	}
	field := "ct_nw_"
	if end.Addr().Is6() {
		field = "ct_ipv6_"
	}
	text := fmt.Sprintf("%s%s=%s,ct_nw_proto=%d", field, side, end.Addr(), openflow.IPProtoUDP)
	if end.Port() != 0 {
		text += fmt.Sprintf(",ct_tp_%s=%d", side, end.Port())
	}
	return text
}
