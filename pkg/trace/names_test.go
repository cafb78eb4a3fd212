package trace_test

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/trace/tracetest"
)

// TestDomainNames: a connection to an address of a domain name may begin while the name has the address, and goes on
// when its time is over; with a log of the policy, and rules about one port, too.
func TestDomainNames(t *testing.T) {
	client, outside := netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("192.0.2.1")
	for name, rule := range map[string]policy.Rule{
		"every port": {}, "one port": {Ports: []policy.Port{{Protocol: policy.UDP, Number: 443}}},
		"other peers": {Peers: []policy.Peer{{IPBlock: &policy.IPBlock{CIDR: netip.MustParsePrefix("198.51.100.0/24")}}}},
	} {
		for _, log := range []bool{false, true} {
			rule.Peers = append([]policy.Peer{{Domain: "*.a.example"}}, rule.Peers...)
			c := tracetest.Cluster{
				Nodes: []model.Node{{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.1")},
					PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}},
				Namespaces: map[string]map[string]string{"a": {}},
				Pods:       []policy.Pod{{Namespace: "a", Name: "client", Node: "n1", Addrs: []netip.Addr{client}}},
				Policies: []policy.Policy{{Tier: model.AdminTier, Name: "names", Log: log, Egress: []policy.Rule{rule,
					{Verdict: model.Deny, Peers: []policy.Peer{{IPBlock: &policy.IPBlock{
						CIDR: netip.MustParsePrefix("0.0.0.0/0")}}}}}}},
			}
			n, err := tracetest.New(c)
			if err != nil {
				t.Fatal(err)
			}
			packet := tracetest.Packet{Src: client, Dst: outside, Protocol: openflow.IPProtoUDP, SrcPort: 1000, DstPort: 443}
			later := packet
			later.SrcPort = 2000
			expect := func(when string, p tracetest.Packet, want bool) {
				t.Helper()
				if got := n.Send(p).Arrived; got != want {
					t.Errorf("%s, logged %t: %s it arrived %t, want %t:\n%s", name, log, when, got, want, n.Explain(p))
				}
			}
			learn := func(learned model.LearnedName) {
				t.Helper()
				c.Names = map[string]model.LearnedName{"www.a.example": learned}
				if err := n.SetPolicies(c); err != nil {
					t.Fatal(err)
				}
			}
			expect("before the name is learned", packet, false)
			learn(model.LearnedName{Addrs: []netip.Addr{outside}})
			expect("learned", packet, true)
			expect("learned, the reply", packet.Reply(), true)
			learn(model.LearnedName{Ended: []netip.Addr{outside}})
			expect("ended", packet, true)
			expect("ended, a new connection", later, false)
			learn(model.LearnedName{})
			expect("forgotten", packet, false)
		}
	}
}
