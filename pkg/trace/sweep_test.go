package trace_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/trace/tracetest"
)

// TestRandomSweep: for random policies, an audit of the nodes' snapshots has policy.Eval's verdicts and the results of
// packets in the flows. After a sweep, replies of connections that the new policies deny are dropped, although the
// original direction is silent. Replies of allowed connections arrive, also when they were denied in between.
func TestRandomSweep(t *testing.T) {
	checks(t, 1000)
	rapid.Check(t, func(t *rapid.T) {
		c := tracetest.DrawCluster(t)
		c.Policies, c.Names = tracetest.DrawPoliciesWithNames(t), tracetest.DrawNames(t, c)
		c = c.Begun()
		ended := map[string]model.LearnedName{}
		for name, learned := range c.Names {
			ended[name] = model.LearnedName{Ended: learned.Addrs}
		}
		n, err := tracetest.New(c)
		if err != nil {
			t.Fatal(err)
		}
		view := c.ForEval()
		agree := func(p tracetest.Packet) bool {
			expected := tracetest.Expected(view, p)
			if got := n.Allows(p); got != expected.Allowed {
				t.Fatalf("%+v: the audit allows it %t, expected is %t (%s)", p, got, expected.Allowed, expected.Why)
			}
			return expected.Allowed
		}
		var established []tracetest.Packet
		for _, p := range tracetest.DrawPackets(t, c) {
			if tracetest.Unroutable(c, p) {
				continue
			}
			allowed := agree(p)
			if d := n.Send(p); d.Arrived != allowed {
				t.Fatalf("%+v: arrived %t, the audit allows it %t", p, d.Arrived, allowed)
			}
			if allowed && p.Src != p.Dst && n.Send(p.Reply()).Arrived {
				established = append(established, p)
			}
		}
		before := c.Policies
		for _, policies := range [][]policy.Policy{tracetest.DrawPoliciesWithNames(t), before} {
			c.Policies = policies
			c.Names = ended
			view = c.Begun().ForEval()
			if err := n.SetPolicies(c); err != nil {
				t.Fatal(err)
			}
			n.Sweep()
			for _, p := range established {
				if p.Protocol == openflow.IPProtoTCP || p.Protocol == openflow.IPProtoSCTP {
					continue // these always have packets of the original direction
				}
				allowed := agree(p)
				if d := n.Send(p.Reply()); d.Arrived != allowed {
					t.Fatalf("%+v is allowed %t by the new policies; its answer arrived %t:\n%s", p, allowed, d.Arrived,
						n.Explain(p.Reply()))
				}
			}
		}
		for _, p := range established {
			if allowed := agree(p); n.Send(p).Arrived != allowed {
				t.Fatalf("%+v is established; it is to go on: %t\n%s", p, allowed, n.Explain(p))
			}
		}
	})
}
