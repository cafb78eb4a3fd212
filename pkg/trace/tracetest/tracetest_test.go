package tracetest_test

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/trace/tracetest"
)

// Random tests rely on Check: it must notice both deviations from the verdict, and not take another drop for a
// policy's.
func TestCheck(t *testing.T) {
	allow, deny := policy.Verdict{Allowed: true}, policy.Verdict{}
	for _, c := range []struct {
		what     string
		expected policy.Verdict
		did      tracetest.Delivery
		wrong    bool
	}{
		{"allowed, arrives", allow, tracetest.Delivery{Arrived: true}, false},
		{"allowed, dropped by a policy", allow, tracetest.Delivery{Reason: flows.PolicyIngress}, true},
		{"allowed, lost on the way", allow, tracetest.Delivery{Wrong: "another pod's port"}, true},
		{"denied, dropped by a policy", deny, tracetest.Delivery{Reason: flows.PolicyEgress}, false},
		{"denied, arrives", deny, tracetest.Delivery{Arrived: true}, true},
		{"denied, dropped for another reason", deny, tracetest.Delivery{Reason: flows.NoRoute}, true},
	} {
		if err := tracetest.Check(c.expected, c.did); (err != nil) != c.wrong {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// A packet passes both nodes' switches, its reply comes back, and packets to an unused address arrive nowhere.
func TestNetwork(t *testing.T) {
	addr := netip.MustParseAddr
	a, b := addr("10.244.1.5"), addr("10.244.2.5")
	node := func(name, ip, cidr string) model.Node {
		return model.Node{Name: name, Addrs: []netip.Addr{addr(ip)}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}
	}
	c := tracetest.Cluster{
		Nodes:      []model.Node{node("n1", "172.30.0.1", "10.244.1.0/24"), node("n2", "172.30.0.2", "10.244.2.0/24")},
		Namespaces: map[string]map[string]string{"ns": {}},
		Pods: []policy.Pod{{Namespace: "ns", Name: "a", Node: "n1", Addrs: []netip.Addr{a}},
			{Namespace: "ns", Name: "b", Node: "n2", Addrs: []netip.Addr{b}}},
	}
	n, err := tracetest.New(c)
	if err != nil {
		t.Fatal(err)
	}
	there := tracetest.Packet{Src: a, Dst: b, Protocol: openflow.IPProtoTCP, SrcPort: 40000, DstPort: 80}
	if d := n.Send(there.Reply()); d.Arrived {
		t.Errorf("an answer to nothing arrives:\n%s", d)
	}
	for _, p := range []tracetest.Packet{there, there.Reply(), there.Next()} {
		if d := n.Send(p); !d.Arrived || len(d.Hops) != 2 {
			t.Errorf("%+v: arrived %t over %d switches, want 2:\n%s", p, d.Arrived, len(d.Hops), d)
		}
	}
	n.Forget()
	if d := n.Send(there.Reply()); d.Arrived {
		t.Errorf("the connection is forgotten, and its answer arrives:\n%s", d)
	}
	there.Dst = addr("10.244.2.77")
	if d := n.Send(there); d.Arrived || d.Reason != flows.NoSuchPod {
		t.Errorf("to an unused address: arrived %t, %s, want %s", d.Arrived, d.Reason, flows.NoSuchPod)
	}
}
