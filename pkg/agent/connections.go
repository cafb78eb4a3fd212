package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// connectionTracker is the connection tracker of a switch, with the verdicts of the pipeline.
type connectionTracker struct {
	of interface { // *ofswitch.Switch
		Connections(ctx context.Context, zone uint16, each func(openflow.Connection)) error
		Remove(ctx context.Context, c openflow.Connection) error
		Send(ctx context.Context, packets []ofswitch.PacketOut) error
	}
}

// Connections reads a zone (ofswitch.Switch.Connections).
func (t connectionTracker) Connections(ctx context.Context, zone uint16, each func(openflow.Connection)) error {
	return t.of.Connections(ctx, zone, each)
}

// Deny takes the allowed mark from connections (flows.Deny). The entries stay, so that packets of the other direction
// remain replies of a denied connection and do not begin one of their own. A connection that has ended meanwhile is not
// begun again.
func (t connectionTracker) Deny(ctx context.Context, connections []openflow.Connection) error {
	return t.send(ctx, "deny", connections, flows.Deny)
}

// Allow gives the mark back to connections that lost it, in the same way.
func (t connectionTracker) Allow(ctx context.Context, connections []openflow.Connection) error {
	return t.send(ctx, "allow", connections, flows.Allow)
}

// Remove removes a connection. One that the switch cannot remove is denied instead.
func (t connectionTracker) Remove(ctx context.Context, c openflow.Connection) error {
	err := t.of.Remove(ctx, c)
	if !errors.Is(err, ofswitch.ErrNotRemovable) {
		return err
	}
	if c.Mark&uint32(flows.MarkAllowed) == 0 {
		return nil
	}
	return t.Deny(ctx, []openflow.Connection{c})
}

func (t connectionTracker) send(ctx context.Context, verb string, connections []openflow.Connection,
	verdict flows.Verdict) error {
	packets := make([]ofswitch.PacketOut, len(connections))
	for i, c := range connections {
		packets[i] = ofswitch.PacketOut{Packet: c.Packet(), Actions: verdict(c)}
	}
	if err := t.of.Send(ctx, packets); err != nil {
		return fmt.Errorf("%s %d connections: %w", verb, len(connections), err)
	}
	return nil
}
