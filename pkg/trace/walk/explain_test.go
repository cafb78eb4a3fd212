package walk_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/pkg/trace/walk/walktest"
)

// explain explains a connection in a cluster of nodes.
func explain(t *testing.T, nodes []walk.Node, from, to string) (walk.Explanation, string) {
	t.Helper()
	c, err := walk.New(nodes, walk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	queries, err := c.Resolve(from, to, "")
	if err != nil || len(queries) != 1 {
		t.Fatalf("%v, %v", queries, err)
	}
	x := c.Explain(queries[0])
	var b strings.Builder
	if err := walk.WriteExplanations(&b, []walk.Explanation{x}, strings.ToUpper); err != nil {
		t.Fatal(err)
	}
	return x, b.String()
}

// TestExplainText: a person reads the policies of each end and tier, the rule, its counters, and the flows.
func TestExplainText(t *testing.T) {
	nodes := walktest.Nodes(t)
	nodes[1].Policies.Problems = map[string]string{"shop/web": "over budget"}
	for i := range nodes[1].Flows {
		nodes[1].Flows[i].Packets = 3
	}
	_, text := explain(t, nodes, "shop/client", "shop/web-2:8080")
	if diff := cmp.Diff(`shop/client (10.244.1.2) to 10.244.2.3:8080, TCP

Egress of shop/client on node1: allowed (flows: allowed)
  10.244.1.2:40000 to 10.244.2.3:8080, TCP
  Admin          pass: no policy selects the pod
  NetworkPolicy  pass: no policy selects the pod
  Baseline       pass: no policy selects the pod
Ingress of shop/web-2 on node2: allowed (flows: allowed)
  10.244.1.2:40000 to 10.244.2.3:8080, TCP
  Admin          pass: no policy selects the pod
  NetworkPolicy  allow: rule 0 of shop/web
    shop/web: rule 0 matches, 3 packets; not programmed as written: over budget
  Baseline       not reached: no policy selects the pod
  flow in IngressPolicy: 140 tcp,nw_src=10.244.1.2,nw_dst=10.244.2.3,tp_dst=8080 -> goto_table:60 [policy/shop/web] 3 packets
=> reaches shop/web-2 as 10.244.1.2:40000 to 10.244.2.3:8080, TCP

Verdict: allowed
`, text); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	x, text := explain(t, walktest.Nodes(t), "shop/other", "shop/web")
	for _, want := range []string{"Path 1 of 2", "deny: default: no rule of the policies that select the pod allows it",
		"shop/web: no rule matches", "flow in IngressDefault: ", "Verdict: denied\n"} {
		if x.Verdict != walk.Denied || len(x.Disagreements) > 0 || !strings.Contains(text, want) {
			t.Errorf("%s: want %q:\n%s", x.Verdict, want, text)
		}
	}
}

// TestExplainDisagreement: flows that are not what the policies ask for are found, whichever of them allows.
func TestExplainDisagreement(t *testing.T) {
	const denied = "Ingress of shop/web-1 on node node1: the policies say denied (Ingress: shop/web-1 is isolated by " +
		"shop/web, and no rule allows it), the flows say allowed"
	for name, tc := range map[string]struct {
		to     string
		flow   walk.Flow
		change func(*walk.Node)
		want   string
	}{
		"foreign flow lets pass": {to: "shop/web-1:8081", want: denied,
			flow: walk.Flow{Table: 56, Priority: 999, Match: "ip", Actions: "goto_table:60", Owner: walk.Foreign}},
		"foreign flow goes around": {to: "shop/web-1:8081", want: denied,
			flow: walk.Flow{Table: 0, Priority: 60000, Match: "in_port=16", Actions: "output:17", Owner: walk.Foreign}},
		"policy is not in the switch": {to: "shop/web-1:8080",
			flow:   walk.Flow{Table: 0, Priority: 1, Match: "arp", Actions: "drop"},
			change: func(n *walk.Node) { n.Policies.Policies[0].Ingress = nil },
			want:   strings.Replace(denied, "8081", "8080", 1)},
	} {
		nodes := walktest.Nodes(t)
		nodes[0].Flows = append(nodes[0].Flows, tc.flow)
		if tc.change != nil {
			tc.change(&nodes[0])
		}
		x, text := explain(t, nodes, "shop/client", tc.to)
		if len(x.Disagreements) != 1 || x.Disagreements[0] != tc.want || x.Verdict != walk.Denied ||
			walk.Agreed([]walk.Explanation{x}) || !strings.Contains(text, "POLICIES AND FLOWS DISAGREE: INGRESS OF SHOP/WEB-1") {
			t.Errorf("%s: %q, want %q\n%s", name, x.Disagreements, tc.want, text)
		}
	}
}

// TestExplainUnknown: without the labels of both ends, or with an older agent, the verdict is unknown, and nothing
// disagrees.
func TestExplainUnknown(t *testing.T) {
	for want, change := range map[string]func([]walk.Node) []walk.Node{
		"the labels of that pod are not known; was its node asked?": func(n []walk.Node) []walk.Node { return n[:1] },
		"the API server does not have the pod (any more)": func(n []walk.Node) []walk.Node {
			n[0].Policies.Pods = nil
			return n
		},
		"the agent of node node1 is older than this program": func(n []walk.Node) []walk.Node {
			n[0].Policies = nil
			return n
		},
	} {
		x, text := explain(t, change(walktest.Nodes(t)), "shop/client", "10.244.2.2:80")
		if x.Verdict != walk.Unknown || len(x.Disagreements) > 0 || !strings.Contains(text, want) {
			t.Errorf("%s %q, want %q\n%s", x.Verdict, x.Disagreements, want, text)
		}
	}
	// An address of a node that was asked, and that no pod has, needs no labels.
	if x, text := explain(t, walktest.Nodes(t), "shop/client", "10.244.2.9:80"); x.Verdict != walk.Allowed {
		t.Errorf("%s:\n%s", x.Verdict, text)
	}
}

// TestExplainPreview: beside what becomes of a connection, a person reads what would become of it if the staged
// policies were enforced, by the policies and by the preview's flows.
func TestExplainPreview(t *testing.T) {
	nodes := walktest.Nodes(t)
	for i := range nodes {
		for j := range nodes[i].Policies.Policies {
			nodes[i].Policies.Policies[j].Staged = true
		}
	}
	// The flows of the example are those of an enforced policy: what the policies say differs.
	x, text := explain(t, nodes, "shop/other", "shop/web-2:8080")
	if x.Verdict != walk.Denied || x.Preview != walk.Denied || len(x.Disagreements) != 1 {
		t.Errorf("%s", text)
	}
	nodes = walktest.Staged(t)
	x, text = explain(t, nodes, "shop/other", "shop/web-2:8080")
	for _, want := range []string{"Ingress of shop/web-2 on node2: allowed (flows: allowed)",
		"  if the staged policies were enforced: denied (flows: denied)",
		"    NetworkPolicy  deny: default: no rule of the policies that select the pod allows it\n" +
			"      shop/web (staged): no rule matches, 0 packets\n",
		"flow in PreviewIngressDefault: 100 ip,nw_dst=10.244.2.3 -> goto_table:72 [stagedpolicy/shop/web] 0 packets",
		"Verdict: allowed\nIf the staged policies were enforced: denied\n"} {
		if x.Verdict != walk.Allowed || x.Preview != walk.Denied || len(x.Disagreements) > 0 ||
			!strings.Contains(text, want) {
			t.Errorf("%s, preview %s: want %q:\n%s", x.Verdict, x.Preview, want, text)
		}
	}
	c, err := walk.New(nodes, walk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if text := c.Trace(x.Query).Text(false); strings.Contains(text, "Decided by: stagedpolicy") || !strings.Contains(text,
		"    if enforced: stagedpolicy shop/web Ingress: no rule of the pod's policies allows it\n") {
		t.Errorf("trace:\n%s", text)
	}
	// A flow of the preview that is not what the policies ask for is found.
	nodes[1].Flows = append(nodes[1].Flows, walk.Flow{Table: flows.PreviewDenied - 3, Priority: 999, Match: "ip",
		Actions: "goto_table:73", Owner: walk.Foreign})
	if x, text = explain(t, nodes, "shop/other", "shop/web-2:8080"); len(x.Disagreements) != 1 ||
		!strings.Contains(x.Disagreements[0], "if the staged policies were enforced: the policies say denied") {
		t.Errorf("disagreements %q:\n%s", x.Disagreements, text)
	}
}
