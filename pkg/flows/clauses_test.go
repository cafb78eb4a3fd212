package flows

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// clauseFlows gives clauses of one flow to an owner.
func clauseFlows(t rapid.TB, o model.Owner, ids ...int) compiled {
	var c compiled
	for _, id := range ids {
		c.Flows = append(c.Flows,
			line(t, o, fmt.Sprintf("table=50,priority=100,ip,nw_dst=10.244.9.9 actions=conjunction(%d,1/2)", id)))
	}
	return c
}

func sequence(from, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = from + i
	}
	return out
}

// TestClausesAreSharedFairly: eight policies of one namespace with 500 rules each do not push another's clause out, and
// what is left out is named.
func TestClausesAreSharedFairly(t *testing.T) {
	w, victim := world{}, model.NetworkPolicy("zzz", "dns").Owner()
	owners := []model.Owner{victim}
	for i := range 8 {
		o := model.NetworkPolicy("aaa", fmt.Sprint("p", i)).Owner()
		w[o], owners = clauseFlows(t, o, sequence(500*i+1, 500)...), append(owners, o)
	}
	w[victim] = clauseFlows(t, victim, 9999)
	key := w[victim].Flows[0].Key
	c := w.compiler()
	c.Update(nil, owners)
	got := slices.Collect(c.Desired().Flows[key].Actions.All())
	has := slices.ContainsFunc(got, func(a openflow.Action) bool { return a.String() == "conjunction(9999,1/2)" })
	if len(got) != maxClauses || !has {
		t.Errorf("%d clauses, the victim's among them: %t", len(got), has)
	}
	if lost := c.Losers(); len(lost) != 1 || lost[model.NetworkPolicy("aaa", "p0").Owner()] != 1 {
		t.Errorf("losers: %v, want one clause's of the namespace that asks for too many", lost)
	}
	if x := c.Conflicts(); len(x) != 1 || x[0].Key != key || len(x[0].Losers) != 1 ||
		x[0].Losers[0] != model.NetworkPolicy("aaa", "p0").Owner() {
		t.Errorf("conflicts: %v", x)
	}
}

// TestEachNamespaceKeepsItsClauses: whatever others ask for, a namespace has the clauses that fit into its share, each
// clause that is left out has its owner named, and the order of arrival does not matter.
func TestEachNamespaceKeepsItsClauses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, byNamespace, id := world{}, map[string]int{}, 0
		var owners []model.Owner
		namespaces := rapid.IntRange(1, 5).Draw(t, "namespaces")
		for n := range namespaces {
			name := fmt.Sprintf("ns%d", n)
			for p := range rapid.IntRange(1, 4).Draw(t, "policies") {
				o := model.NetworkPolicy(name, fmt.Sprint("p", p)).Owner()
				count := rapid.SampledFrom([]int{1, 3, 6, 11, 25}).Draw(t, "clauses")
				w[o], owners = clauseFlows(t, o, sequence(id+1, count)...), append(owners, o)
				byNamespace[name] += count
				id += count
			}
		}
		const room = 40
		c, full := w.compiler(), w.compiler()
		c.maxClauses, full.maxClauses = room, room
		for _, o := range rapid.Permutation(owners).Draw(t, "order") {
			c.Update(nil, []model.Owner{o})
		}
		has := map[openflow.Actions]bool{}
		for clause := range c.Desired().Flows[w[owners[0]].Flows[0].Key].Actions.All() {
			has[openflow.ParseActions(clause.String())] = true
		}
		if len(has) != min(id, room) {
			t.Fatalf("%d of %d clauses are in the flow", len(has), id)
		}
		kept := map[string]int{}
		for _, o := range owners {
			lost := 0
			for _, f := range w[o].Flows {
				if has[f.Actions] {
					kept[o.Namespace]++
				} else {
					lost++
				}
			}
			if named := c.Losers()[o] == 1; named != (lost > 0) {
				t.Fatalf("%s lacks %d clauses, and is named: %t", o, lost, named)
			}
		}
		for name, wanted := range byNamespace {
			if kept[name] < min(wanted, room/namespaces) {
				t.Fatalf("%s has %d of its %d clauses, beside %v", name, kept[name], wanted, byNamespace)
			}
		}
		full.Update(nil, owners)
		if full.Desired().String() != c.Desired().String() {
			t.Fatal("incremental and full differ")
		}
	})
}

// TestMostFlows: a policy never takes more flows than model.Policy.MostFlows says.
func TestMostFlows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		few := rapid.SampledFrom([]int{0, 1, 2, 3, 5, 17, 40})
		addr := func(i int) netip.Addr {
			if rapid.Bool().Draw(t, "IPv6") {
				return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)})
			}
			return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		}
		rule := model.PolicyRule{ID: 1}
		for i := range few.Draw(t, "pods") {
			rule.Pods = append(rule.Pods, addr(i))
		}
		for i := range few.Draw(t, "peers") {
			rule.Peers = append(rule.Peers, openflow.Host(addr(i)))
		}
		for i := range few.Draw(t, "ports") {
			rule.Ports = append(rule.Ports, model.PortMatch{Protocol: model.TCP, Port: uint16(80 + i), Mask: 0xffff})
		}
		rule.AnyPeer, rule.AnyPort = len(rule.Peers) == 0, len(rule.Ports) == 0
		side := &model.PolicySide{Pods: rule.Pods, Rules: []model.PolicyRule{rule}}
		p := model.Policy{ID: model.NetworkPolicy("ns", "p"), Log: rapid.Bool().Draw(t, "log")}
		if rapid.Bool().Draw(t, "ingress") {
			p.Ingress = side
		} else {
			p.Egress = side
		}
		c, err := compileOwner(&model.Snapshot{Policies: map[model.PolicyID]model.Policy{p.ID: p}}, p.ID.Owner())
		if err != nil {
			t.Fatal(err)
		}
		if has, most := len(c.Flows), p.MostFlows(); has > most {
			t.Fatalf("%d flows, at most %d were expected of %+v", has, most, rule)
		}
	})
}

