package state_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/weft-cni/weft/internal/testing/fuzzing"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/state"
)

// TestEveryChange draws sequences of changes of every type and compares after each step: the flows and groups that the
// compiler has reached step by step, those that a fresh compiler makes of the snapshot, and those of a switch that has
// got the deltas only. 10,000 sequences: -rapid.checks=10000.
func TestEveryChange(t *testing.T) {
	t.Run("room for all", func(t *testing.T) { rapid.Check(t, everyChange(1_000_000)) })
	t.Run("budgets", func(t *testing.T) { rapid.Check(t, everyChange(100)) })
}

func FuzzEveryChange(f *testing.F) { fuzzing.Property(f, everyChange(100)) }

func everyChange(room int) func(*rapid.T) {
	return func(t *rapid.T) {
		d, store, compiler := newDrawing(t), state.NewBounded("n1", room, room), flows.NewCompiler()
		failing := map[model.Owner]bool{}
		wire := flows.Desired{Flows: map[openflow.Key]flows.Flow{}, Groups: map[openflow.GroupID]flows.Group{}}
		if d.maybe("begins with a cluster") {
			for _, c := range d.cluster() {
				store.Apply(c)
			}
		}
		steps := rapid.IntRange(1, 20).Draw(t, "steps")
		for step := range steps + 1 {
			for range rapid.IntRange(0, 3).Draw(t, "changes at once") {
				store.Apply(d.change())
			}
			if step == steps {
				store.Apply(state.Synced{})
			}
			snapshot, changed := store.Take()
			dirty := compiler.Dirty(snapshot, changed)
			delta, failed := compiler.Update(snapshot, changed)
			for _, o := range dirty {
				delete(failing, o)
			}
			for _, bad := range failed {
				failing[bad.Owner] = true
			}
			apply(t, wire, delta)
			compareFresh(t, snapshot, compiler, wire, failing)
			if step%4 == 0 {
				d.copies = append(d.copies, state.NewCopy(snapshot, d.now))
			}
		}
	}
}

// compareFresh compares with what a fresh compiler makes of a snapshot.
func compareFresh(t *rapid.T, s *model.Snapshot, c *flows.Compiler, wire flows.Desired, failing map[model.Owner]bool) {
	complete := *s
	complete.Paths, complete.Staging = nodepath.Resolve(s), model.AnyStaged(s.Policies)
	fresh, failed := flows.NewCompiler(), map[model.Owner]bool{}
	_, errs := fresh.Update(&complete, flows.Owners(s))
	for _, bad := range errs {
		failed[bad.Owner] = true
	}
	want := fresh.Desired().String()
	for what, got := range map[string]string{"incremental": c.Desired().String(), "on the switch": wire.String()} {
		if got != want {
			t.Fatalf("%s:\n%s\nfresh:\n%s", what, lines(got, want), lines(want, got))
		}
	}
	if got, want := fmt.Sprint(failing), fmt.Sprint(failed); got != want {
		t.Fatalf("failing step by step: %s; at once: %s", got, want)
	}
	if diff := cmp.Diff(fresh.Conflicts(), c.Conflicts(), cmpopts.EquateEmpty(),
		cmpopts.EquateComparable(openflow.Match{})); diff != "" {
		t.Fatalf("conflicts (-fresh +step by step)\n%s", diff)
	}
}

// apply changes what a switch holds, which must be what the delta expects.
func apply(t *rapid.T, wire flows.Desired, delta flows.Delta) {
	for _, f := range delta.Delete {
		if wire.Flows[f.Key].Flow != f.Flow {
			t.Fatalf("delta deletes %s, the switch has %s", f.Flow, wire.Flows[f.Key].Flow)
		}
		delete(wire.Flows, f.Key)
	}
	for _, f := range delta.Set {
		if wire.Flows[f.Key].Flow == f.Flow {
			t.Fatalf("delta sets %s again, which the switch has", f.Flow)
		}
		wire.Flows[f.Key] = f
	}
	for _, g := range delta.DeleteGroups {
		delete(wire.Groups, g.ID)
	}
	for _, g := range delta.SetGroups {
		wire.Groups[g.ID] = g
	}
}
