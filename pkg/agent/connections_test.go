package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// stubborn is a switch that removes no connection, for a reason.
type stubborn struct {
	reason error
	sent   []ofswitch.PacketOut
}

func (s *stubborn) Connections(context.Context, uint16, func(openflow.Connection)) error { return nil }

func (s *stubborn) Remove(context.Context, openflow.Connection) error { return s.reason }

func (s *stubborn) Send(_ context.Context, packets []ofswitch.PacketOut) error {
	s.sent = append(s.sent, packets...)
	return nil
}

// TestDeniedInsteadOfRemoved: a connection that Open vSwitch cannot remove loses its allowed mark, if it has it; other
// errors stay errors.
func TestDeniedInsteadOfRemoved(t *testing.T) {
	away := errors.New("the switch is away")
	addr := netip.MustParseAddrPort("[fd00::1]:0")
	marked := openflow.Connection{
		Zone: flows.Zone, Protocol: openflow.IPProtoICMPv6, Source: addr, Destination: addr, Endpoint: addr,
		Mark: uint32(flows.MarkAllowed),
	}
	unmarked := marked
	unmarked.Mark = uint32(flows.MarkDenied)
	for _, c := range []struct {
		what       string
		reason     error
		connection openflow.Connection
		want       error
		denied     bool
	}{
		{"allowed", ofswitch.ErrNotRemovable, marked, nil, true},
		{"denied already", ofswitch.ErrNotRemovable, unmarked, nil, false},
		{"another error", away, marked, away, false},
	} {
		sw := &stubborn{reason: c.reason}
		if err := (connectionTracker{sw}).Remove(t.Context(), c.connection); !errors.Is(err, c.want) {
			t.Errorf("%s: error = %v, want %v", c.what, err, c.want)
		}
		if denied := len(sw.sent) == 1 && slices.Equal(sw.sent[0].Packet, marked.Packet()); denied != c.denied {
			t.Errorf("%s: sent %d packets, want a denied one: %t", c.what, len(sw.sent), c.denied)
		}
	}
}
