package walk_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/pkg/trace/walk/walktest"
)

// shop is the test's cluster as weftctl has it: through JSON.
func shop(t *testing.T) *walk.Cluster {
	t.Helper()
	text, err := json.Marshal(walktest.Nodes(t))
	if err != nil {
		t.Fatal(err)
	}
	var nodes []walk.Node
	if err := json.Unmarshal(text, &nodes); err != nil {
		t.Fatal(err)
	}
	c, err := walk.New(nodes, walk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestVerdicts: a trace ends with where a connection ends, and with what decided.
func TestVerdicts(t *testing.T) {
	c := shop(t)
	const rejected = "no endpoint, or no such port of the Service"
	const allowed, denied = "policy shop/web Ingress rule 0",
		"policy shop/web Ingress: no rule of the pod's policies allows it"
	for _, tc := range []struct {
		from, to string
		verdict  string
		decided  []string
		not      string
	}{
		{"shop/client", "shop/web:80", "reaches shop/web-1, shop/web-2",
			[]string{"Service shop/web", allowed, "path of node node2", "path of node node1"}, ""},
		{"client", "pod/shop/web-2:8080/tcp", "reaches shop/web-2", []string{"path of node node2", allowed}, "Service"},
		{"shop/other", "shop/web", "dropped policy-ingress", []string{"Service shop/web", denied}, allowed},
		{"shop/client", "shop/web-1:8081", "dropped policy-ingress", []string{denied}, allowed},
		{"shop/client", "10.244.2.2", "reaches shop/other", []string{"path of node node2"}, "policy"},
		{"shop/client", "service/shop/empty", "refused " + rejected, []string{"Service shop/empty"}, ""},
		{"shop/client", "outside:443", "reaches outside", nil, "Service"},
		{"shop/client", "198.51.100.7:53/UDP", "reaches outside", nil, "Service"},
		{"node1", "shop/other:80", "reaches shop/other", []string{"path of node node2"}, ""},
		{"shop/client", "node/node2:22", "reaches node2", nil, ""},
		{"shop/client", "10.96.0.99:80", "refused " + rejected, nil, ""},
		{"outside", "shop/web-1:8080", "dropped no-route", nil, ""},
	} {
		queries, err := c.Resolve(tc.from, tc.to, "")
		if err != nil || len(queries) != 1 {
			t.Errorf("%s to %s: %v, %v", tc.from, tc.to, queries, err)
			continue
		}
		trace := c.Trace(queries[0])
		text := trace.Text(true)
		if want := "Verdict: " + tc.verdict + "\n"; !strings.Contains(text, want) {
			t.Errorf("%s to %s: want %q:\n%s", tc.from, tc.to, want, text)
		}
		for _, want := range tc.decided {
			if !slices.Contains(trace.Decided, want) {
				t.Errorf("%s to %s: decided by %q, want %q", tc.from, tc.to, trace.Decided, want)
			}
		}
		if all := strings.Join(trace.Decided, "; "); tc.not != "" && strings.Contains(all, tc.not) {
			t.Errorf("%s to %s: decided by %q, not by %q", tc.from, tc.to, all, tc.not)
		}
	}
}

// TestText: a person reads each hop, the reply and the verdict.
func TestText(t *testing.T) {
	c := shop(t)
	queries, err := c.Resolve("client", "web-2:8080", "shop")
	if err != nil {
		t.Fatal(err)
	}
	want := `switch of node1  from pod shop/client: 10.244.1.2:40000 to 10.244.2.3:8080, TCP
    path of node node2
    tunnel to node node2 (172.30.0.2): 10.244.1.2:40000 to 10.244.2.3:8080, TCP
switch of node2  from the tunnel of 172.30.0.1: 10.244.1.2:40000 to 10.244.2.3:8080, TCP
    path of node node1
    policy shop/web Ingress rule 0
    to pod shop/web-2: 10.244.1.2:40000 to 10.244.2.3:8080, TCP
reply
switch of node2  from pod shop/web-2: 10.244.2.3:8080 to 10.244.1.2:40000, TCP
    path of node node1
    tunnel to node node1 (172.30.0.1): 10.244.2.3:8080 to 10.244.1.2:40000, TCP
switch of node1  from the tunnel of 172.30.0.2: 10.244.2.3:8080 to 10.244.1.2:40000, TCP
    path of node node2
    to pod shop/client: 10.244.2.3:8080 to 10.244.1.2:40000, TCP
=> reaches shop/web-2 as 10.244.1.2:40000 to 10.244.2.3:8080, TCP

Verdict: reaches shop/web-2
Decided by: path of node node2; path of node node1; policy shop/web Ingress rule 0
`
	trace := c.Trace(queries[0])
	if diff := cmp.Diff(want, trace.Text(false)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if verbose := trace.Text(true); !strings.Contains(verbose, "[pod/shop/client]") ||
		!strings.Contains(verbose, "SpoofGuard: ") {
		t.Errorf("without flows and owners:\n%s", verbose)
	}
}

// TestResolve: what a user wrote that means nothing, or several things, is an error that says what to write.
func TestResolve(t *testing.T) {
	nodes := walktest.Nodes(t)
	nodes[0].Pods = append(nodes[0].Pods,
		walk.Pod{Name: "bank/client", IPs: []netip.Addr{netip.MustParseAddr("10.244.1.9")}, Port: 30},
		walk.Pod{Name: "shop/web", IPs: []netip.Addr{netip.MustParseAddr("10.244.1.8")}, Port: 31},
		walk.Pod{Name: "kube-system/proxy", HostNetwork: true})
	nodes[1].Frontends = append(nodes[1].Frontends, walk.Frontend{Service: "shop/dns", Kind: "ClusterIP", Protocol: "UDP",
		At: netip.MustParseAddrPort("10.96.0.10:53")}, walk.Frontend{Service: "shop/dns", Kind: "ClusterIP", Protocol: "TCP",
		At: netip.MustParseAddrPort("10.96.0.10:53")})
	c, err := walk.New(nodes, walk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ from, to, namespace, want string }{
		{"client", "shop/other", "", "client may be pod/bank/client or pod/shop/client; write one of them"},
		{"shop/client", "shop/web:80", "", "shop/web may be pod/shop/web or service/shop/web; write one of them"},
		{"shop/clint", "shop/other", "", `there is no pod or node "shop/clint" on the nodes that were asked`},
		{"shop/client", "othr", "shop", `there is no pod, Service or node "othr" on the nodes that were asked`},
		{"shop/client", "shop/dns", "", "the Service shop/dns has several ports; add one of :53/UDP, :53/TCP"},
		{"shop/client", "shop/other:http", "",
			`invalid port "http" in "shop/other:http"; write NAME:PORT or NAME:PORT/PROTOCOL`},
		{"shop/client", "shop/other:1/ICMP", "", `invalid protocol "ICMP" in "shop/other:1/ICMP"; allowed: TCP, UDP, SCTP`},
		{"shop/client", "fd00::1", "", "shop/client and fd00::1 have no addresses of one family"},
	} {
		if _, err := c.Resolve(tc.from, tc.to, tc.namespace); err == nil || err.Error() != tc.want {
			t.Errorf("%s to %s: %v, want %q", tc.from, tc.to, err, tc.want)
		}
	}
	for _, tc := range []struct{ from, to, namespace, want string }{
		{"client", "other:9", "shop", "10.244.1.2 10.244.2.2:9 6"},
		{"svc", "shop/dns:53/UDP", "", "there is no"},
		{"proxy", "shop/other:9/SCTP", "", "10.244.1.1 10.244.2.2:9 132"},
		{"node/node1", "10.244.2.2", "", "10.244.1.1 10.244.2.2:0 1"},
	} {
		queries, err := c.Resolve(tc.from, tc.to, tc.namespace)
		var got string
		if err == nil {
			got = strings.Join([]string{queries[0].Src.String(), queries[0].To.String(), number(queries[0].Protocol)}, " ")
		} else {
			got = err.Error()
		}
		if !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s to %s: %s, want %s", tc.from, tc.to, got, tc.want)
		}
	}
	if places := c.Places(true); !slices.Contains(places, "service/shop/dns") ||
		!slices.Contains(places, "pod/shop/other") {
		t.Errorf("places %v", places)
	}
}

func number(n uint8) string {
	text, err := json.Marshal(n)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// TestForeign: a flow that Weft did not make decides and is named; one that cannot be interpreted is named, too.
func TestForeign(t *testing.T) {
	nodes := walktest.Nodes(t)
	nodes[0].Flows = append(nodes[0].Flows, walk.Flow{Table: 0, Priority: 60000, Match: "in_port=16", Actions: "drop",
		Owner: walk.Foreign}, walk.Flow{Table: 0, Priority: 1, Match: "nonsense=7", Actions: "drop", Owner: walk.Foreign})
	c, err := walk.New(nodes, walk.Options{})
	if err == nil || !strings.Contains(err.Error(), "node node1: flows that cannot be interpreted are left out") {
		t.Errorf("%v", err)
	}
	queries, err := c.Resolve("shop/client", "shop/other", "")
	if err != nil {
		t.Fatal(err)
	}
	if trace := c.Trace(queries[0]); trace.Verdict != walk.Dropped ||
		!slices.Contains(trace.Decided, "a foreign flow in table Classifier") {
		t.Errorf("%s", trace.Text(true))
	}
}

// TestCircles: a packet that a switch and its node's kernel send to each other without end is dropped, and the trace
// says so.
func TestCircles(t *testing.T) {
	pods := netip.MustParsePrefix("10.244.0.0/16")
	node := walk.Node{
		Name: "node1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.244.0.1")}, ClusterPods: []netip.Prefix{pods},
		Flows: []walk.Flow{{Priority: 1, Match: "ip", Actions: "IN_PORT", Owner: "pipeline"}},
	}
	c, err := walk.New([]walk.Node{node}, walk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := c.Trace(walk.Query{From: walk.Place{Node: "node1"}, Src: node.Addrs[0], Protocol: 6,
		To: netip.MustParseAddrPort("10.244.0.9:80")})
	if text := got.Text(false); got.Verdict != walk.Dropped || !strings.Contains(text, "goes in circles") {
		t.Errorf("%s", text)
	}
}
