package flows_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// logged are a policy that logs, one that allows the same by another rule, and one about the same pod that does not
// log.
func logged() *model.Snapshot {
	pod := []netip.Addr{netip.MustParseAddr("10.244.1.2")}
	side := func(index int, id uint32) *model.PolicySide {
		return &model.PolicySide{Pods: pod, Rules: []model.PolicyRule{{Index: index, ID: id, Pods: pod, AnyPeer: true,
			Ports: []model.PortMatch{{Protocol: model.TCP, Port: 80, Mask: 0xffff}}}}}
	}
	return &model.Snapshot{Self: model.Node{Name: "n1"}, Transport: model.Tunnel(model.Geneve),
		Policies: map[model.PolicyID]model.Policy{
			model.NetworkPolicy("ns", "a"): {ID: model.NetworkPolicy("ns", "a"), Log: true, Ingress: side(0, 1)},
			model.NetworkPolicy("ns", "b"): {ID: model.NetworkPolicy("ns", "b"), Log: true, Ingress: side(7, 2)},
			model.NetworkPolicy("ns", "c"): {ID: model.NetworkPolicy("ns", "c"), Ingress: &model.PolicySide{Pods: pod}},
		}}
}

// TestLoggingIsNoConflict: policies that allow the same want to write down different things about it; that does not
// conflict.
func TestLoggingIsNoConflict(t *testing.T) {
	c := flows.NewCompiler()
	s := logged()
	if _, failed := c.Update(s, flows.Owners(s)); len(failed) > 0 {
		t.Fatal(failed)
	}
	if conflicts := c.Conflicts(); len(conflicts) > 0 {
		t.Errorf("conflicts: %v", conflicts)
	}
	copies := 0
	for _, f := range c.Desired().Flows {
		if f.Copies() {
			copies++
			if f.Owner != model.NetworkPolicy("ns", "a").Owner() {
				t.Errorf("%s is of %s, want the first that logs", f, f.Owner)
			}
		}
	}
	if copies != 2 {
		t.Errorf("%d flows copy, want one for what is allowed and one for what is denied", copies)
	}
}

// TestRefusedLoggingStaysClosed: a switch that cannot copy refuses the policy; its pods stay isolated, by flows that
// every switch can have.
func TestRefusedLoggingStaysClosed(t *testing.T) {
	c := flows.NewCompiler()
	s := logged()
	c.Update(s, flows.Owners(s))
	for _, name := range []string{"ns/a", "ns/b"} {
		c.Exclude(policyID(name).Owner())
	}
	isolated := false
	for _, f := range c.Desired().Flows {
		if f.Copies() {
			t.Errorf("%s is left", f)
		}
		isolated = isolated || f.Reason == flows.PolicyIngress && f.Actions.String() == "goto_table:59"
	}
	if !isolated {
		t.Error("the pod is open")
	}
}

// TestCountersWhereOthersLog: what is denied is counted by the flow that copies; it counts for every policy of the pod.
func TestCountersWhereOthersLog(t *testing.T) {
	desired, err := flows.Compile(logged())
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range logged().Policies {
		counters, err := flows.Counters(p)
		if err != nil {
			t.Fatal(err)
		}
		for key, f := range desired.Flows {
			if f.Reason == flows.PolicyIngress && !slices.Contains(counters, flows.Counter{Key: key,
				Rule: flows.Rule{Direction: model.Ingress, Index: flows.Isolation, Verdict: model.Deny}}) {
				t.Errorf("%s: %s does not count", name, f)
			}
			if f.Copies() && f.Reason == "" && p.Log && !slices.ContainsFunc(counters, func(c flows.Counter) bool {
				return c.Key == key && c.Index >= 0
			}) {
				t.Errorf("%s: %s does not count", name, f)
			}
		}
	}
}

// TestDecisionOf: what a flow's copy says is what its policy decides.
func TestDecisionOf(t *testing.T) {
	desired, err := flows.Compile(logged())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range desired.Flows {
		if !f.Copies() {
			continue
		}
		_, text, _ := strings.Cut(f.Actions.String(), "userdata=")
		text, _, _ = strings.Cut(text, ",")
		head := fmt.Sprintf("%s(OF1.5) table_id=%d cookie=%#x", openflow.PacketInBegin, f.Table, f.Cookie)
		p, err := openflow.ParsePacketIn(head, " userdata="+text, "tcp,nw_src=10.0.0.1,nw_dst=10.244.1.2,tp_src=1,tp_dst=80")
		if err != nil {
			t.Fatal(err)
		}
		d, ok := flows.DecisionOf(p)
		got[fmt.Sprint(d, ok)] = true
		p.Cookie = 1
		if _, ok := flows.DecisionOf(p); ok {
			t.Error("another program's copy was taken for ours")
		}
	}
	for _, want := range []string{"{NetworkPolicy Ingress 0 Accept false} true",
		"{NetworkPolicy Ingress -1 Deny false} true"} {
		if !got[want] {
			t.Errorf("copies say %v, want %s", got, want)
		}
	}
}

// TestMetersOfDelta: a change with flows that copy packets brings the meters that limit the copies, another one none.
func TestMetersOfDelta(t *testing.T) {
	for actions, want := range map[string][]openflow.Meter{
		"controller(max_len=128,userdata=57,meter_id=22373),drop": flows.Meters,
		"drop": nil,
	} {
		d := flows.Delta{Set: []flows.Flow{{Flow: openflow.Flow{Actions: openflow.ParseActions(actions)}}}}
		if got := d.OpenFlow().Meters; !slices.Equal(got, want) {
			t.Errorf("%s: meters %v, want %v", actions, got, want)
		}
	}
}
