package programmer_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/state"
)

// service has one port and endpoints on another node.
func service(name string, n byte, endpoints ...byte) model.Service {
	port := model.ServicePort{Protocol: model.TCP, Port: 80, ClusterIP: netip.AddrFrom4([4]byte{10, 96, 0, n}),
		Elsewhere: len(endpoints) > 0}
	for _, e := range endpoints {
		port.Cluster = append(port.Cluster, model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, 2, e}), Port: 8080,
			Weight: 1})
	}
	return model.Service{Name: "ns/" + name, Ports: []model.ServicePort{port}}
}

// withServices is a switch in which an agent has programmed these. It does not answer before it is started, so that the
// next agent can be told everything first.
func withServices(t *testing.T, services ...model.Service) *ofswitch.Fake {
	t.Helper()
	sw := ofswitch.NewFake(flows.Check)
	sw.Stop()
	s := &model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve), Nodes: map[string]model.Node{
		"n2": node("n2", 2)}, Services: map[string]model.Service{}}
	for _, svc := range services {
		s.Services[svc.Name] = svc
	}
	d, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Groups) == 0 && len(services) > 0 {
		t.Fatal("a Service with endpoints has no group: this test tests nothing")
	}
	for _, g := range d.Groups {
		sw.PutGroup(g.Group)
	}
	for _, f := range d.Flows {
		sw.Put(f.Flow)
	}
	return sw
}

// learn makes the switch remember a client of a Service with affinity.
func learn(t *testing.T, sw *ofswitch.Fake, client string, s model.Service) {
	t.Helper()
	d, err := flows.Compile(&model.Snapshot{
		Self: node("n1", 1), Transport: model.Tunnel(model.Geneve), Services: map[string]model.Service{s.Name: s},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range d.Flows {
		if l, ok := f.Actions.Learned(); ok {
			match := fmt.Sprintf("tcp,nw_src=%s,nw_dst=%s,tp_dst=80", client, s.Ports[0].ClusterIP)
			sw.Learn(openflow.Flow{Key: openflow.Key{Table: flows.Affinity, Priority: 100, Match: openflow.ParseMatch(match)},
				Cookie:  f.Cookie,
				Actions: l.Actions}, l.IdleTimeout)
			return
		}
	}
	t.Fatal("the Service learns nothing: this test tests nothing")
}

func parseGroup(t *testing.T, id openflow.GroupID, text string) openflow.Group {
	t.Helper()
	g, err := openflow.ParseGroup(fmt.Sprintf("group_id=%d,%s", id, text))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (b *bench) groups() []openflow.Group {
	b.t.Helper()
	c, err := b.sw.Dump(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return c.Groups
}

// TestRestartTouchesNoGroup: an agent that comes back leaves groups alone that are right, removes those of Services
// that were deleted while it was away, and spares others'. A flow never uses a group that is gone.
func TestRestartTouchesNoGroup(t *testing.T) {
	web, gone := service("web", 1, 2, 3), service("gone", 2, 4)
	web.Affinity, gone.Affinity = time.Hour, time.Hour
	sw := withServices(t, web, gone)
	foreign := parseGroup(t, 5, "type=all,bucket=bucket_id:0,actions=drop")
	sw.PutGroup(foreign)
	learn(t, sw, "10.244.1.2", web)
	learn(t, sw, "10.244.1.3", gone)
	b := start(t, sw)
	b.Submit(state.SetJoinedService{Service: web})
	eventually(t, "the loop knows the Service", func() bool {
		return len(b.View().Services) == 1 && len(b.View().Nodes) == 1
	})
	sw.Start()
	b.holds("first programming")
	for _, d := range sw.Applied() {
		for _, g := range d.SetGroups {
			t.Errorf("the restart sent %s again, which was right", g)
		}
		for _, f := range d.Set {
			t.Errorf("the restart sent %s again, which was right", f)
		}
		for _, id := range d.DeleteGroups {
			if id == foreign.ID || len(d.DeleteGroups) > 1 {
				t.Errorf("the restart deleted group %d", id)
			}
		}
	}
	left := b.groups()
	if len(left) != 2 || left[0] != foreign || left[1].ID == foreign.ID {
		t.Errorf("groups after the restart: %v; want the foreign one and the Service's", left)
	}
	if b.has("nw_dst=10.96.0.2") || !b.has("nw_src=10.244.1.2,nw_dst=10.96.0.1") {
		t.Error("want the deleted Service's flows gone, what was learned for it, too, and the other's learned flow still " +
			"there")
	}
	if status := b.Status(); status.Groups != 1 || status.Repairs != 0 {
		t.Errorf("status counts %d groups and %d repairs, want 1 and 0", status.Groups, status.Repairs)
	}
}

// TestLearnedFlowsEnd: what the switch has learned for a Service ends with its affinity and with the Service, for no
// other, without a reading of the switch, and does not count as a repair.
func TestLearnedFlowsEnd(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check))
	web, other := service("web", 1, 2, 3), service("other", 2, 4, 5)
	web.Affinity, other.Affinity = time.Hour, time.Hour
	b.Submit(state.SetJoinedService{Service: web})
	b.Submit(state.SetJoinedService{Service: other})
	b.holds("first programming")
	without := state.SetJoinedService{Service: service("web", 1, 2, 3)}
	for _, ending := range []state.Change{state.DeleteService{Name: web.Name}, without} {
		b.Submit(state.SetJoinedService{Service: web})
		if err := b.Programmed(t.Context(), b.Submitted()); err != nil {
			t.Fatal(err)
		}
		learn(t, b.sw, "10.244.1.2", web)
		learn(t, b.sw, "10.244.1.3", other)
		b.holds("nothing is forgotten")
		if !b.has("nw_src=10.244.1.2,") || !b.has("nw_src=10.244.1.3,") {
			t.Fatal("learned flows are gone before their Service")
		}
		dumps := b.sw.Dumps()
		b.Submit(ending)
		if err := b.Programmed(t.Context(), b.Submitted()); err != nil {
			t.Fatal(err)
		}
		if read := b.sw.Dumps() - dumps; read > 1 { // the audit's, at most
			t.Errorf("%T: %d readings of the switch", ending, read)
		}
		if b.has("nw_src=10.244.1.2,") || !b.has("nw_src=10.244.1.3,") {
			t.Errorf("%T: what was learned for the Service is still there, or for another is not", ending)
		}
	}
	if n := b.Status().Repairs; n > 0 {
		t.Errorf("%d repairs", n)
	}
}

// TestRepairsGroups: a group that another program deletes takes its flows with it; both come back, as does a changed
// one, long before the switch is read back by the clock.
func TestRepairsGroups(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check))
	b.Submit(state.SetJoinedService{Service: service("web", 1, 2, 3)})
	b.holds("first programming")
	right := b.groups()
	if len(right) != 1 {
		t.Fatalf("groups: %v", right)
	}
	b.sw.RemoveGroup(right[0].ID)
	b.holds("a deleted group and its flows are back")
	if got := b.groups(); len(got) != 1 || got[0] != right[0] || !b.has("nw_dst=10.96.0.1,tp_dst=80") {
		t.Errorf("groups: %v", got)
	}
	deleted := b.Status().Repairs
	if deleted < 2 {
		t.Errorf("%d repairs counted, want the group and its flows", deleted)
	}
	b.sw.PutGroup(parseGroup(t, flows.GroupID(model.ServiceOwner("ns/never"), "x"), "type=all"))
	b.sw.PutGroup(parseGroup(t, right[0].ID, "type=all"))
	b.holds("a changed group is right again, one that pretends to be ours is gone")
	if got := b.Status().Repairs - deleted; got != 2 {
		t.Errorf("%d repairs counted, want 2", got)
	}
}

