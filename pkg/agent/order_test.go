package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/programmer"
)

// orderCases are the steps of a change of the transport that must not come before the switch is programmed.
var orderCases = map[string]struct {
	step func(*Agent, context.Context)
	// taken reports whether the step has had its effect.
	taken func(*Agent) bool
}{
	"routes to the switch": {
		step: func(a *Agent, ctx context.Context) {
			a.leaveRouted(ctx, &model.Snapshot{Routed: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}})
		},
	},
	"peers of WireGuard": {
		step: func(a *Agent, ctx context.Context) {
			a.acceptPeers(ctx, &model.Snapshot{Paths: map[string]model.Path{"n2": {WireGuard: model.WireGuardPeer{
				Key: model.WireGuardKey{1}, Endpoint: netip.MustParseAddrPort("172.31.0.12:51871")}}}})
		},
		taken: func(a *Agent) bool { return len(a.accepted) == 1 },
	},
	"received without a tunnel": {
		step: func(a *Agent, ctx context.Context) {
			a.noteReceives(ctx, &model.Snapshot{Transport: model.Transport{Mode: model.ModeDirect}}, nil, false)
		},
		taken: func(a *Agent) bool { return a.received.ReceivesDirect },
	},
	"received in IPIP": {
		step: func(a *Agent, ctx context.Context) {
			a.noteReceives(ctx, &model.Snapshot{Transport: model.Tunnel(model.IPIP)}, nil, true)
		},
		taken: func(a *Agent) bool { return a.received.ReceivesIPIP },
	},
	"received by WireGuard": {
		step: func(a *Agent, ctx context.Context) {
			encrypted := &model.Snapshot{Transport: model.Transport{Encrypted: true}}
			a.noteReceives(ctx, encrypted, &host.WireGuard{Port: 51871}, false)
		},
		taken: func(a *Agent) bool { return a.received.ReceivesWireGuard },
	},
}

// TestOrder: each step waits for the switch. Before that, the kernel would lead packets to a switch that sends them
// back, a peer would send what the switch drops, and other nodes would be told that this node receives what it does
// not.
func TestOrder(t *testing.T) {
	for name, tc := range orderCases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				hold := make(chan struct{})
				a := &Agent{loop: programmer.New(programmer.Options{Node: "n1", Switch: ofswitch.NewFake(flows.Check),
					Log: slog.New(slog.DiscardHandler), Hold: hold})}
				ended, done := make(chan struct{}), make(chan struct{})
				go func() { defer close(ended); _ = a.loop.Run(ctx) }()
				begin := time.Now()
				go func() { defer close(done); tc.step(a, ctx) }()
				synctest.Wait()
				select {
				case <-done:
					t.Error("it did not wait for the switch")
				default:
				}
				if tc.taken != nil && tc.taken(a) {
					t.Error("its effect came before the switch was programmed")
				}
				close(hold)
				<-done
				if took := time.Since(begin); took >= leaveTimeout {
					t.Errorf("it went on after %s, although the switch was programmed", took)
				}
				if tc.taken != nil && !tc.taken(a) {
					t.Error("it had no effect")
				}
				stop()
				<-ended
			})
		})
	}
}

// TestOrderHasAnEnd: a switch that cannot be programmed keeps the host's network for five seconds at most.
func TestOrderHasAnEnd(t *testing.T) {
	for _, name := range []string{"routes to the switch", "peers of WireGuard"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, begin := &Agent{loop: heldLoop(t)}, time.Now()
				orderCases[name].step(a, t.Context())
				if took := time.Since(begin); took != leaveTimeout {
					t.Errorf("it took %s, want %s", took, leaveTimeout)
				}
			})
		})
	}
}
