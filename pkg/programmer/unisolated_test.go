package programmer_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// full is a switch whose tables of isolating flows have no room for those about some addresses.
type full struct {
	*ofswitch.Fake
	room atomic.Bool
}

func newFull(addrs ...string) *full {
	f := &full{Fake: ofswitch.NewFake(flows.Check)}
	f.Refuse(func(flow openflow.Flow) bool {
		if flow.Table != flows.IngressDefault && flow.Table != flows.EgressDefault || f.room.Load() {
			return false
		}
		for _, addr := range addrs {
			if strings.HasSuffix(flow.Match.String(), "="+addr) {
				return true
			}
		}
		return false
	})
	return f
}

// open tells whether the switch forwards what a pod sends, or what is sent to it.
func (b *bench) open(a model.Attachment) bool {
	sends := b.has(fmt.Sprintf("in_port=%d actions", a.OFPort))
	receives := b.has(fmt.Sprintf("set_field:%#x->reg1", a.OFPort))
	if sends != receives {
		b.t.Errorf("pod %s: sends %t, receives %t", a.Pod, sends, receives)
	}
	return sends || receives
}

func isolating(types ...policy.Direction) policy.Policy {
	p := wall()
	p.Types = types
	return p
}

// TestUnisolatedPodIsClosed: a pod for whose isolation the switch has no room is closed, a running one before the
// policy counts as programmed; other pods are not. Pod and policy are named, until there is room, or no policy any
// more.
func TestUnisolatedPodIsClosed(t *testing.T) {
	for name, p := range map[string]policy.Policy{
		"ingress": isolating(policy.Ingress), "egress": isolating(policy.Egress),
		"both": isolating(policy.Ingress, policy.Egress),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, other, late := pod("a", 2), pod("b", 3), pod("late", 4)
				sw := newFull("10.244.1.2", "10.244.1.4")
				b := start(t, sw.Fake, a, other)
				if err := b.Programmed(t.Context(), b.Verify()); err != nil {
					t.Fatal(err)
				}
				if !b.open(a) || !b.open(other) {
					t.Fatal("the pods are not open before there is a policy")
				}
				b.Submit(state.SetPolicy{Policy: p})
				if err := b.Programmed(t.Context(), b.Submitted()); err != nil {
					t.Fatal(err)
				}
				if b.open(a) {
					t.Error("the policy counts as programmed, and the pod is open without it")
				}
				if !b.open(other) {
					t.Error("a pod is closed whose isolation is in the switch")
				}
				err := b.Attach(t.Context(), late)
				if err == nil || !strings.Contains(err.Error(), "policy/ns/wall") || b.open(late) {
					t.Errorf("a new pod without its isolation is open (%t), or was attached: %v", b.open(late), err)
				}
				for _, closed := range []model.Attachment{a, late} {
					if what := b.Status().Quarantined[model.PodOwner(closed)]; !strings.Contains(what, "policy/ns/wall") {
						t.Errorf("pod %s: the status says %q", closed.Pod, what)
					}
					if b.Check(t.Context(), closed.Key()) == nil {
						t.Errorf("pod %s counts as programmed", closed.Pod)
					}
				}
				if what := b.Status().Incomplete[model.NetworkPolicy("ns", "wall").Owner()]; !strings.Contains(what,
					"ns/a, ns/late") {
					t.Errorf("the policy: the status says %q", what)
				}
				b.mu.Lock()
				if err := b.reports["policy/ns/wall"]; !errors.As(err, new(*programmer.ClosedError)) {
					t.Errorf("of the policy was told: %v", err)
				}
				b.mu.Unlock()
				time.Sleep(time.Hour)
				if b.open(a) || b.open(late) || b.Status().Repairs != 0 {
					t.Errorf("an hour later: open %t and %t, %d repairs", b.open(a), b.open(late), b.Status().Repairs)
				}

				p.Ingress = nil // what else changes of the policy brings no room
				b.Submit(state.SetPolicy{Policy: p})
				if err := b.Programmed(t.Context(), b.Submitted()); err != nil {
					t.Fatal(err)
				}
				if b.open(a) || b.open(late) {
					t.Error("a change of the policy has opened its pods")
				}
				sw.room.Store(true)
				time.Sleep(6 * time.Minute)
				synctest.Wait()
				b.holds("there is room")
				if !b.open(a) || !b.open(late) || len(b.Status().Quarantined)+len(b.Status().Incomplete) > 0 {
					t.Errorf("there is room, and the status is %+v", b.Status())
				}
				b.mu.Lock()
				defer b.mu.Unlock()
				if b.reports["policy/ns/wall"] != nil || b.told["policy/ns/wall"] != 1 || b.reports["pod/ns/a"] != nil {
					t.Errorf("reports: %v, %v", b.reports, b.told)
				}
			})
		})
	}
}

// TestUnisolatedPodOpensWithoutPolicy: a pod that is closed for lack of its isolation opens as soon as no policy
// selects it.
func TestUnisolatedPodOpensWithoutPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := pod("a", 2)
		b := start(t, newFull("10.244.1.2").Fake, a)
		b.Submit(state.SetPolicy{Policy: wall()})
		if err := b.Programmed(t.Context(), b.Submitted()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // the pauses are long by now
		if b.open(a) {
			t.Fatal("the pod is open without its isolation")
		}
		b.Submit(state.DeletePolicy{ID: model.NetworkPolicy("ns", "wall")})
		if err := b.Programmed(t.Context(), b.Submitted()); err != nil {
			t.Fatal(err)
		}
		if !b.open(a) || len(b.Status().Quarantined) > 0 {
			t.Errorf("no policy is left: open %t, %v", b.open(a), b.Status().Quarantined)
		}
		b.holds("no policy is left")
	})
}

// TestNeverOpenWithoutIsolation: whatever the switch refuses, no bundle leaves a pod open without the flows that
// isolate it, when pods and their policy come at once.
func TestNeverOpenWithoutIsolation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pods []model.Attachment
		var closed []string
		for n := byte(2); n < 30; n++ {
			a := pod(fmt.Sprintf("p%d", n), n)
			pods = append(pods, a)
			if n%3 == 0 {
				closed = append(closed, a.IPs[0].String())
			}
		}
		b := start(t, newFull(closed...).Fake)
		b.Submit(state.SetPolicy{Policy: wall()})
		for _, a := range pods {
			b.Submit(podOf(a))
			b.Submit(state.SetAttachment{Attachment: a})
		}
		time.Sleep(10 * time.Minute)
		held := map[openflow.Key]bool{}
		for _, d := range b.sw.Applied() {
			for _, f := range d.Delete {
				delete(held, f.Key)
			}
			for _, f := range d.Set {
				held[f.Key] = true
			}
			for _, a := range pods {
				forwards, isolated := false, false
				for key := range held {
					forwards = forwards || key.Table == flows.Classifier && key.Match.String() == fmt.Sprintf("in_port=%d", a.OFPort)
					isolated = isolated || key.Table == flows.IngressDefault &&
						strings.HasSuffix(key.Match.String(), "="+a.IPs[0].String())
				}
				if forwards && !isolated {
					t.Fatalf("pod %s is open and not isolated", a.Pod)
				}
			}
		}
		if n := len(b.Status().Quarantined); n != len(closed) {
			t.Errorf("%d quarantined, want %d", n, len(closed))
		}
		for _, a := range pods {
			if want := a.IPs[0].As4()[3]%3 != 0; b.open(a) != want {
				t.Errorf("pod %s is open: %t", a.Pod, !want)
			}
		}
	})
}
