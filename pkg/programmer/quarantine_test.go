package programmer_test

import (
	"context"
	"errors"
	"net/netip"
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

// refusals are what a switch refuses: the flows of one owner. They count how often it did.
type refusals struct {
	owner model.Owner
	over  atomic.Bool
	count atomic.Int32
}

func (r *refusals) refuse(f openflow.Flow) bool {
	if r.over.Load() || f.Cookie != flows.Cookie(r.owner) {
		return false
	}
	r.count.Add(1)
	return true
}

// TestQuarantineEnds: flows that the switch refuses are tried again with growing pauses, and at once when the switch
// was away: the reason may be over (room in a table) although the object never changes, and the pipeline's and the
// node's own never do.
func TestQuarantineEnds(t *testing.T) {
	a := pod("a", 2)
	for _, owner := range []model.Owner{
		model.PipelineOwner, model.SelfOwner, model.NodeOwner("n2"), model.ServiceOwner("ns/web"), model.PodOwner(a),
		model.NetworkPolicy("ns", "wall").Owner(),
	} {
		t.Run(owner.Kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sw, bad := ofswitch.NewFake(flows.Check), &refusals{owner: owner}
				sw.Refuse(bad.refuse)
				b := start(t, sw, a)
				b.Submit(state.SetJoinedService{Service: service("web", 1, 2, 3)})
				b.Submit(state.SetPolicy{Policy: wall()})
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				if b.Quarantined(owner) == nil || b.Status().Quarantined[owner] == "" {
					t.Fatalf("%s is not in quarantine: %v", owner, b.Status())
				}
				time.Sleep(time.Hour)
				// 9 pauses from 1 s to 5 min, and 10 of 5 min, with at most 4 bundles each
				if n := bad.count.Load(); n < 15 || n > 80 {
					t.Errorf("tried %d times in an hour", n)
				}
				sw.Stop()
				b.Verify()
				time.Sleep(5 * time.Second)
				before := bad.count.Load()
				sw.Start()
				time.Sleep(3 * time.Second)
				if bad.count.Load() == before {
					t.Error("the switch was away, and the owner was not tried again")
				}
				time.Sleep(time.Hour)
				b.mu.Lock()
				want := 1
				if owner.Kind == model.KindPolicy {
					want = 2 // of its rules, and of the pod that is closed without its isolation
				}
				if b.reports[owner.String()] == nil || b.told[owner.String()] != want {
					t.Errorf("the refusal was reported %d times, want %d", b.told[owner.String()], want)
				}
				b.sweeps = nil
				b.mu.Unlock()
				bad.over.Store(true)
				time.Sleep(6 * time.Minute)
				synctest.Wait()
				if b.Quarantined(owner) != nil || len(b.Status().Quarantined) > 0 {
					t.Errorf("the switch would take the flows of %s, and they are in quarantine: %v", owner, b.Status().Quarantined)
				}
				b.holds("everything is in")
				b.mu.Lock()
				defer b.mu.Unlock()
				if b.reports[owner.String()] != nil {
					t.Error("the end of the quarantine was not reported")
				}
				// What it allows or balances again matters to connections that exist.
				if swept := len(b.sweeps) > 0; swept != (owner.Kind == model.KindPolicy || owner.Kind == model.KindService) {
					t.Errorf("sweeps afterwards: %v", b.sweeps)
				}
			})
		})
	}
}

// wall is a policy that lets one range in.
func wall() policy.Policy {
	cidr := netip.MustParsePrefix("10.0.0.0/8")
	from := []policy.Peer{{IPBlock: &policy.IPBlock{CIDR: cidr}}}
	return policy.Policy{Namespace: "ns", Name: "wall", Ingress: []policy.Rule{{Peers: from}}}
}

// TestManyInQuarantine: however many owners are refused, what changes meanwhile is not held up for long.
func TestManyInQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sw := ofswitch.NewFake(flows.Check)
		var refused atomic.Int32
		sw.Refuse(func(f openflow.Flow) bool {
			if strings.Contains(f.Match.String(), "10.96.0.") {
				refused.Add(1)
				return true
			}
			return false
		})
		b := start(t, sw)
		const services = 200
		for n := range services {
			b.Submit(state.SetJoinedService{Service: service("web"+string(rune('a'+n)), byte(n+1), 2)})
		}
		time.Sleep(10 * time.Minute)
		for range 20 {
			before := refused.Load()
			b.Submit(state.SetNode{Node: node("n3", byte(before%100+3))})
			if err := b.Programmed(t.Context(), b.Submitted()); err != nil {
				t.Fatal(err)
			}
			// A round halves the bundle of those that it tries: 64 bundles for 32 owners, and a few for the others'.
			if n := refused.Load() - before; n > 80 {
				t.Errorf("a change waited for %d refused bundles", n)
			}
			time.Sleep(7 * time.Second)
		}
		if n := len(b.Status().Quarantined); n != services {
			t.Errorf("%d in quarantine, want %d", n, services)
		}
		sw.Refuse(func(openflow.Flow) bool { return false })
		time.Sleep(6 * time.Minute)
		b.holds("everything is in")
	})
}

// busy is a switch that sometimes takes no bundle.
type busy struct {
	programmer.Switch
	left atomic.Int32
}

func (b *busy) Apply(ctx context.Context, d openflow.Delta) error {
	if b.left.Add(-1) >= 0 {
		return errors.New("OFPBFC_TIMEOUT")
	}
	return b.Switch.Apply(ctx, d)
}

// TestBusySwitchIsNotRefusal: a bundle that fails for no fault of its own costs no owner its flows.
func TestBusySwitchIsNotRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := ofswitch.NewFake(flows.Check)
		sw := &busy{Switch: fake}
		sw.left.Store(3)
		loop, stop := bubble(t, sw)
		for n := range byte(10) {
			sw.left.Store(2)
			loop.Submit(state.SetJoinedService{Service: service("web"+string(rune('a'+n)), n+1, 2)})
			time.Sleep(3 * time.Second)
		}
		if s := loop.Status(); len(s.Quarantined) > 0 || s.Error != "" || s.Programmed != s.Desired || s.Groups != 10 {
			t.Errorf("the status is %+v", s)
		}
		stop()
	})
}
