package programmer_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// rulesTo gives an egress policy about all pods of a namespace with some equal rules about a few peers.
func rulesTo(namespace, name string, rules, peers int) policy.Policy {
	p := policy.Policy{Namespace: namespace, Name: name, Types: []policy.Direction{policy.Egress}}
	var rule policy.Rule
	for i := range peers {
		peer := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32)
		rule.Peers = append(rule.Peers, policy.Peer{IPBlock: &policy.IPBlock{CIDR: peer}})
	}
	for range rules {
		p.Egress = append(p.Egress, rule)
	}
	return p
}

// TestIncompletePolicyIsNamed: the policies that ask for more clauses than fit are named, and another namespace's is
// not among them; when there is room again, that is over.
func TestIncompletePolicyIsNamed(t *testing.T) {
	if testing.Short() {
		t.Skip("many flows: left to make unit")
	}
	var attachments []model.Attachment
	for i, namespace := range []string{"aaa", "aaa", "zzz", "zzz"} {
		a := pod(fmt.Sprintf("p%d", i), byte(i+2))
		a.Pod.Namespace = namespace
		attachments = append(attachments, a)
	}
	b := start(t, ofswitch.NewFake(flows.Check), attachments...)
	b.Submit(state.SetPolicy{Policy: rulesTo("aaa", "greedy", 4010, 17)})
	b.Submit(state.SetPolicy{Policy: rulesTo("zzz", "modest", 5, 17)})
	greedy := model.NetworkPolicy("aaa", "greedy").Owner()
	eventually(t, "the greedy policy is named", func() bool { return len(b.Status().Incomplete) == 1 })
	if got := b.Status().Incomplete; got[greedy] == "" {
		t.Errorf("incomplete: %v", got)
	}
	report := func(o model.Owner) (error, bool) {
		b.mu.Lock()
		defer b.mu.Unlock()
		err, told := b.reports[o.String()]
		return err, told
	}
	// At each of the 17 peers and 2 pods.
	var incomplete *programmer.IncompleteError
	if err, _ := report(greedy); !errors.As(err, &incomplete) || incomplete.Flows != 19 {
		t.Errorf("the report of the greedy policy is %v", err)
	}
	if err, _ := report(model.NetworkPolicy("zzz", "modest").Owner()); err != nil {
		t.Errorf("the report of the modest policy is %v", err)
	}
	b.Submit(state.SetPolicy{Policy: rulesTo("aaa", "greedy", 10, 17)})
	eventually(t, "nothing is incomplete", func() bool { err, told := report(greedy); return told && err == nil })
	if got := b.Status().Incomplete; len(got) != 0 {
		t.Errorf("still incomplete: %v", got)
	}
}
