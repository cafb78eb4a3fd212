package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/policy"
)

// The cluster of the table: two namespaces, three nodes, and an address outside of everything.
//
//	ns a (team=red):  web (app=web, tier=front) n1, ports http 80/TCP, dns 53/UDP, sctp 99/SCTP
//	                  db  (app=db)              n1, port  sql 5432/TCP; dns 53/TCP, not web's UDP port of that name
//	ns b (team=blue): web (app=web)             n2, port  http 8080/TCP
//	                  bare (no labels)          n2
//	ns b:             host                      n2, with the node's addresses
const (
	aWeb, aDB, bWeb, bBare = "10.0.1.1", "10.0.1.2", "10.0.2.1", "10.0.2.2"
	aWeb6, bWeb6           = "fd00:1::1", "fd00:2::1"
	node1, node1gw, node2  = "192.168.0.1", "10.0.1.254", "192.168.0.2"
	outside                = "203.0.113.7"
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func cluster(policies ...policy.Policy) policy.Cluster {
	type ports = []policy.ContainerPort
	return policy.Cluster{
		Namespaces: map[string]map[string]string{"a": {"team": "red"}, "b": {"team": "blue"}},
		Nodes:      map[string][]netip.Addr{"n1": addrs(node1, node1gw), "n2": addrs(node2)},
		Pods: []policy.Pod{
			{Namespace: "a", Name: "web", Node: "n1", Labels: map[string]string{"app": "web", "tier": "front"},
				Addrs: addrs(aWeb, aWeb6),
				Ports: ports{{"http", policy.TCP, 80}, {"dns", policy.UDP, 53}, {"sctp", policy.SCTP, 99}}},
			{Namespace: "a", Name: "db", Node: "n1", Labels: map[string]string{"app": "db"}, Addrs: addrs(aDB),
				Ports: ports{{"sql", policy.TCP, 5432}, {"dns", policy.TCP, 53}}},
			{Namespace: "b", Name: "web", Node: "n2", Labels: map[string]string{"app": "web"}, Addrs: addrs(bWeb, bWeb6),
				Ports: ports{{"http", policy.TCP, 8080}}},
			{Namespace: "b", Name: "bare", Node: "n2", Addrs: addrs(bBare)},
			{Namespace: "b", Name: "host", Node: "n2", Labels: map[string]string{"app": "web"}, Addrs: addrs(node2),
				HostNetwork: true},
		},
		Policies: policies,
	}
}

func label(pairs ...string) policy.Selector {
	s := policy.Selector{MatchLabels: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		s.MatchLabels[pairs[i]] = pairs[i+1]
	}
	return s
}

func expr(key string, op policy.Operator, values ...string) policy.Selector {
	return policy.Selector{MatchExpressions: []policy.Requirement{{Key: key, Operator: op, Values: values}}}
}

func pods(s policy.Selector) policy.Peer       { return policy.Peer{PodSelector: &s} }
func namespaces(s policy.Selector) policy.Peer { return policy.Peer{NamespaceSelector: &s} }
func both(ns, p policy.Selector) policy.Peer {
	return policy.Peer{NamespaceSelector: &ns, PodSelector: &p}
}
func from(peers ...policy.Peer) []policy.Rule { return []policy.Rule{{Peers: peers}} }
func on(ports ...policy.Port) []policy.Rule   { return []policy.Rule{{Ports: ports}} }
func ingress(rules []policy.Rule) policy.Policy {
	return policy.Policy{Namespace: "a", Name: "p", Ingress: rules}
}
func egress(rules []policy.Rule) policy.Policy {
	return policy.Policy{Namespace: "a", Name: "p", Types: []policy.Direction{policy.Egress}, Egress: rules}
}

func block(cidr string, except ...string) policy.Peer {
	b := policy.IPBlock{CIDR: netip.MustParsePrefix(cidr)}
	for _, e := range except {
		b.Except = append(b.Except, netip.MustParsePrefix(e))
	}
	return policy.Peer{IPBlock: &b}
}

// packet parses "SRC > DST PROTO PORT"; names stand for the addresses above.
func packet(t *testing.T, text string) policy.Packet {
	t.Helper()
	names := map[string]string{"a/web": aWeb, "a/web6": aWeb6, "a/db": aDB, "b/web": bWeb, "b/web6": bWeb6,
		"b/bare": bBare,
		"n1":     node1, "n1gw": node1gw, "n2": node2, "outside": outside}
	f := strings.Fields(text)
	if len(f) != 5 || names[f[0]] == "" || names[f[2]] == "" {
		t.Fatalf("packet %q", text)
	}
	port := netip.MustParseAddrPort("0.0.0.0:" + f[4]).Port()
	return policy.Packet{Src: netip.MustParseAddr(names[f[0]]), Dst: netip.MustParseAddr(names[f[2]]),
		Protocol: policy.Protocol(f[3]), Port: port}
}

func TestEval(t *testing.T) {
	deny := ingress(nil)
	for _, tc := range []struct {
		name     string
		policies []policy.Policy
		allowed  []string
		denied   []string
	}{
		{name: "no policy: everything passes",
			allowed: []string{"b/web > a/web TCP 80", "a/web > outside UDP 53", "outside > a/db TCP 1", "b/bare > a/db ICMP 0"}},

		// Isolation.
		{name: "a policy without rules closes what it selects, and nothing else",
			policies: []policy.Policy{deny},
			denied: []string{"b/web > a/web TCP 80", "a/db > a/web TCP 80", "outside > a/web TCP 80", "b/web > a/db ICMP 0",
				"n2 > a/web TCP 80"},
			allowed: []string{"a/web > b/web TCP 8080", "b/web > b/bare TCP 1", "a/web > outside TCP 443"}},
		{name: "the selector limits the policy to pods of its own namespace",
			policies: []policy.Policy{{Namespace: "a", Name: "p", PodSelector: label("app", "web")}},
			denied:   []string{"a/db > a/web TCP 80"}, allowed: []string{"a/web > a/db TCP 5432", "a/db > b/web TCP 8080"}},
		{name: "egress isolation closes the way out only",
			policies: []policy.Policy{egress(nil)},
			denied: []string{"a/web > b/web TCP 8080", "a/web > outside TCP 443", "a/web > a/db TCP 5432",
				"a/web > n2 TCP 10250"},
			allowed: []string{"b/web > a/web TCP 80", "outside > a/db TCP 5432"}},
		{name: "both ends have to agree",
			policies: []policy.Policy{egress(from(namespaces(label("team", "blue")))),
				{Namespace: "b", Name: "q", PodSelector: label("app", "web"),
					Ingress: from(both(label("team", "red"), label("app", "db")))}},
			allowed: []string{"a/db > b/web TCP 1", "a/web > b/bare TCP 1"}, denied: []string{"a/web > b/web TCP 1",
				"b/bare > b/web TCP 1", "a/db > a/web TCP 1"}},
		{name: "policies add up: what any of them allows passes",
			policies: []policy.Policy{deny, ingress(from(pods(label("app", "db")))), ingress(on(policy.Port{Number: 80}))},
			allowed:  []string{"a/db > a/web TCP 1", "outside > a/web TCP 80"}, denied: []string{"outside > a/web TCP 81"}},

		// policyTypes.
		{name: "types missing, no egress rules: ingress only", policies: []policy.Policy{{Namespace: "a", Name: "p"}},
			denied: []string{"b/web > a/web TCP 80"}, allowed: []string{"a/web > b/web TCP 8080"}},
		{name: "types missing, egress rules: both",
			policies: []policy.Policy{{Namespace: "a", Name: "p", Egress: on(policy.Port{Number: 443})}},
			denied:   []string{"b/web > a/web TCP 80", "a/web > b/web TCP 8080"}, allowed: []string{"a/web > outside TCP 443"}},
		{name: "types Egress only: ingress rules mean nothing",
			policies: []policy.Policy{{Namespace: "a", Name: "p", Types: []policy.Direction{policy.Egress},
				Ingress: from(pods(label("app", "unused")))}},
			allowed: []string{"b/web > a/web TCP 80"}, denied: []string{"a/web > b/web TCP 8080"}},
		{name: "types Ingress only: egress rules mean nothing",
			policies: []policy.Policy{{Namespace: "a", Name: "p", Types: []policy.Direction{policy.Ingress},
				Egress: on(policy.Port{Number: 443})}},
			allowed: []string{"a/web > b/web TCP 8080"}, denied: []string{"b/web > a/web TCP 80"}},

		// Empty and missing lists.
		{name: "an empty rule allows everybody on everything", policies: []policy.Policy{ingress([]policy.Rule{{}})},
			allowed: []string{"outside > a/web TCP 80", "b/bare > a/db ICMP 0", "n2 > a/web UDP 1"}},
		{name: "empty from and ports lists are missing ones",
			policies: []policy.Policy{ingress([]policy.Rule{{Peers: []policy.Peer{}, Ports: []policy.Port{}}})},
			allowed:  []string{"outside > a/web TCP 80", "b/bare > a/db ICMP 0"}},
		{name: "the same for egress", policies: []policy.Policy{egress([]policy.Rule{{}})},
			allowed: []string{"a/web > outside TCP 80", "a/web > b/bare ICMP 0"}},

		// Peers.
		{name: "a podSelector alone stays in the policy's namespace",
			policies: []policy.Policy{ingress(from(pods(label("app", "web"))))},
			allowed:  []string{"a/web > a/db TCP 5432"}, denied: []string{"b/web > a/db TCP 5432"}},
		{name: "the empty podSelector is the whole namespace, and not the world",
			policies: []policy.Policy{ingress(from(pods(label())))},
			allowed:  []string{"a/web > a/db TCP 1", "a/db > a/web TCP 1"}, denied: []string{"b/bare > a/db TCP 1",
				"outside > a/db TCP 1", "n2 > a/db TCP 1"}},
		{name: "a namespaceSelector alone is all pods of those namespaces",
			policies: []policy.Policy{ingress(from(namespaces(label("team", "blue"))))},
			allowed:  []string{"b/web > a/web TCP 1", "b/bare > a/web TCP 1"}, denied: []string{"a/db > a/web TCP 1",
				"outside > a/web TCP 1"}},
		{name: "the empty namespaceSelector is all pods", policies: []policy.Policy{ingress(from(namespaces(label())))},
			allowed: []string{"b/bare > a/web TCP 1", "a/db > a/web TCP 1"}, denied: []string{"outside > a/web TCP 1",
				"n2 > a/web TCP 1"}},
		{name: "both selectors in one peer: both must match",
			policies: []policy.Policy{ingress(from(both(label("team", "blue"), label("app", "web"))))},
			allowed:  []string{"b/web > a/db TCP 1"}, denied: []string{"b/bare > a/db TCP 1", "a/web > a/db TCP 1"}},
		{name: "in two peers: one is enough",
			policies: []policy.Policy{ingress(from(namespaces(label("team", "blue")), pods(label("app", "web"))))},
			allowed: []string{"b/web > a/db TCP 1", "b/bare > a/db TCP 1",
				"a/web > a/db TCP 1"}, denied: []string{"outside > a/db TCP 1"}},
		{name: "a host-network pod is its node, not a pod with labels",
			policies: []policy.Policy{ingress(from(namespaces(label())))}, denied: []string{"n2 > a/web TCP 1"}},
		{name: "no policy is about a host-network pod", policies: []policy.Policy{{Namespace: "b", Name: "p"}},
			allowed: []string{"a/web > n2 TCP 1"}, denied: []string{"a/web > b/web TCP 8080"}},

		// ipBlock.
		{name: "an ipBlock matches addresses, of pods or not",
			policies: []policy.Policy{ingress(from(block("203.0.113.0/24"), block("10.0.2.0/24")))},
			allowed:  []string{"outside > a/web TCP 1", "b/web > a/web TCP 1"}, denied: []string{"a/db > a/web TCP 1",
				"n2 > a/web TCP 1"}},
		{name: "except takes addresses out",
			policies: []policy.Policy{ingress(from(block("0.0.0.0/0", "203.0.113.0/28", "10.0.2.2/32")))},
			denied:   []string{"outside > a/web TCP 1", "b/bare > a/web TCP 1"}, allowed: []string{"b/web > a/web TCP 1",
				"n2 > a/web TCP 1"}},
		{name: "what one block excepts another may allow",
			policies: []policy.Policy{ingress(from(block("0.0.0.0/0", "203.0.113.0/24"), block("203.0.113.7/32")))},
			allowed:  []string{"outside > a/web TCP 1"}},
		{name: "an IPv4 block says nothing about IPv6", policies: []policy.Policy{ingress(from(block("0.0.0.0/0")))},
			denied: []string{"b/web6 > a/web6 TCP 1"}, allowed: []string{"b/web > a/web TCP 1"}},
		{name: "an IPv6 block", policies: []policy.Policy{ingress(from(block("fd00:2::/64")))},
			allowed: []string{"b/web6 > a/web6 TCP 1"}, denied: []string{"b/web > a/web TCP 1"}},
		{name: "egress to a block", policies: []policy.Policy{egress(from(block("203.0.113.0/24")))},
			allowed: []string{"a/web > outside TCP 1"}, denied: []string{"a/web > b/web TCP 1"}},
		{name: "selectors hold for both families of a pod",
			policies: []policy.Policy{ingress(from(both(label("team", "blue"), label("app", "web"))))},
			allowed:  []string{"b/web > a/web TCP 1", "b/web6 > a/web6 TCP 1"}},

		// Ports.
		{name: "a number is TCP unless it says otherwise", policies: []policy.Policy{ingress(on(policy.Port{Number: 80}))},
			allowed: []string{"b/web > a/web TCP 80"}, denied: []string{"b/web > a/web UDP 80", "b/web > a/web SCTP 80",
				"b/web > a/web TCP 81", "b/web > a/web ICMP 0"}},
		{name: "UDP and SCTP",
			policies: []policy.Policy{ingress(on(policy.Port{Protocol: policy.UDP, Number: 53},
				policy.Port{Protocol: policy.SCTP, Number: 99}))},
			allowed: []string{"b/web > a/web UDP 53", "b/web > a/web SCTP 99"}, denied: []string{"b/web > a/web TCP 53",
				"b/web > a/web UDP 99"}},
		{name: "a protocol without a port is all its ports",
			policies: []policy.Policy{ingress(on(policy.Port{Protocol: policy.UDP}))},
			allowed:  []string{"b/web > a/web UDP 1", "b/web > a/web UDP 65535"}, denied: []string{"b/web > a/web TCP 1",
				"b/web > a/web ICMP 0"}},
		{name: "an entry that says nothing is all of TCP", policies: []policy.Policy{ingress(on(policy.Port{}))},
			allowed: []string{"b/web > a/web TCP 1"}, denied: []string{"b/web > a/web UDP 1", "b/web > a/web ICMP 0"}},
		{name: "endPort is part of its range", policies: []policy.Policy{ingress(on(policy.Port{Number: 100, EndPort: 102}))},
			allowed: []string{"b/web > a/web TCP 100", "b/web > a/web TCP 101",
				"b/web > a/web TCP 102"}, denied: []string{"b/web > a/web TCP 99", "b/web > a/web TCP 103", "b/web > a/web UDP " +
				"101"}},
		{name: "a range up to the last port",
			policies: []policy.Policy{ingress(on(policy.Port{Number: 65535,
				EndPort: 65535}))}, allowed: []string{"b/web > a/web TCP 65535"}},
		{name: "a name is the destination's own port",
			policies: []policy.Policy{ingress(on(policy.Port{Name: "http"}, policy.Port{Name: "sql"}))},
			allowed:  []string{"b/web > a/web TCP 80", "b/web > a/db TCP 5432"}, denied: []string{"b/web > a/web TCP 5432",
				"b/web > a/db TCP 80", "b/web > a/web TCP 8080"}},
		{name: "a name counts with its protocol only", policies: []policy.Policy{ingress(on(policy.Port{Name: "dns"}))},
			allowed: []string{"b/web > a/db TCP 53"}, denied: []string{"b/web > a/web UDP 53", "b/web > a/web TCP 53"}},
		{name: "a name in egress is a port of where it goes",
			policies: []policy.Policy{egress(on(policy.Port{Name: "http"}))},
			allowed:  []string{"a/db > b/web TCP 8080", "a/db > a/web TCP 80"}, denied: []string{"a/db > b/web TCP 80",
				"a/db > outside TCP 80", "a/db > b/bare TCP 8080"}},
		{name: "peers and ports of one rule belong together", policies: []policy.Policy{ingress([]policy.Rule{
			{Peers: []policy.Peer{pods(label("app", "db"))}, Ports: []policy.Port{{Number: 80}}},
			{Peers: []policy.Peer{namespaces(label("team", "blue"))}, Ports: []policy.Port{{Number: 81}}}})},
			allowed: []string{"a/db > a/web TCP 80", "b/web > a/web TCP 81"}, denied: []string{"a/db > a/web TCP 81",
				"b/web > a/web TCP 80"}},

		// Selectors.
		{name: "In", policies: []policy.Policy{ingress(from(both(label(), expr("app", policy.In, "db", "web"))))},
			allowed: []string{"b/web > a/web TCP 1", "a/db > a/web TCP 1"}, denied: []string{"b/bare > a/web TCP 1"}},
		{name: "NotIn matches where the label is missing",
			policies: []policy.Policy{ingress(from(both(label(), expr("app", policy.NotIn, "web"))))},
			allowed:  []string{"b/bare > a/web TCP 1", "a/db > a/web TCP 1"}, denied: []string{"b/web > a/web TCP 1"}},
		{name: "Exists", policies: []policy.Policy{ingress(from(both(label(), expr("app", policy.Exists))))},
			allowed: []string{"b/web > a/web TCP 1"}, denied: []string{"b/bare > a/web TCP 1"}},
		{name: "DoesNotExist", policies: []policy.Policy{ingress(from(both(label(), expr("app", policy.DoesNotExist))))},
			allowed: []string{"b/bare > a/web TCP 1"}, denied: []string{"b/web > a/web TCP 1"}},
		{name: "labels and expressions: all of them", policies: []policy.Policy{ingress(from(pods(policy.Selector{
			MatchLabels: map[string]string{"app": "web"}, MatchExpressions: []policy.Requirement{{Key: "tier",
				Operator: policy.In, Values: []string{"front"}}}})))},
			allowed: []string{"a/web > a/db TCP 1"}, denied: []string{"b/web > a/db TCP 1", "a/db > a/web TCP 1"}},
		{name: "a label with the empty value is not a missing one",
			policies: []policy.Policy{ingress(from(both(label(), label("tier", ""))))}, denied: []string{"b/web > a/web TCP 1",
				"b/bare > a/web TCP 1"}},
		{name: "expressions in the policy's own selector",
			policies: []policy.Policy{{Namespace: "a", Name: "p", PodSelector: expr("tier", policy.Exists)}},
			denied:   []string{"b/web > a/web TCP 80"}, allowed: []string{"b/web > a/db TCP 5432"}},
		{name: "expressions in a namespaceSelector",
			policies: []policy.Policy{ingress(from(namespaces(expr("team", policy.NotIn,
				"red"))))}, allowed: []string{"b/web > a/web TCP 1"}, denied: []string{"a/db > a/web TCP 1"}},

		// Traffic that no policy can deny.
		{name: "itself", policies: []policy.Policy{deny, egress(nil)},
			allowed: []string{"a/web > a/web TCP 80", "a/web6 > a/web TCP 80"}},
		{name: "its own node, both ways, by any of the node's addresses", policies: []policy.Policy{deny, egress(nil)},
			allowed: []string{"n1 > a/web TCP 80", "n1gw > a/web TCP 80", "a/web > n1 TCP 10250",
				"a/web > n1gw UDP 53"}, denied: []string{"n2 > a/web TCP 80", "a/web > n2 TCP 10250"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := cluster(tc.policies...)
			for _, text := range tc.allowed {
				if v := policy.Eval(c, packet(t, text)); !v.Allowed || v.Why == "" {
					t.Errorf("%s is denied (%s), want allowed", text, v.Why)
				}
			}
			for _, text := range tc.denied {
				v := policy.Eval(c, packet(t, text))
				if v.Allowed {
					t.Errorf("%s is allowed (%s), want denied", text, v.Why)
				}
				p := packet(t, text)
				p.Reply = true
				if !policy.Eval(c, p).Allowed {
					t.Errorf("%s is denied as a reply", text)
				}
			}
		})
	}
}

// A verdict names the policy and the rule.
func TestEvalNamesPolicies(t *testing.T) {
	c := cluster(policy.Policy{Namespace: "a", Name: "wall"},
		policy.Policy{Namespace: "a", Name: "door", PodSelector: label("app", "web"),
			Ingress: append(from(block("10.9.0.0/16")), on(policy.Port{Number: 80})...)})
	for text, want := range map[string]string{
		"b/web > a/web TCP 80": "Egress: no policy selects b/web; Ingress: allowed by a/door, rule 1",
		"b/web > a/web TCP 81": "Ingress: a/web is isolated by a/door, a/wall, and no rule allows it",
		"outside > a/db TCP 1": "Ingress: a/db is isolated by a/wall, and no rule allows it",
	} {
		if got := policy.Eval(c, packet(t, text)).Why; got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// What the API rejects matches nothing, so that a mistake never allows traffic.
func TestEvalRefusedByTheAPI(t *testing.T) {
	for name, p := range map[string]policy.Policy{
		"a peer that says nothing": ingress(from(policy.Peer{})),
		"an unknown operator":      ingress(from(pods(expr("app", "Like", "web")))),
	} {
		if v := policy.Eval(cluster(p), packet(t, "a/web > a/db TCP 5432")); v.Allowed {
			t.Errorf("%s allows: %s", name, v.Why)
		}
	}
}
