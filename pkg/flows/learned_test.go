package flows_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// stickyNode is a node with Services.
func stickyNode(services ...model.Service) *model.Snapshot {
	s := &model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve), Services: map[string]model.Service{}}
	for _, service := range services {
		s.Services[service.Name] = service
	}
	return s
}

// learnedBy are flows as a switch learns them from a Service's: one for each learn action, as if of a client each.
func learnedBy(t *testing.T, s model.Service) (list []openflow.Entry) {
	t.Helper()
	desired, err := flows.Compile(stickyNode(s))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range slices.SortedFunc(maps.Keys(desired.Flows), openflow.Key.Compare) {
		f := desired.Flows[key]
		if l, ok := f.Actions.Learned(); ok {
			match := fmt.Sprintf("tcp,nw_src=10.9.9.%d,nw_dst=10.96.0.9,tp_dst=80", len(list))
			list = append(list, openflow.Entry{IdleTimeout: l.IdleTimeout,
				Flow: openflow.Flow{Key: openflow.Key{Table: flows.Affinity, Priority: 100, Match: openflow.ParseMatch(match)},
					Cookie:  f.Cookie,
					Actions: l.Actions}})
		}
	}
	if len(list) == 0 {
		t.Fatal("the Service learns nothing: this test tests nothing")
	}
	return list
}

// learnedEnds are changes of a Service with affinity and three endpoints, and whether they end what the switch has
// learned.
var learnedEnds = []struct {
	name    string
	now     []model.Service
	forgets bool
}{
	{"nothing", []model.Service{stickyService("ns/web", time.Hour, 3)}, false},
	{"another endpoint", []model.Service{stickyService("ns/web", time.Hour, 4)}, false},
	{"no affinity", []model.Service{stickyService("ns/web", 0, 3)}, true},
	{"another timeout", []model.Service{stickyService("ns/web", time.Minute, 3)}, true},
	{"no Service", nil, true},
	{"another Service", []model.Service{stickyService("ns/other", time.Hour, 3)}, true},
}

// TestLearnedFlowsEnd: what the switch has learned for a Service ends with the Service and with its affinity, in the
// same bundle. An agent that was not there finds it in what the switch holds.
func TestLearnedFlowsEnd(t *testing.T) {
	before := stickyService("ns/web", time.Hour, 3)
	cookie := flows.Cookie(model.ServiceOwner(before.Name))
	all := flows.Flow{Flow: openflow.Flow{Key: openflow.Key{Table: flows.Affinity}, Cookie: cookie}}
	for _, test := range learnedEnds {
		var want []flows.Flow
		if test.forgets {
			want = append(want, all)
		}
		withoutOwner := func(list []flows.Flow) (result []flows.Flow) {
			for _, f := range list {
				f.Owner = model.Owner{}
				result = append(result, f)
			}
			return result
		}
		c, s := flows.NewCompiler(), stickyNode(before)
		if _, failed := c.Update(s, flows.Owners(s)); len(failed) > 0 {
			t.Fatal(failed)
		}
		owners := []model.Owner{model.ServiceOwner(before.Name), model.ServiceOwner("ns/other")}
		delta, failed := c.Update(stickyNode(test.now...), owners)
		if got := withoutOwner(delta.Forget); !slices.Equal(got, want) || len(failed) > 0 {
			t.Errorf("%s: the change forgets %v, want %v", test.name, got, want)
		}

		actual := openflow.Contents{Flows: learnedBy(t, before)}
		desired, err := flows.Compile(stickyNode(test.now...))
		if err != nil {
			t.Fatal(err)
		}
		foreign := openflow.Entry{Flow: openflow.Flow{Key: openflow.Key{Table: flows.Affinity, Priority: 7,
			Match: openflow.ParseMatch("ip")}, Cookie: 9}}
		actual.Flows = append(actual.Flows, foreign)
		diff := flows.Diff(actual, desired)
		if test.name == "another timeout" { // new ones may be learned meanwhile
			want = nil
			for _, e := range learnedBy(t, before) {
				want = append(want, flows.Flow{Flow: e.Flow})
			}
		}
		byKey := func(a, b flows.Flow) int { return a.Key.Compare(b.Key) }
		slices.SortFunc(want, byKey)
		if got := slices.SortedFunc(slices.Values(diff.Forget), byKey); !slices.Equal(got, want) || len(diff.Delete) > 0 {
			t.Errorf("%s: a reading of the switch forgets %v and deletes %v, want %v", test.name, got, diff.Delete, want)
		}
	}
}

// TestLearnedEndpointEnds: a learned flow that leads to an endpoint that is gone ends when the switch is read; others
// stay.
func TestLearnedEndpointEnds(t *testing.T) {
	learned := learnedBy(t, stickyService("ns/web", time.Hour, 3))
	desired, err := flows.Compile(stickyNode(stickyService("ns/web", time.Hour, 2)))
	if err != nil {
		t.Fatal(err)
	}
	diff := flows.Diff(openflow.Contents{Flows: learned}, desired)
	var known []openflow.Actions
	for _, f := range desired.Flows {
		if l, ok := f.Actions.Learned(); ok {
			known = append(known, l.Actions)
		}
	}
	forgotten := 0
	for _, e := range learned {
		gone := slices.ContainsFunc(diff.Forget, func(f flows.Flow) bool { return f.Flow == e.Flow })
		if gone == slices.Contains(known, e.Actions) {
			t.Errorf("%s is forgotten: %t", e, gone)
		}
		if gone {
			forgotten++
		}
	}
	if forgotten == 0 || forgotten != len(diff.Forget) || forgotten == len(learned) {
		t.Errorf("%d of %d learned flows are forgotten", forgotten, len(learned))
	}
}

// TestRenewedFlowStays: a reading of the switch leaves the flow that the agent renews while it learns names, and
// deletes another one of its table.
func TestRenewedFlowStays(t *testing.T) {
	entry := func(to openflow.TableID) openflow.Entry {
		f, err := openflow.New(flows.AnswerGate, flows.GatePriority, flows.Cookie(model.SelfOwner), "", nil,
			openflow.Goto(to))
		if err != nil {
			t.Fatal(err)
		}
		return openflow.Entry{Flow: f}
	}
	for to, deleted := range map[openflow.TableID]int{flows.AnswerHold: 0, flows.Output + 10: 1} {
		diff := flows.Diff(openflow.Contents{Flows: []openflow.Entry{entry(to)}}, flows.Desired{})
		if len(diff.Delete) != deleted {
			t.Errorf("a flow that leads to table %d: %d are deleted", to, len(diff.Delete))
		}
	}
}
