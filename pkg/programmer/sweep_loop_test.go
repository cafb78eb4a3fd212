package programmer_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// swept takes what sweeps the loop has asked for since the last call.
func (b *bench) swept(what string) []programmer.SweepRequest {
	b.t.Helper()
	if err := b.Programmed(b.t.Context(), b.Submitted()); err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.sweeps
	b.sweeps = nil
	return list
}

// TestSweepRequests: a sweep is asked for when a change may concern connections that exist, and only then.
func TestSweepRequests(t *testing.T) {
	sw := ofswitch.NewFake(flows.Check)
	a := pod("a", 2)
	b := start(t, sw, a)
	if got := b.swept("start"); len(got) != 1 || !got[0].Start {
		t.Fatalf("at the start: %+v", got)
	}
	udp := func(endpoints ...byte) model.Service {
		s := service("dns", 1, endpoints...)
		s.Ports[0].Protocol = model.UDP
		return s
	}
	wall := policy.Policy{Namespace: "ns", Name: "wall", Ingress: []policy.Rule{
		{Peers: []policy.Peer{{IPBlock: &policy.IPBlock{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}}}}}
	open := wall
	open.Ingress = []policy.Rule{{}}
	dry := wall
	dry.Staged = true
	dryPeers := policy.Policy{Namespace: "ns", Name: "dry", Staged: true, Ingress: []policy.Rule{{}}}
	remote := policy.Pod{Namespace: "ns", Name: "remote", Node: "n2",
		Addrs: []netip.Addr{netip.MustParseAddr("10.244.2.9")}}
	peers := policy.Policy{Namespace: "ns", Name: "wall", Ingress: []policy.Rule{
		{Peers: []policy.Peer{{PodSelector: &policy.Selector{}}}}}}
	const (
		none  = "none"
		wider = "one that can only allow again"
		one   = "one"
	)
	kind := func(got []programmer.SweepRequest) string {
		switch {
		case len(got) == 0:
			return none
		case got[0].Wider:
			return wider
		}
		return one
	}
	for _, c := range []struct {
		what   string
		change state.Change
		want   string
	}{
		{"a TCP Service", state.SetJoinedService{Service: service("web", 2, 3)}, none},
		{"its endpoint goes", state.SetJoinedService{Service: service("web", 2)}, none},
		{"a UDP Service", state.SetJoinedService{Service: udp(3)}, one},
		{"its endpoint goes", state.SetJoinedService{Service: udp(4)}, one},
		{"it goes", state.DeleteService{Name: "ns/dns"}, one},
		{"a policy", state.SetPolicy{Policy: wall}, one},
		{"the same again", state.SetPolicy{Policy: wall}, none},
		{"a wider one", state.SetPolicy{Policy: open}, wider},
		{"a narrower one", state.SetPolicy{Policy: peers}, one},
		{"a peer comes", state.SetPod{Pod: remote}, wider},
		{"a peer goes", state.DeletePod{Namespace: "ns", Name: "remote"}, one},
		{"a staged policy", state.SetPolicy{Policy: dryPeers}, none},
		{"it goes", state.DeletePolicy{ID: dryPeers.ID()}, none},
		{"a policy becomes staged", state.SetPolicy{Policy: dry}, one},
		{"it becomes enforced", state.SetPolicy{Policy: wall}, one},
		{"another node", state.SetNode{Node: node("n3", 3)}, none},
		{"connections are kept", state.SetKeepEstablished{Keep: true}, none},
		{"a policy, while they are kept", state.SetPolicy{Policy: wall}, none},
		{"they are kept no longer", state.SetKeepEstablished{Keep: false}, one},
		{"the node's address", state.SetNode{Node: model.Node{Name: "n1",
			Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.99")}, PodCIDRs: node("n1", 1).PodCIDRs}}, one},
	} {
		b.Submit(c.change)
		if got := b.swept(c.what); kind(got) != c.want {
			t.Errorf("%s: %+v, want %s", c.what, got, c.want)
		}
	}
	if err := b.Attach(t.Context(), pod("b", 3)); err != nil {
		t.Fatal(err)
	}
	if got := b.swept("a pod comes"); kind(got) != wider {
		t.Errorf("a pod comes: %+v", got)
	}
	if err := b.Detach(t.Context(), pod("b", 3).Key()); err != nil {
		t.Fatal(err)
	}
	// Before Detach returns: the address may be given to another pod from then on.
	b.mu.Lock()
	gone := slices.Clone(b.sweeps)
	b.sweeps = nil
	b.mu.Unlock()
	if len(gone) != 1 || !slices.Equal(gone[0].Gone, pod("b", 3).IPs) {
		t.Errorf("a pod went: %+v", gone)
	}
}

// TestSweepAfterQuarantineAndRestart: what a quarantined policy allowed is not allowed any more, and what changed
// while the switch was away is made up for.
func TestSweepAfterQuarantineAndRestart(t *testing.T) {
	sw := ofswitch.NewFake(flows.Check)
	b := start(t, sw, pod("a", 2))
	b.swept("start")
	sw.Refuse(func(f openflow.Flow) bool { return strings.Contains(f.Match.String(), "10.0.0.0/8") })
	b.Submit(state.SetPolicy{Policy: policy.Policy{Namespace: "ns", Name: "wall", Ingress: []policy.Rule{
		{Peers: []policy.Peer{{IPBlock: &policy.IPBlock{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}}}}}})
	eventually(t, "the policy is quarantined", func() bool {
		return b.Quarantined(model.NetworkPolicy("ns", "wall").Owner()) != nil
	})
	if got := b.swept("quarantine"); len(got) == 0 {
		t.Error("a policy was quarantined, and no sweep follows")
	}
	sw.Stop()
	b.Verify()
	eventually(t, "the switch is missed", func() bool { return b.Status().Error != "" })
	sw.Start()
	if got := b.swept("restart"); !slices.ContainsFunc(got, func(r programmer.SweepRequest) bool { return r.Start }) {
		t.Errorf("the switch was away: %+v", got)
	}
}
