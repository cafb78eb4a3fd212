package trace_test

import (
	"flag"
	"os"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/trace/tracetest"
)

// checks makes rapid look at a number of random cases: that of the environment's WEFT_POLICY_SETS, or the default. The nightly run
// sets 100,000.
func checks(t *testing.T, byDefault int) {
	t.Helper()
	n := byDefault
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
	t.Cleanup(func() { _ = option.Value.Set(before) }) // it was that before
}

// TestRandomPolicies: whatever the policies, packets do in the flows what policy.Eval promises. Objects are resolved for each node,
// compiled, and followed from node to node: the first packet of a connection, what answers it, what follows, and all that again
// when the policies have changed meanwhile.
func TestRandomPolicies(t *testing.T) {
	checks(t, 2000)
	rapid.Check(t, func(t *rapid.T) {
		c := tracetest.DrawCluster(t)
		c.Policies = tracetest.DrawPolicies(t)
		n, err := tracetest.New(c)
		if err != nil {
			t.Fatal(err)
		}
		view := c.View()
		check := func(what string, promised, p tracetest.Packet) bool {
			verdict := tracetest.Promise(view, promised)
			if err := tracetest.Check(verdict, n.Send(p)); err != nil {
				t.Fatalf("%s %+v: %v\n%s", what, p, err, n.Explain(p))
			}
			return verdict.Allowed
		}
		var established []tracetest.Packet
		for _, p := range tracetest.DrawPackets(t, c) {
			if tracetest.OffTheMap(c, p) {
				continue
			}
			if check("first", p, p) && p.Src != p.Dst {
				check("reply", p, p.Reply())
				check("next", p, p.Next())
				established = append(established, p)
			}
		}
		// Policies that change are true for connections that exist, in both directions.
		c.Policies = tracetest.DrawPolicies(t)
		view = c.View()
		if err := n.SetPolicies(c); err != nil {
			t.Fatal(err)
		}
		for _, p := range established {
			check("next, under new policies", p, p.Next())
			check("reply, under new policies", p, p.Reply())
		}
	})
}

func BenchmarkRandomPolicies(b *testing.B) {
	packets := 0
	for b.Loop() {
		b.StopTimer()
		var c tracetest.Cluster
		var list []tracetest.Packet
		gen := rapid.Custom(func(t *rapid.T) int {
			c = tracetest.DrawCluster(t)
			c.Policies = tracetest.DrawPolicies(t)
			list = tracetest.DrawPackets(t, c)
			return 0
		})
		gen.Example(packets)
		b.StartTimer()
		n, err := tracetest.New(c)
		if err != nil {
			b.Fatal(err)
		}
		for _, p := range list {
			n.Send(p)
		}
		packets += len(list)
	}
	b.ReportMetric(float64(packets)/b.Elapsed().Seconds(), "packets/s")
}