// TestMostServiceFlows: a Service never takes more flows and buckets than model.Service.MostFlows says.
func TestMostServiceFlows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}) }
		endpoints := func(what string) (list []model.Endpoint) {
			for i := range rapid.SampledFrom([]int{0, 1, 3, 33, 70, 600}).Draw(t, what) {
				list = append(list, model.Endpoint{Addr: addr(i), Port: 80, Weight: 1})
			}
			return list
		}
		s := model.Service{Name: "ns/s", Algorithm: rapid.SampledFrom([]model.Algorithm{model.HashConnection,
			model.HashSource}).Draw(t, "algorithm")}
		if rapid.Bool().Draw(t, "affinity") {
			s.Affinity = time.Hour
		}
		for i := range rapid.IntRange(1, 2).Draw(t, "ports") {
			p := model.ServicePort{Protocol: rapid.SampledFrom([]model.Protocol{model.TCP, model.UDP, model.SCTP}).Draw(t,
				"protocol"), Port: uint16(80 + i),
				ClusterIP: netip.MustParseAddr("10.96.0.1"), Cluster: endpoints("cluster"), Local: endpoints("local"),
				Elsewhere:     rapid.Bool().Draw(t, "elsewhere"),
				ExternalLocal: rapid.Bool().Draw(t, "external local"), InternalLocal: rapid.Bool().Draw(t, "internal local")}
			for j := range rapid.IntRange(0, 3).Draw(t, "external") {
				p.ExternalIPs = append(p.ExternalIPs, netip.AddrFrom4([4]byte{198, 51, 100, byte(j)}))
			}
			for j := range rapid.IntRange(0, 2).Draw(t, "balancers") {
				p.LoadBalancerIPs = append(p.LoadBalancerIPs, netip.AddrFrom4([4]byte{203, 0, 113, byte(j)}))
			}
			for range rapid.IntRange(0, 2).Draw(t, "sources") {
				p.LoadBalancerSources = append(p.LoadBalancerSources,
					netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.0/8", "172.16.0.0/12", "192.0.2.0/24"}).Draw(t,
						"source")))
			}
			if rapid.Bool().Draw(t, "node port") {
				p.NodePort = uint16(30080 + i)
			}
			s.Ports = append(s.Ports, p)
		}
		snapshot := resolved(&model.Snapshot{KernelDatapath: rapid.Bool().Draw(t, "kernel"),
			Services: map[string]model.Service{s.Name: s},
			Self: model.Node{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.1")}, PodCIDRs: []netip.Prefix{
				netip.MustParsePrefix("10.244.1.0/24")}}})
		c, err := compileOwner(snapshot, model.ServiceOwner(s.Name))
		if err != nil {
			t.Fatal(err)
		}
		has := len(c.Flows)
		for _, g := range c.Groups {
			has += len(g.Buckets())
		}
		if most := s.MostFlows(); has > most {
			t.Fatalf("%d flows and buckets, at most %d were expected", has, most)
		}
	})
}

// TestStagedClausesTakeNoRoom: where a flow of the preview is full, what staged policies show is incomplete, and the
// enforced ones lack nothing.
func TestStagedClausesTakeNoRoom(t *testing.T) {
	enforced, staged := model.NetworkPolicy("ns", "a"), model.Policy{ID: model.NetworkPolicy("ns", "b"), Staged: true}
	clause := func(table openflow.TableID, o model.Owner, id uint32) Flow {
		b := &builder{owner: o}
		b.add(in{table, prioNormal, openflow.Protocol(netip.IPv4Unspecified()), nil}, openflow.Conjunction(id, 1, 2))
		return b.flows[0]
	}
	c := NewCompiler()
	c.maxClauses = 1
	const preview = IngressPolicy + toPreview
	_, _, losers := c.fold([]Flow{clause(preview, enforced.Owner(), 1), clause(preview, staged.Owner(), 2)})
	if !slices.Equal(losers, []model.Owner{staged.Owner()}) {
		t.Errorf("incomplete: %v", losers)
	}
	_, _, losers = c.fold([]Flow{clause(preview, enforced.Owner(), 1), clause(preview, enforced.Owner(), 3)})
	if len(losers) > 0 {
		t.Errorf("incomplete by the preview: %v", losers)
	}
	_, _, losers = c.fold([]Flow{clause(IngressPolicy, enforced.Owner(), 1), clause(IngressPolicy, enforced.Owner(), 3)})
	if len(losers) != 1 {
		t.Errorf("incomplete: %v", losers)
	}
}
