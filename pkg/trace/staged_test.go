package trace_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/trace"
	"github.com/weft-cni/weft/pkg/trace/tracetest"
)

// TestRandomStagedPolicies: beside staged policies, the others do with every packet what they do without them, and the
// preview says of each packet what policy.Eval says of all policies, on every node that the packet passes. Then staged
// policies become enforced and others staged, under connections that exist.
func TestRandomStagedPolicies(t *testing.T) {
	checks(t, 150)
	rapid.Check(t, randomStagedPolicies)
}

func randomStagedPolicies(t *rapid.T) {
	with := tracetest.DrawCluster(t)
	with.Policies = stage(t, tracetest.DrawPolicies(t))
	without := with
	without.Policies = enforced(with.Policies)
	staging, plain := build(t, with), build(t, without)
	compare := func(what string, p tracetest.Packet) tracetest.Delivery {
		got, want := staging.Explain(p), plain.Send(p)
		if fate(got) != fate(want) {
			t.Fatalf("%s %+v: with staged policies %s, without %s\n%s", what, p, fate(got), fate(want), got)
		}
		return got
	}
	preview := func(what string, p tracetest.Packet) (arrived bool) {
		d := compare(what, p)
		for _, hop := range d.Hops {
			denied, previewed := previewOf(hop.Result)
			if expected := wouldBeDenied(with.ForEval().Preview(), hop.Node, p); previewed && denied != expected ||
				previewed != (model.AnyStaged(staging.Policies(hop.Node))) {
				t.Fatalf("%s %+v on %s: previewed %t, would be denied %t; want %t\n%s", what, p, hop.Node, previewed, denied,
					expected, hop.Result)
			}
		}
		return d.Arrived
	}
	packets := slices.DeleteFunc(tracetest.DrawPackets(t, with),
		func(p tracetest.Packet) bool { return tracetest.Unroutable(with, p) })
	packets = packets[:min(len(packets), 10)]
	established := map[tracetest.Packet]bool{}
	for _, p := range packets {
		if established[p] = preview("first", p) && p.Src != p.Dst; established[p] {
			compare("reply", p.Reply())
			preview("next", p.Next())
		}
	}
	for range 2 {
		with.Policies = restage(t, with.Policies)
		without.Policies = enforced(with.Policies)
		for n, c := range map[*tracetest.Network]tracetest.Cluster{staging: with, plain: without} {
			if err := n.SetPolicies(c); err != nil {
				t.Fatal(err)
			}
			n.Sweep()
		}
		for _, p := range packets {
			if established[p] {
				compare("reply after a change", p.Reply())
				preview("next after a change", p.Next())
			} else {
				preview("first after a change", p)
			}
			if staging.Allows(p) != plain.Allows(p) {
				t.Fatalf("the audit of %+v differs", p)
			}
		}
	}
}

func build(t *rapid.T, c tracetest.Cluster) *tracetest.Network {
	n, err := tracetest.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// stage makes some policies staged, one at least.
func stage(t *rapid.T, list []policy.Policy) []policy.Policy {
	list = slices.Clone(list)
	for i := range list {
		list[i].Staged = i == 0 || rapid.Bool().Draw(t, "staged")
	}
	return list
}

// restage is stage with none staged now and then.
func restage(t *rapid.T, list []policy.Policy) []policy.Policy {
	list = stage(t, list)
	if rapid.IntRange(0, 2).Draw(t, "all enforced") == 0 {
		for i := range list {
			list[i].Staged = false
		}
	}
	return list
}

func enforced(list []policy.Policy) []policy.Policy {
	return slices.DeleteFunc(slices.Clone(list), func(p policy.Policy) bool { return p.Staged })
}

// fate is what becomes of a packet, on the wire and in the connection tables that it has met.
func fate(d tracetest.Delivery) string {
	text := fmt.Sprintf("arrived %t, reason %q %s", d.Arrived, d.Reason, d.Wrong)
	for _, hop := range d.Hops {
		for _, o := range hop.Result.Outputs {
			text += fmt.Sprintf("; %s port %d: %s", hop.Node, o.Port, o.Packet)
		}
	}
	return text
}

// previewOf is what the preview of a switch says about a packet.
func previewOf(r trace.Result) (denied, previewed bool) {
	for _, f := range r.Visited {
		switch f.Table {
		case flows.PreviewDenied:
			return true, true
		case flows.PreviewAllowed:
			return false, true
		}
	}
	return false, false
}

// wouldBeDenied says whether the policies of a node's pods deny a packet.
func wouldBeDenied(c policy.Cluster, node string, p tracetest.Packet) bool {
	one := tracetest.ForEval(p)
	for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
		if decision := c.Decide(d, one); decision.Subject != nil && decision.Subject.Node == node && !decision.Allowed {
			return true
		}
	}
	return false
}
