package agent

import (
	"context"
	"log/slog"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/programmer"
)

// heldLoop runs a loop of node n1 that takes changes into the snapshot and does not program its switch.
func heldLoop(t *testing.T) *programmer.Loop {
	t.Helper()
	l := programmer.New(programmer.Options{
		Node: "n1", Switch: ofswitch.NewFake(flows.Check), Log: slog.New(slog.DiscardHandler), Hold: make(chan struct{}),
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = l.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return l
}

// viewed is the snapshot with everything that was submitted.
func viewed(t *testing.T, l *programmer.Loop) *model.Snapshot {
	t.Helper()
	if err := l.Viewed(t.Context(), l.Submitted()); err != nil {
		t.Fatal(err)
	}
	return l.View()
}
