package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// manyRanges returns a policy for all pods of a namespace that takes about 115 flows for each exception.
func manyRanges(namespace, name string, exceptions int) Policy {
	block := &IPBlock{CIDR: netip.MustParsePrefix("::/0")}
	for i := range exceptions {
		// Spread out, so that few ranges are shared.
		addr := netip.AddrFrom16([16]byte{0: byte(i), 1: byte(i >> 8), 15: 1})
		block.Except = append(block.Except, netip.PrefixFrom(addr, 128))
	}
	return Policy{Namespace: namespace, Name: name, Egress: []Rule{{Peers: []Peer{{IPBlock: block}}}},
		Types: []Direction{Egress}}
}

// attach gives a namespace a pod on the node.
func attach(r *Resolver, namespace string, last byte) {
	r.SetNamespace(Namespace{Name: namespace})
	r.SetPod(Pod{Namespace: namespace, Name: "pod", UID: "u", Node: "n1"})
	r.SetAttachment(model.Attachment{ContainerID: namespace, IfName: "eth0",
		Pod: model.PodRef{Namespace: namespace, Name: "pod", UID: "u"},
		IPs: []netip.Addr{netip.AddrFrom16([16]byte{0: 0xfd, 15: last})}})
}

// TestNodeBudget: twenty policies of one namespace, each just below the limit of one policy, leave another namespace
// its share. Policies over budget isolate, allow nothing and are reported, and are enforced once there is room.
func TestNodeBudget(t *testing.T) {
	if testing.Short() {
		t.Skip("many flows: left to make unit")
	}
	r := NewResolver("n1")
	attach(r, "greedy", 1)
	attach(r, "modest", 2)
	for i := range 20 {
		r.SetPolicy(manyRanges("greedy", fmt.Sprintf("p%02d", i), 2000+i))
	}
	r.SetPolicy(manyRanges("modest", "p", 2000))
	known := map[model.PolicyID]model.Policy{}
	take := func() (whole, overBudget int) {
		for name, p := range r.Flush().Policies {
			delete(known, name)
			if p != nil {
				known[name] = *p
			}
		}
		total := 0
		for name, p := range known {
			if p.OverBudget != (p.Err != "") {
				t.Errorf("%s is over budget %t, with the error %q", name, p.OverBudget, p.Err)
			}
			if p.Err != "" {
				overBudget++
				if len(p.Egress.Rules) != 0 || len(p.Egress.Pods) != 1 || !strings.Contains(p.Err, "may take 2") {
					t.Errorf("%s is over budget: %d rules, pods %v, %q", name, len(p.Egress.Rules), p.Egress.Pods, p.Err)
				}
				continue
			}
			whole++
			total += p.MostFlows()
		}
		if total > maxNodeFlows {
			t.Errorf("%d flows, more than the %d of a node", total, maxNodeFlows)
		}
		return whole, overBudget
	}
	if whole, overBudget := take(); whole != 4 || overBudget != 17 ||
		known[model.NetworkPolicy("modest", "p")].Err != "" || known[model.NetworkPolicy("greedy", "p00")].Err != "" {
		t.Errorf("%d policies fit, %d do not; the modest one: %q, the smallest greedy one: %q", whole, overBudget,
			known[model.NetworkPolicy("modest", "p")].Err, known[model.NetworkPolicy("greedy", "p00")].Err)
	}
	for s := range r.policies {
		if p := r.policies[s]; r.overBudget[s] && p.sides[0].rules[0].blocks != nil {
			t.Errorf("%s is over budget and its ranges are kept", s)
		}
	}
	for i := range 17 {
		r.DeletePolicy(model.NetworkPolicy("greedy", fmt.Sprintf("p%02d", i)))
	}
	if whole, overBudget := take(); whole != 4 || overBudget != 0 {
		t.Errorf("when most are gone %d fit and %d do not", whole, overBudget)
	}
}
