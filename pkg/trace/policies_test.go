package trace_test

import (
	"flag"
	"os"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/internal/testing/fuzzing"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/trace/tracetest"
)

// checks sets rapid's number of random cases: WEFT_POLICY_SETS from the environment, or the default. The nightly run
// sets 100,000.
func checks(t *testing.T, byDefault int) {
	t.Helper()
	n := byDefault
	if testing.Short() {
		n = max(1, byDefault/20)
	}
	if text := os.Getenv("WEFT_POLICY_SETS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatalf("WEFT_POLICY_SETS: %v", err)
		}
	}
	option := flag.Lookup("rapid.checks")
	before := option.Value.String()
	if err := option.Value.Set(strconv.Itoa(n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = option.Value.Set(before) }) // the value was valid before
}

// TestRandomPolicies: for random policies, the observed result of each packet is policy.Eval's verdict. Objects are
// resolved for each node, compiled, and traced from node to node: the first packet of a connection, its reply, later
// packets, and all again after the policies have changed, twice.
func TestRandomPolicies(t *testing.T) {
	checks(t, 2000)
	rapid.Check(t, randomPolicies)
}

func FuzzRandomPolicies(f *testing.F) { fuzzing.Property(f, randomPolicies) }

func randomPolicies(t *rapid.T) {
	c := tracetest.DrawCluster(t)
	c.Policies, c.Names = tracetest.DrawPoliciesWithNames(t), tracetest.DrawNames(t, c)
	n, err := tracetest.New(c)
	if err != nil {
		t.Fatal(err)
	}
	view := c.ForEval()
	check := func(what string, expected, p tracetest.Packet) bool {
		verdict := tracetest.Expected(view, expected)
		if err := tracetest.Check(verdict, n.Send(p)); err != nil {
			t.Fatalf("%s %+v: %v\n%s", what, p, err, n.Explain(p))
		}
		return verdict.Allowed
	}
	var established []tracetest.Packet
	for _, p := range tracetest.DrawPackets(t, c) {
		if tracetest.Unroutable(c, p) {
			continue
		}
		switch allowed := check("first", p, p); {
		case !allowed:
			// Sent again, it is not allowed by state of the first attempt, and a reply to it is not a reply.
			check("sent again", p, p)
			// (Without TCP's flags a reply looks like a new connection.)
			if p.Protocol == 6 && n.Send(p.Reply()).Arrived {
				t.Fatalf("an answer to the forbidden %+v arrives:\n%s", p, n.Explain(p.Reply()))
			}
		case p.Src != p.Dst:
			check("reply", p, p.Reply())
			check("next", p, p.Next())
			established = append(established, p)
		}
	}
	// Changed policies apply to existing connections, in both directions: a denied packet stops the replies, and an
	// allowed one enables them again.
	before := c.Policies
	for _, policies := range [][]policy.Policy{tracetest.DrawPoliciesWithNames(t), before} {
		c.Policies = policies
		view = c.Begun().ForEval()
		if err := n.SetPolicies(c); err != nil {
			t.Fatal(err)
		}
		for _, p := range established {
			if check("next, under new policies", p, p.Next()) {
				check("reply, under new policies", p, p.Reply())
			} else if d := n.Send(p.Reply()); d.Arrived || d.Reason != flows.UnaskedReply {
				t.Fatalf("reply to %+v, which new policies deny: arrived %t, %s\n%s", p, d.Arrived, d.Reason, n.Explain(p.Reply()))
			}
		}
	}
}

// BenchmarkNetwork is the cost of one packet through the whole pipeline, often on two nodes.
func BenchmarkNetwork(b *testing.B) {
	var c tracetest.Cluster
	packets := rapid.Custom(func(t *rapid.T) []tracetest.Packet {
		c = tracetest.DrawCluster(t)
		c.Policies = tracetest.DrawPolicies(t)
		return tracetest.DrawPackets(t, c)
	}).Example(7)
	n, err := tracetest.New(c)
	if err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		if i%1000 == 0 {
			n.Forget()
		}
		n.Send(packets[i%len(packets)])
		i++
	}
}
