package programmer_test

import (
	"context"
	"log/slog"
	"net/netip"
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

// TestOneBadObject: what the switch refuses is narrowed to its owner; everybody else is programmed, in a first
// programming of many as in a single change, and the owner comes back when it changes.
func TestOneBadObject(t *testing.T) {
	sw := ofswitch.NewFake(flows.Check)
	bad := pod("bad", 5)
	sw.Refuse(func(f openflow.Flow) bool { return strings.Contains(f.Match.String(), "10.244.1.5") })
	var attachments []model.Attachment
	for i := byte(2); i < 20; i++ {
		attachments = append(attachments, pod(string('a'+rune(i)), i))
	}
	attachments[3] = bad
	b := start(t, sw, attachments...)
	eventually(t, "first programming", func() bool { return b.Status().Programmed > 0 })
	if !b.has("10.244.1.4") || !b.has("10.244.1.19") || !b.has("10.244.2.0/24") {
		t.Error("a pod or node beside the bad one was not programmed")
	}
	if b.has("in_port=21") {
		t.Error("the refused pod has some of its flows: its port must stay closed")
	}
	if b.Status().Quarantined[model.PodOwner(bad)] == "" {
		t.Errorf("status does not name the bad pod: %+v", b.Status())
	}
	if err := b.Check(t.Context(), bad.Key()); err == nil {
		t.Error("the refused pod counts as programmed")
	}
	if err := b.Attach(t.Context(), pod("late", 40)); err != nil {
		t.Errorf("a pod beside the bad one: %v", err)
	}
	again := bad
	again.OFPort = 99 // a change gives it another chance, and it is refused again
	if err := b.Attach(t.Context(), again); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("attaching the refused pod gave %v", err)
	}
	b.mu.Lock()
	if b.reports["pod/ns/bad"] == nil {
		t.Error("the bad pod was not reported")
	}
	b.mu.Unlock()

	sw.Refuse(func(openflow.Flow) bool { return false })
	if err := b.Attach(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	b.holds("the pod that is right now is programmed")
	if len(b.Status().Quarantined) != 0 {
		t.Errorf("still quarantined: %v", b.Status().Quarantined)
	}
}

// TestHalvesAreNeverOpen: when a bundle is halved because of an owner's flows, no half has a pod's port open before the
// flows of the policy that isolates the pod.
func TestHalvesAreNeverOpen(t *testing.T) {
	sw := ofswitch.NewFake(flows.Check)
	sw.Refuse(func(f openflow.Flow) bool {
		return f.Table == flows.Classifier && strings.Contains(f.Match.String(), "in_port=24")
	})
	l := programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler)})
	for _, c := range []state.Change{
		state.SetNode{Node: node("n1", 1)}, state.SetNamespace{Namespace: policy.Namespace{Name: "ns"}},
		state.SetPolicy{Policy: policy.Policy{Namespace: "ns", Name: "closed"}},
	} {
		l.Submit(c)
	}
	for i := range byte(8) {
		a := pod(string('a'+rune(i)), i+1)
		l.Submit(podOf(a))
		l.Submit(state.SetAttachment{Attachment: a})
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	defer func() { stop(); <-ended }()
	go func() { defer close(ended); _ = l.Run(ctx) }()
	eventually(t, "all but the bad pod are programmed", func() bool { return l.Status().Programmed > 0 })
	isolated, open := false, 0
	for _, d := range sw.Applied() {
		for _, f := range d.Set {
			isolated = isolated || f.Table == flows.IngressDefault && flows.KindOf(f.Cookie) == model.KindPolicy
			if f.Table == flows.Classifier && flows.KindOf(f.Cookie) == model.KindPod {
				open++
			}
		}
		if open > 0 && !isolated {
			t.Fatal("a pod's port forwards before its policy is in")
		}
	}
	if open != 7 {
		t.Errorf("%d pods were programmed", open)
	}
}

