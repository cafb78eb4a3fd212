//go:build integration

package cni_test

import (
	"context"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

// TestAddHasOneDeadline: all waits for the bridge end when the ADD ends, however late they began.
func TestAddHasOneDeadline(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	check(t, n.stop())
	ports := &timedPorts{Client: n.db}
	n.startWith(ports)
	n.mustAdd(n.conf("1.0.0", ""), n.pod("web"))
	if ports.deadline.IsZero() || !ports.deadline.Equal(n.flows.deadline) {
		t.Errorf("AddPort may take until %v, Attach until %v", ports.deadline, n.flows.deadline)
	}
}

// timedPorts records the deadline of the last AddPort.
type timedPorts struct {
	*ovsdb.Client
	deadline time.Time
}

func (p *timedPorts) AddPort(ctx context.Context, a model.Attachment) error {
	p.deadline, _ = ctx.Deadline()
	return p.Client.AddPort(ctx, a)
}
