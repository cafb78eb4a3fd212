package state_test

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/state"
)

// TestPendingIsBounded: a change of one object after the other takes no more room than the objects.
func TestPendingIsBounded(t *testing.T) {
	var p state.Pending
	const objects, rounds = 20, 2000
	for i := range rounds {
		for n := range objects {
			name := fmt.Sprintf("o%d", n)
			p.Add(state.SetPod{Pod: policy.Pod{Namespace: "ns", Name: name, UID: fmt.Sprint(i)}})
			p.Add(state.SetJoinedService{Service: model.Service{Name: "ns/" + name, HealthCheckNodePort: uint16(i)}})
			p.Add(state.SetPolicy{Policy: policy.Policy{Namespace: "ns", Name: name, Err: fmt.Sprint(i)}})
			p.Add(state.SetNamespace{Namespace: policy.Namespace{Name: name, Labels: map[string]string{"i": fmt.Sprint(i)}}})
			p.Add(state.SetNode{Node: node(name, "172.30.0.1", "10.244.1.0/24")}) // a heartbeat
			p.Add(state.SetAttachment{Attachment: pod(name, uint32(i))})
			p.Add(state.DeleteAttachment{Key: pod(name, 0).Key()})
		}
		p.Add(state.SetTime{Now: time.Unix(int64(i), 0)})
		if most := 2*(7*objects+1) + 64; p.Len() > most {
			t.Fatalf("%d changes after %d rounds, want at most %d", p.Len(), i+1, most)
		}
	}
	if n := len(p.Take()); n != 7*objects+1 {
		t.Errorf("%d changes are left of %d objects", n, objects)
	}
	if n := len(p.Take()); n != 0 || p.Len() != 0 {
		t.Errorf("%d changes are left after all were taken", n)
	}
}

// TestPendingChangesNothing: a store that is given what is pending comes to the same as one that is given each change.
func TestPendingChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		direct, batched, d := state.New("n1"), state.New("n1"), newDrawing(t)
		var p state.Pending
		for range rapid.IntRange(1, 20).Draw(t, "rounds") {
			for range rapid.IntRange(0, 12).Draw(t, "changes") {
				c := d.change()
				direct.Apply(c)
				p.Add(c)
			}
			for _, c := range p.Take() {
				batched.Apply(c)
			}
			want, _ := direct.Take()
			got, _ := batched.Take()
			if diff := cmp.Diff(facts(want), facts(got), cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
				t.Fatalf("(-each change +what is pending)\n%s", diff)
			}
		}
	})
}

// facts are a snapshot without the numbers that count changes.
func facts(s *model.Snapshot) model.Snapshot {
	copied := *s
	copied.Revision, copied.NodesRevision, copied.ServicesRevision, copied.PodsRevision = 0, 0, 0, 0
	return copied
}
