package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// A change of the transport loses no packet, because every node sends only in a form that the receiver accepts:
//
//   - A node always accepts the switch's tunnels. It publishes that it accepts packets without one, in IPIP or
//     encrypted, once its switch and its kernel do, and accepts them for withdrawalGrace after it has taken that back.
//   - A node sends such packets to the nodes that publish this. Its kernel gets the routes before its
//     switch sends there, and keeps them until the switch no longer does (model.Snapshot.Routed).

// publishProblem is the part that writes the annotations of this node's object.
const publishProblem = "published underlay"

const (
	// withdrawalGrace is how long packets without a tunnel are accepted after the Node object no longer asks for them:
	// the time in which every other node's watch delivers the change.
	withdrawalGrace = 10 * time.Second
	// publishRetry is the pause after a patch that failed.
	publishRetry = 5 * time.Second
	// leaveTimeout bounds how long routes wait for the switch.
	leaveTimeout = 5 * time.Second
)

// reception decides how long this node accepts packets without a tunnel.
type reception struct{ last time.Time }

// grace reports whether to accept them although the setting may not ask for it, and after which time that ends: 0 when
// it does not end by itself. Wanted is the setting, published what the Node object says.
func (r *reception) grace(wanted, published bool, now time.Time) (accept bool, ends time.Duration) {
	if wanted || published {
		r.last = now
		return true, 0
	}
	left := withdrawalGrace - now.Sub(r.last)
	if r.last.IsZero() || left <= 0 {
		return false, 0
	}
	return true, left
}

// publish keeps the annotations of this node's object, and what it accepts although the setting does not ask for it.
func (a *Agent) publish(ctx context.Context, woken <-chan struct{}, ready func()) error {
	ready()
	var direct, ipip, encrypted reception
	for ctx.Err() == nil {
		view, now := a.loop.View(), time.Now()
		acceptDirect, pause := direct.grace(receivesDirect(view), view.Self.ReceivesDirect, now)
		acceptIPIP, ends := ipip.grace(receivesIPIP(view), view.Self.ReceivesIPIP, now)
		pause = earlier(pause, ends)
		acceptEncrypted, ends := encrypted.grace(view.Transport.Encrypted, view.Self.ReceivesWireGuard, now)
		pause = earlier(pause, ends)
		grace := state.SetReceiveGrace{Direct: acceptDirect, IPIP: acceptIPIP, WireGuard: acceptEncrypted}
		if grace != (state.SetReceiveGrace{Direct: view.ReceiveGrace, IPIP: view.IPIPGrace, WireGuard: view.WireGuardGrace}) {
			a.loop.Submit(grace)
		}
		err := a.publishSelf(ctx, view)
		a.setProblem(publishProblem, err)
		if err != nil {
			pause = publishRetry
		}
		if pause == 0 {
			pause = syncEvery
		}
		sleepOr(ctx, pause, woken)
	}
	return nil
}

// receivesDirect reports whether the settings ask for packets without a tunnel.
func receivesDirect(view *model.Snapshot) bool {
	return view.Transport.Mode != model.ModeOverlay && !view.Transport.Strict
}

// receivesIPIP reports whether the settings ask for packets in IPIP.
func receivesIPIP(view *model.Snapshot) bool {
	return view.Transport.Encapsulation == model.IPIP && !view.Transport.Strict
}

// acceptsIPIP reports whether the node is to have the devices: while it receives IPIP, and as long as others may still
// send it.
func acceptsIPIP(view *model.Snapshot) bool {
	return receivesIPIP(view) || view.Self.ReceivesIPIP || view.IPIPGrace
}

