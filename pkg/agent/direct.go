package agent

import (
	"context"
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
//   - A node always accepts tunnels. It publishes that it accepts packets without one once its switch and its nftables
//     do, and accepts them for withdrawalGrace after it has taken that back.
//   - A node sends packets without a tunnel to the nodes that publish this. Its kernel gets the routes before its switch
//     sends there, and keeps them until the switch no longer does (model.Snapshot.Routed).

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

// publish keeps the annotations of this node's object, and ReceiveGrace.
func (a *Agent) publish(ctx context.Context, woken <-chan struct{}, ready func()) error {
	ready()
	var r reception
	for ctx.Err() == nil {
		view := a.loop.View()
		wanted := view.Transport.Mode != model.ModeOverlay
		accept, pause := r.grace(wanted, view.Self.ReceivesDirect, time.Now())
		if accept != view.ReceiveGrace {
			a.loop.Submit(state.SetReceiveGrace{Receive: accept})
		}
		err := a.publishUnderlay(ctx, view)
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

// publishUnderlay patches the Node object when it does not say what is so.
func (a *Agent) publishUnderlay(ctx context.Context, view *model.Snapshot) error {
	underlay, err := host.Underlay(view.Self.Addrs)
	if err != nil {
		return err
	}
	a.mu.Lock()
	receives := a.receives && view.Transport.Mode != model.ModeOverlay
	a.mu.Unlock()
	if slices.Equal(underlay, view.Self.Underlay) && receives == view.Self.ReceivesDirect {
		return nil
	}
	return kube.Publish(ctx, a.client, a.opt.Node, underlay, receives)
}

// routedDirect are the pod CIDRs of peer nodes that the node's kernel is to lead to them, sorted.
func routedDirect(view *model.Snapshot) []netip.Prefix {
	var list []netip.Prefix
	for _, path := range view.Paths {
		if path.RoutedDirect {
			list = append(list, path.PodCIDRs...)
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return list
}

// findRouted tells the loop which of these pod CIDRs the kernel leads past the switch.
func (a *Agent) findRouted(context.Context) error {
	view := a.loop.View()
	cidrs, err := host.NotToSwitch(model.GatewayName, routedDirect(view))
	if err == nil && !slices.Equal(cidrs, view.Routed) {
		a.loop.Submit(state.SetRouted{CIDRs: cidrs})
	}
	return err
}

// leaveRouted makes the switch stop sending to pod CIDRs that the kernel is about to lead to the switch again.
func (a *Agent) leaveRouted(ctx context.Context, view *model.Snapshot) {
	stay := routedDirect(view)
	left := slices.DeleteFunc(slices.Clone(view.Routed), func(p netip.Prefix) bool {
		_, found := slices.BinarySearchFunc(stay, p, netip.Prefix.Compare)
		return !found
	})
	if len(left) == len(view.Routed) {
		return
	}
	a.loop.Submit(state.SetRouted{CIDRs: left})
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	_ = a.loop.Programmed(ctx, a.loop.Submitted()) // a switch that cannot be programmed must not keep the host's network
}

// noteReceives records whether the node accepts packets without a tunnel, once its nftables do and its switch does.
func (a *Agent) noteReceives(ctx context.Context, view *model.Snapshot) {
	receives := view.Transport.Mode != model.ModeOverlay
	a.mu.Lock()
	known := a.receives == receives
	a.mu.Unlock()
	if known || receives && a.loop.Programmed(ctx, a.loop.Submitted()) != nil {
		return
	}
	a.mu.Lock()
	a.receives = receives
	a.mu.Unlock()
}