// TestRefusedOwnerLeavesOthersTheirFlows: a node whose flows are refused costs no other node its own. A pod's new
// sandbox is not blamed for its old one.
func TestRefusedOwnerLeavesOthersTheirFlows(t *testing.T) {
	sw := ofswitch.NewFake(flows.Check)
	sw.Refuse(func(f openflow.Flow) bool {
		return strings.Contains(f.String(), "172.30.0.66") || strings.Contains(f.Match.String(), "in_port=18")
	})
	b := start(t, sw)
	b.Submit(state.SetNode{Node: model.Node{Name: "a", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.66")},
		PodCIDRs: node("n66", 66).PodCIDRs}})
	eventually(t, "the first node is left out", func() bool { return b.Status().Quarantined[model.NodeOwner("a")] != "" })
	eventually(t, "the second node's flows are in", func() bool { return b.has("set_field:172.30.0.2->tun_dst") })

	old, young := pod("web", 2), pod("web", 3)
	young.ContainerID = "new"
	if err := b.Attach(t.Context(), old); err == nil {
		t.Fatal("the old sandbox was not refused")
	}
	if err := b.Attach(t.Context(), young); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context(), young.Key()); err != nil {
		t.Errorf("the new sandbox is blamed: %v", err)
	}
	ours := []model.Owner{model.PodOwner(young), model.PodOwner(old)}
	if err := b.Programmed(t.Context(), b.Submitted(), ours...); err == nil ||
		b.Programmed(t.Context(), b.Submitted(), ours[0]) != nil {
		t.Errorf("programmed for both owners: %v, want the error of the quarantined one", err)
	}
	if b.Quarantined(model.PodOwner(old)) == nil || b.Quarantined(model.PodOwner(young)) != nil {
		t.Errorf("refused: old %v, new %v", b.Quarantined(model.PodOwner(old)), b.Quarantined(model.PodOwner(young)))
	}
	b.Verify()
	eventually(t, "a read-back", func() bool { return b.Status().Programmed == b.Status().Desired })
	if got := b.Status().Repairs; got != 0 {
		t.Errorf("%d repairs counted for our own doing", got)
	}
}

// TestBadChangeClosesThePod: flows from before the refused change must not stay.
func TestBadChangeClosesThePod(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check))
	if err := b.Attach(t.Context(), pod("a", 2)); err != nil {
		t.Fatal(err)
	}
	b.sw.Refuse(func(f openflow.Flow) bool { return strings.Contains(f.Match.String(), "10.244.1.3") })
	moved := pod("a", 3)
	if err := b.Attach(t.Context(), moved); err == nil {
		t.Fatal("the refused change was accepted")
	}
	eventually(t, "the pod's old flows are gone", func() bool { return !b.has("10.244.1.2 ") && !b.has("in_port=18") })
}

// TestMistakenPolicyIsReported: it isolates, the status and an Event say why, and both are over with the mistake.
func TestMistakenPolicyIsReported(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check), pod("a", 2))
	b.Submit(state.SetPolicy{Policy: policy.Policy{Namespace: "ns", Name: "bad", Err: "no CIDR"}})
	eventually(t, "the status names it", func() bool {
		return strings.Contains(b.Status().Quarantined[model.NetworkPolicy("ns", "bad").Owner()], "no CIDR")
	})
	if p := b.View().Policies[model.NetworkPolicy("ns", "bad")]; p.Ingress == nil || len(p.Ingress.Pods) != 1 ||
		len(p.Ingress.Rules) != 0 {
		t.Errorf("the policy is %+v, want the pod isolated", p)
	}
	b.mu.Lock()
	if b.reports["policy/ns/bad"] == nil {
		t.Error("it was not reported")
	}
	b.mu.Unlock()
	b.Submit(state.SetPolicy{Policy: policy.Policy{Namespace: "ns", Name: "bad"}})
	eventually(t, "it is well", func() bool { return len(b.Status().Quarantined) == 0 })
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reports["policy/ns/bad"] != nil {
		t.Error("its end was not reported")
	}
}
