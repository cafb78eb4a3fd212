package programmer

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
)

// TestErrorOfThisNodeAlone: that a policy has no room is said of this node, so its own agent tells of it; that a policy
// is invalid is so everywhere, and one agent tells.
func TestErrorOfThisNodeAlone(t *testing.T) {
	for _, overBudget := range []bool{true, false} {
		var reported error
		l := New(Options{
			Node: "n1", Switch: ofswitch.NewFake(flows.Check), Log: slog.New(slog.DiscardHandler),
			Report: func(_ model.Owner, err error) { reported = err },
		})
		now := &model.Snapshot{Policies: map[model.PolicyID]model.Policy{model.NetworkPolicy("ns",
			"p"): {ID: model.NetworkPolicy("ns", "p"), Err: "why", OverBudget: overBudget}}}
		l.checkPolicies(&model.Snapshot{}, now, []model.Owner{model.NetworkPolicy("ns", "p").Owner()})
		if reported == nil || errors.As(reported, new(*LocalError)) != overBudget {
			t.Errorf("over budget %t: reported as %T %v", overBudget, reported, reported)
		}
	}
}
