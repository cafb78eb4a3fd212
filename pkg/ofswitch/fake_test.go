package ofswitch_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// TestFakeHoldsTheContract: the fake rejects, whole, what breaks the contract of a table: a flow's actions, and those
// of a group that a flow of the table uses, whether the flow comes with the group or is there already.
func TestFakeHoldsTheContract(t *testing.T) {
	group := func(actions string) openflow.Group {
		g, err := openflow.ParseGroup("group_id=1,type=select,bucket=bucket_id:0,actions=" + actions)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	good, bad := group("drop"), group("local")
	using := openflow.Flow{Key: openflow.Key{Table: 40, Priority: 5, Match: openflow.ParseMatch("ip")},
		Actions: openflow.ParseActions("group:1")}
	sw := ofswitch.NewFake(func(f openflow.Flow) error {
		if f.Table == 40 && strings.Contains(f.Actions.String(), "local") {
			return errors.New("table 40 does not send to the node")
		}
		return nil
	})
	for _, step := range []struct {
		what    string
		delta   openflow.Delta
		refused bool
	}{
		{"a flow", openflow.Delta{Set: []openflow.Flow{{Key: using.Key, Actions: openflow.ParseActions("local")}}}, true},
		{"a flow with its group", openflow.Delta{Set: []openflow.Flow{using}, SetGroups: []openflow.Group{bad}}, true},
		{"a flow without its group", openflow.Delta{Set: []openflow.Flow{using}}, true},
		{"both right", openflow.Delta{Set: []openflow.Flow{using}, SetGroups: []openflow.Group{good}}, false},
		{"the group of a flow that is there", openflow.Delta{SetGroups: []openflow.Group{bad}}, true},
	} {
		var rejected *ofswitch.RejectedError
		if err := sw.Apply(t.Context(), step.delta); errors.As(err, &rejected) != step.refused {
			t.Errorf("%s: error = %v, want a rejection: %t", step.what, err, step.refused)
		}
	}
	if c, err := sw.Dump(t.Context()); err != nil || len(c.Flows) != 1 || len(c.Groups) != 1 || c.Groups[0] != good {
		t.Errorf("the switch has %+v, %v; want what was right", c, err)
	}
}
