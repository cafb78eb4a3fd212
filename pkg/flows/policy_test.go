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

func withPolicies(policies ...model.Policy) *model.Snapshot {
	s := &model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve),
		Policies: map[model.PolicyID]model.Policy{}}
	for _, p := range policies {
		s.Policies[p.ID] = p
	}
	return s
}

// square is a policy about n pods with m peers and some ports, in IPv4.
func square(name string, id uint32, n, m, ports int) model.Policy {
	side := &model.PolicySide{}
	for i := range n {
		side.Pods = append(side.Pods, netip.AddrFrom4([4]byte{10, 244, 1, byte(i + 2)}))
	}
	rule := model.PolicyRule{ID: id, Pods: side.Pods}
	for i := range m {
		rule.Peers = append(rule.Peers, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(2 + i/200), byte(i % 200)}),
			32))
	}
	for i := range ports {
		rule.Ports = append(rule.Ports, model.PortMatch{Protocol: model.TCP, Port: uint16(80 + i), Mask: 0xffff})
	}
	rule.AnyPort = ports == 0
	side.Rules = []model.PolicyRule{rule}
	return model.Policy{ID: policyID(name), Ingress: side}
}

// policyID is the identity of the NetworkPolicy namespace/name.
func policyID(name string) model.PolicyID {
	namespace, name, _ := strings.Cut(name, "/")
	return model.NetworkPolicy(namespace, name)
}

func compiled(t testing.TB, s *model.Snapshot) map[openflow.Key]flows.Flow {
	t.Helper()
	desired, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	return desired.Flows
}

func policyFlows(t testing.TB, s *model.Snapshot) []flows.Flow {
	t.Helper()
	var list []flows.Flow
	for _, f := range compiled(t, s) {
		if f.Owner.Kind == model.KindPolicy {
			list = append(list, f)
		}
	}
	return list
}

// TestPolicyGrowsWithTheSum: 200 pods by 200 peers stay under 1,000 flows (openshift-sdn needed 40,000), whatever the
// ports; a Deny of a ClusterNetworkPolicy, too.
func TestPolicyGrowsWithTheSum(t *testing.T) {
	for _, tier := range model.Tiers {
		for _, ports := range []int{0, 1, 2, 3, 10, 100} {
			p := square("ns/p", 1, 200, 200, ports)
			if p.Tier = tier; tier.Ordered() {
				p.ID, p.Ingress.Rules[0].Verdict = model.ClusterNetworkPolicy("p"), model.Deny
			}
			n := 0
			for _, f := range compiled(t, withPolicies(p)) {
				if f.Owner == p.ID.Owner() {
					n++
				}
			}
			if n < 400 || n >= 1000 {
				t.Errorf("%s: 200 pods, 200 peers and %d ports: %d flows", tier, ports, n)
			} else {
				t.Logf("%s: 200 pods, 200 peers and %d ports: %d flows", tier, ports, n)
			}
		}
	}
}

// TestPoliciesShareClauses: what two policies name has one flow, and each policy keeps its own way to be counted.
func TestPoliciesShareClauses(t *testing.T) {
	one := len(policyFlows(t, withPolicies(square("ns/a", 1, 20, 20, 10))))
	both := policyFlows(t, withPolicies(square("ns/a", 1, 20, 20, 10), square("ns/b", 2, 20, 20, 10)))
	if len(both) != one+1 {
		t.Errorf("two like policies have %d flows, one has %d; want one more, for the second's conjunction", len(both), one)
	}
	for _, f := range both {
		if strings.Contains(f.Actions.String(), "conjunction(1,") != strings.Contains(f.Actions.String(), "conjunction(2,") {
			t.Errorf("%s is not shared", f)
		}
	}
}

// TestPolicyFailsClosed: a policy that cannot be compiled, and one that the switch refuses, isolate and allow nothing.
func TestPolicyFailsClosed(t *testing.T) {
	good := square("ns/p", 1, 2, 2, 1)
	bad := square("ns/p", 1, 2, 2, 1)
	bad.Ingress.Rules[0].Ports[0] = model.PortMatch{Protocol: model.TCP, Port: 81, Mask: 0xfffe} // 81 is not of that range
	understood := square("ns/p", 1, 2, 2, 1)
	understood = understood.FailClosed() // as the store resolves one with an invalid rule
	isolation := func(desired flows.Desired) (drops, others int) {
		for _, f := range desired.Flows {
			switch {
			case f.Owner.Kind != model.KindPolicy:
			case f.Reason == flows.PolicyIngress:
				drops++
			default:
				others++
			}
		}
		return drops, others
	}
	c := flows.NewCompiler()
	s := withPolicies(good)
	if _, failed := c.Update(s, flows.Owners(s)); len(failed) > 0 {
		t.Fatal(failed)
	}
	if drops, others := isolation(c.Desired()); drops != 2 || others == 0 {
		t.Fatalf("good policy: %d flows isolate, %d others", drops, others)
	}
	c.Exclude(model.NetworkPolicy("ns", "p").Owner())
	if drops, others := isolation(c.Desired()); drops != 2 || others != 0 {
		t.Errorf("refused by the switch: %d flows isolate, %d others; want 2 and none", drops, others)
	}
	s = withPolicies(bad)
	_, failed := c.Update(s, []model.Owner{model.NetworkPolicy("ns", "p").Owner()})
	if drops, others := isolation(c.Desired()); len(failed) != 1 || drops != 2 || others != 0 {
		t.Errorf("cannot be compiled: errors %v, %d flows isolate, %d others; want one, 2 and none", failed, drops, others)
	}
	s = withPolicies(understood)
	_, failed = c.Update(s, []model.Owner{model.NetworkPolicy("ns", "p").Owner()})
	if drops, others := isolation(c.Desired()); len(failed) != 0 || drops != 2 || others != 0 {
		t.Errorf("not understood: errors %v, %d flows isolate, %d others; want none, 2 and none", failed, drops, others)
	}
}