// earlier is the shorter of two pauses, of which 0 does not end.
func earlier(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// publishSelf patches the Node object when it does not say what is so.
func (a *Agent) publishSelf(ctx context.Context, view *model.Snapshot) error {
	underlay, err := host.Underlay(view.Self.Addrs)
	if err != nil {
		return err
	}
	a.mu.Lock()
	self := a.received
	a.mu.Unlock()
	self.Name, self.Underlay = a.opt.Node, underlay
	self.ReceivesDirect = self.ReceivesDirect && receivesDirect(view)
	self.ReceivesIPIP = self.ReceivesIPIP && receivesIPIP(view)
	self.ReceivesWireGuard = self.ReceivesWireGuard && view.Transport.Encrypted
	if slices.Equal(underlay, view.Self.Underlay) && self.ReceivesDirect == view.Self.ReceivesDirect &&
		self.ReceivesIPIP == view.Self.ReceivesIPIP && self.ReceivesWireGuard == view.Self.ReceivesWireGuard &&
		self.WireGuard == view.Self.WireGuard {
		return nil
	}
	return kube.Publish(ctx, a.client, self)
}

// routedByKernel are the pod CIDRs of peer nodes that the node's kernel is to lead to them, sorted.
func routedByKernel(view *model.Snapshot) []netip.Prefix {
	var list []netip.Prefix
	for _, path := range view.Paths {
		if path.Routed != "" {
			list = append(list, path.PodCIDRs...)
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return list
}

// findReached finds the peer nodes that packets reach without the switch's tunnels, as an earlier agent left it. When
// it returns, the snapshot has them: the MTU of pods follows from it.
func (a *Agent) findReached(ctx context.Context) error {
	_, err := a.findHandshakes()
	return errors.Join(err, a.findRouted(ctx), a.loop.Viewed(ctx, a.loop.Submitted()))
}

// findRouted tells the loop which of these pod CIDRs the kernel leads past the switch.
func (a *Agent) findRouted(context.Context) error {
	view := a.loop.View()
	cidrs, err := host.NotToSwitch(model.GatewayName, routedByKernel(view))
	if err == nil && !slices.Equal(cidrs, view.Routed) {
		a.loop.Submit(state.SetRouted{CIDRs: cidrs})
	}
	return err
}

// leaveRouted makes the switch stop sending to pod CIDRs that the kernel is about to lead to the switch again.
func (a *Agent) leaveRouted(ctx context.Context, view *model.Snapshot) {
	stay := routedByKernel(view)
	left := slices.DeleteFunc(slices.Clone(view.Routed), func(p netip.Prefix) bool {
		_, found := slices.BinarySearchFunc(stay, p, netip.Prefix.Compare)
		return !found
	})
	if len(left) == len(view.Routed) {
		return
	}
	a.loop.Submit(state.SetRouted{CIDRs: left})
	a.awaitSwitch(ctx)
}

// awaitSwitch waits until the switch has what the loop was told, for leaveTimeout at most: a switch that cannot be
// programmed must not keep the host's network.
func (a *Agent) awaitSwitch(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	_ = a.loop.Programmed(ctx, a.loop.Submitted())
}

// noteReceives records in which forms the node accepts packets besides tunnels, once its nftables and its switch do.
// Device is that of WireGuard, nil without one; ipip says that those of IPIP are there.
func (a *Agent) noteReceives(ctx context.Context, view *model.Snapshot, device *host.WireGuard, ipip bool) {
	var received model.Node
	if device != nil {
		received.WireGuard = model.WireGuard{Key: model.WireGuardKey(device.PrivateKey.PublicKey()), Port: device.Port}
	}
	received.ReceivesIPIP = ipip && receivesIPIP(view)
	received.ReceivesDirect, received.ReceivesWireGuard = receivesDirect(view), device != nil && view.Transport.Encrypted
	a.mu.Lock()
	known := a.received.Equal(received)
	a.mu.Unlock()
	receives := received.ReceivesDirect || received.ReceivesIPIP || received.ReceivesWireGuard
	if known || receives && a.loop.Programmed(ctx, a.loop.Submitted()) != nil {
		return
	}
	a.mu.Lock()
	a.received = received
	a.mu.Unlock()
}