// TestServiceChangeTouchesOnlyItsOwn counts what reaches the switch: cost follows the change.
func TestServiceChangeTouchesOnlyItsOwn(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check))
	for i := range byte(50) {
		b.Submit(state.SetJoinedService{Service: service("s"+string('a'+rune(i%26))+string('a'+rune(i/26)), 10+i, 2, 3)})
	}
	b.holds("first programming")
	before := len(b.sw.Applied())
	b.Submit(state.SetJoinedService{Service: service("saa", 10, 2, 4)})
	b.holds("an endpoint was replaced")
	for _, d := range b.sw.Applied()[before:] {
		if len(d.SetGroups) != 1 || len(d.Set)+len(d.Delete)+len(d.DeleteGroups) != 0 {
			t.Errorf("replacing an endpoint sent %+v, want its group alone", d)
		}
	}
	before = len(b.sw.Applied())
	b.Submit(state.DeleteService{Name: "ns/saa"})
	b.holds("a Service was deleted")
	for _, d := range b.sw.Applied()[before:] {
		if len(d.DeleteGroups) != 1 || len(d.SetGroups)+len(d.Set) != 0 {
			t.Errorf("deleting a Service sent %+v, want its own deletions", d)
		}
	}
}

// TestChangesOfGroupsAreNoDrift: our own changes come back as events. Endpoints that come and go quickly must not make
// the agent read the whole switch.
func TestChangesOfGroupsAreNoDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, ofswitch.NewFake(flows.Check))
		b.Submit(state.SetJoinedService{Service: service("web", 1, 2, 3)})
		b.holds("first programming")
		reads := b.sw.Dumps()
		for i := range 1000 {
			b.Submit(state.SetJoinedService{Service: service("web", 1, 2, 3+byte(i%100))})
			time.Sleep(2 * time.Millisecond)
		}
		b.Submit(state.SetJoinedService{Service: service("web", 1, 2, 200)})
		eventually(t, "the last endpoint is in", func() bool {
			groups := b.groups()
			reads++ // this one
			return len(groups) == 1 && strings.Contains(groups[0].String(), "10.244.2.200:")
		})
		// Once because the watch began.
		if got := b.sw.Dumps() - reads; got > 1 {
			t.Errorf("the switch was read %d times for our own changes", got)
		}
	})
}

// TestRefusedGroup: a Service whose group the switch refuses is left out with its flows; everybody else is programmed.
func TestRefusedGroup(t *testing.T) {
	sw := ofswitch.NewFake(flows.Check)
	sw.RefuseGroup(func(g openflow.Group) bool { return strings.Contains(g.String(), "10.244.2.66") })
	b := start(t, sw)
	for i, name := range []string{"a", "bad", "c", "d"} {
		last := byte(i + 2)
		if name == "bad" {
			last = 66
		}
		b.Submit(state.SetJoinedService{Service: service(name, byte(i), last)})
	}
	eventually(t, "the Service is left out", func() bool {
		return b.Status().Quarantined[model.ServiceOwner("ns/bad")] != ""
	})
	eventually(t, "the others are programmed", func() bool {
		return b.has("nw_dst=10.96.0.0,") && b.has("nw_dst=10.96.0.2,") && b.has("nw_dst=10.96.0.3,")
	})
	if b.has("nw_dst=10.96.0.1,") {
		t.Error("the refused Service has flows without a group")
	}
	b.Submit(state.SetJoinedService{Service: service("bad", 1, 7)})
	b.holds("a change gives it another chance")
	if len(b.Status().Quarantined) != 0 || len(b.groups()) != 4 {
		t.Errorf("quarantined %v, %d groups", b.Status().Quarantined, len(b.groups()))
	}
}