// TestCounters: every rule of every direction, in each family, and the isolation have flows to count by, and these are
// in the switch.
func TestCounters(t *testing.T) {
	pods := addrs("10.244.1.2", "fd44:1::2")
	p := model.Policy{
		ID: policyID("shop/web"),
		Ingress: &model.PolicySide{Pods: pods, Rules: []model.PolicyRule{
			{Index: 0, ID: 1, Pods: pods, Peers: cidrs("10.0.0.0/9", "10.128.0.0/10", "10.192.0.0/12", "10.208.0.0/12",
				"fd00::/8"), Ports: []model.PortMatch{{Protocol: model.TCP, Port: 80, Mask: 0xffff}, {Protocol: model.TCP, Port: 90,
				Mask: 0xffff}}},
			{Index: 2, ID: 2, Pods: pods[:1], AnyPeer: true, AnyPort: true},
			{Index: 2, ID: 3, Pods: pods[1:], AnyPeer: true, Ports: []model.PortMatch{{Protocol: model.SCTP}}},
		}},
		Egress: &model.PolicySide{Pods: pods},
	}
	desired, err := flows.Compile(withPolicies(p))
	if err != nil {
		t.Fatal(err)
	}
	counters, err := flows.Counters(p)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range counters {
		f, ok := desired.Flows[c.Key]
		if !ok && c.Index == flows.Isolation {
			continue // only there when a policy of the pod logs; TestCountersWhereOthersLog
		}
		if !ok || f.Owner != model.NetworkPolicy("shop", "web").Owner() {
			t.Errorf("counter %v is not a flow of the policy: %v", c, f)
		}
		got = append(got, fmt.Sprintf("%s %d %s %s", c.Direction, c.Index, flows.TableName(c.Key.Table), c.Key.Match))
	}
	slices.Sort(got)
	want := []string{
		"Egress -1 EgressDefault ip,nw_src=10.244.1.2",
		"Egress -1 EgressDefault ipv6,ipv6_src=fd44:1::2",
		"Ingress -1 IngressDefault ip,nw_dst=10.244.1.2",
		"Ingress -1 IngressDefault ipv6,ipv6_dst=fd44:1::2",
		"Ingress 0 IngressPolicy conj_id=1,ip",
		"Ingress 0 IngressPolicy tcp6,ipv6_src=fd00::/8,ipv6_dst=fd44:1::2,tp_dst=80",
		"Ingress 0 IngressPolicy tcp6,ipv6_src=fd00::/8,ipv6_dst=fd44:1::2,tp_dst=90",
		"Ingress 2 IngressPolicy ip,nw_dst=10.244.1.2",
		"Ingress 2 IngressPolicy sctp6,ipv6_dst=fd44:1::2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("counters\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func BenchmarkPolicySquare(b *testing.B) {
	s := withPolicies(square("ns/p", 1, 200, 200, 3))
	var n int
	for b.Loop() {
		n = len(policyFlows(b, s))
	}
	b.ReportMetric(float64(n), "flows")
}

// manyPolicies is a node's share of a large cluster: 5,000 policies of which each selects one or two of its 110 pods,
// with 20 peers and two ports.
func manyPolicies() *model.Snapshot {
	s := cluster()
	s.Policies = map[model.PolicyID]model.Policy{}
	for i := range 5000 {
		p := square(fmt.Sprintf("ns%d/p%d", i%100, i), uint32(i+1), 0, 20, 2)
		for j := range 1 + i%2 {
			p.Ingress.Pods = append(p.Ingress.Pods, netip.AddrFrom4([4]byte{10, 244, 1, byte(2 + (i+j)%110)}))
		}
		p.Ingress.Rules[0].Pods = p.Ingress.Pods
		for j := range p.Ingress.Rules[0].Peers {
			p.Ingress.Rules[0].Peers[j] = openflow.Host(netip.AddrFrom4([4]byte{10, 1, byte(i % 100), byte(j + i/100)}))
		}
		s.Policies[p.ID] = p
	}
	return s
}

func BenchmarkCompilePolicies(b *testing.B) {
	s := manyPolicies()
	var n int
	for b.Loop() {
		n = len(policyFlows(b, s))
	}
	b.ReportMetric(float64(n), "flows")
}

// BenchmarkCompileOnePolicy is the cost of a policy that comes and goes among 5,000 others.
func BenchmarkCompileOnePolicy(b *testing.B) {
	s := manyPolicies()
	c := flows.NewCompiler()
	if _, failed := c.Update(s, flows.Owners(s)); len(failed) > 0 {
		b.Fatal(failed)
	}
	p := s.Policies[model.NetworkPolicy("ns7", "p7")]
	touched := 0
	for b.Loop() {
		delete(s.Policies, p.ID)
		c.Update(s, []model.Owner{p.ID.Owner()})
		s.Policies[p.ID] = p
		delta, _ := c.Update(s, []model.Owner{p.ID.Owner()})
		touched = len(delta.Set)
	}
	b.ReportMetric(float64(touched), "flows-touched")
}

func addrs(list ...string) []netip.Addr {
	var all []netip.Addr
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func cidrs(list ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}
