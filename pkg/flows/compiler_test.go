package flows_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/openflow"
)

func node(name string, last byte) model.Node {
	return model.Node{Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{172, 30, 0, last})},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, last, 0}), 24)}}
}

// TestChangeTouchesOnlyItsOwn: cost follows the change, not the cluster (design.md, invariant 11).
func TestChangeTouchesOnlyItsOwn(t *testing.T) {
	s := &model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve), Nodes: map[string]model.Node{}}
	for i := byte(2); i < 200; i++ {
		n := node(fmt.Sprintf("n%d", i), i)
		s.Nodes[n.Name] = n
	}
	s.Paths = nodepath.Resolve(s)
	c := flows.NewCompiler()
	if _, failed := c.Update(s, flows.Owners(s)); len(failed) > 0 {
		t.Fatal(failed)
	}
	delete(s.Nodes, "n7")
	s.Paths = nodepath.Resolve(s)
	delta, failed := c.Update(s, []model.Owner{model.NodeOwner("n7")})
	if len(failed) > 0 {
		t.Fatal(failed)
	}
	if len(delta.Set) != 0 || len(delta.Delete) != 5 {
		t.Errorf("removing a node sets %d and deletes %d flows, want 0 and its own 5", len(delta.Set), len(delta.Delete))
	}
}

func TestTunnelChangeKeepsWhatReceives(t *testing.T) {
	s := &model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve), Nodes: map[string]model.Node{
		"n2": node("n2", 2)}}
	s.Paths = nodepath.Resolve(s)
	c := flows.NewCompiler()
	if _, failed := c.Update(s, flows.Owners(s)); len(failed) > 0 {
		t.Fatal(failed)
	}
	s.Transport = model.Tunnel(model.VXLAN)
	s.Paths = nodepath.Resolve(s)
	delta, failed := c.Update(s, flows.Owners(s))
	if len(failed) > 0 {
		t.Fatal(failed)
	}
	sends := func(f flows.Flow) bool { return strings.Contains(f.Actions.String(), "set_field:0x2->reg1") }
	if len(delta.Delete) != 0 || len(delta.Set) != 2 || !sends(delta.Set[0]) || !sends(delta.Set[1]) {
		t.Errorf("delta = %+v; want the two sending flows, replaced in place", delta)
	}
}

// In userspace, where SCTP has no ports to connection tracking, an association that was allowed does not open other
// ports.
func TestKeptConnections(t *testing.T) {
	for _, kernel := range []bool{true, false} {
		for _, keep := range []bool{true, false} {
			desired, err := flows.Compile(&model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve),
				KernelDatapath: kernel, KeepEstablished: keep})
			if err != nil {
				t.Fatal(err)
			}
			kept := map[string]bool{}
			for _, f := range desired.Flows {
				if f.Table == flows.ConntrackState && strings.Contains(f.Match.String(), "+est") &&
					strings.Contains(f.Actions.String(), fmt.Sprintf("goto_table:%d", flows.Forwarding)) {
					match := f.Match.String()
					kept[match[strings.LastIndex(match, ",")+1:]] = true
				}
			}
			want := map[string]bool{}
			switch {
			case keep && kernel:
				want = map[string]bool{"ct_mark=0x1/0x1": true} // whatever it is
			case keep:
				want = map[string]bool{"tcp": true, "tcp6": true, "udp": true, "udp6": true, "icmp": true, "icmp6": true}
			}
			if diff := cmp.Diff(want, kept); diff != "" {
				t.Errorf("kernel's datapath %t, keep %t: kept are (-want +got)\n%s", kernel, keep, diff)
			}
		}
	}
}

// A Service whose ports userspace cannot translate is refused at its own addresses, and takes no other's.
func TestUntranslatableTakesNothing(t *testing.T) {
	addr := netip.MustParseAddr
	endpoint := func(port uint16) []model.Endpoint { return []model.Endpoint{{Addr: addr("10.244.1.9"), Port: port}} }
	victim := model.Service{Name: "ns/victim", Ports: []model.ServicePort{{Protocol: model.SCTP, Port: 9000,
		ClusterIP: addr("10.96.0.1"), Cluster: endpoint(9000)}}}
	thief := model.Service{Name: "a/thief", Ports: []model.ServicePort{{Protocol: model.SCTP, Port: 9000, NodePort: 30900,
		ClusterIP:   addr("10.96.0.2"),
		ExternalIPs: []netip.Addr{addr("10.96.0.1")}, Cluster: endpoint(9001)}}}
	desired, err := flows.Compile(&model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve),
		Services: map[string]model.Service{victim.Name: victim, thief.Name: thief}})
	if err != nil {
		t.Fatal(err)
	}
	type entry struct {
		owner   string
		refused bool
	}
	got := map[string][]entry{} // by address, the highest priority first
	for _, f := range slices.SortedFunc(maps.Values(desired.Flows), func(a, b flows.Flow) int {
		return int(b.Priority) - int(a.Priority)
	}) {
		// later fragments have none
		if _, to := f.Match.Destination(); f.Owner.Kind == model.KindService && to.Port() != 0 {
			got[to.String()] = append(got[to.String()], entry{f.Owner.Name, !strings.Contains(f.Actions.String(), "group:")})
		}
	}
	want := map[string][]entry{
		"10.96.0.1:9000":     {{"ns/victim", false}, {"a/thief", true}},
		"10.96.0.2:9000":     {{"a/thief", true}},
		"169.254.87.1:30900": {{"a/thief", true}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Errorf("at these addresses (-want +got)\n%s", diff)
	}
}

// TestOneBadObject: an owner whose flows cannot be made loses only its own.
func TestOneBadObject(t *testing.T) {
	bad := model.Attachment{ContainerID: "c1", IfName: "eth0", Pod: model.PodRef{Namespace: "ns", Name: "bad"}, OFPort: 16,
		IPs: []netip.Addr{{}}}
	good := model.Attachment{ContainerID: "c2", IfName: "eth0", Pod: model.PodRef{Namespace: "ns", Name: "good"},
		OFPort: 17, IPs: []netip.Addr{netip.MustParseAddr("10.244.1.5")}}
	s := &model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve),
		Attachments: map[model.AttachmentKey]model.Attachment{bad.Key(): bad, good.Key(): good}}
	desired, err := flows.Compile(s)
	var ownerErr *flows.OwnerError
	if !errors.As(err, &ownerErr) || ownerErr.Owner != model.PodOwner(bad) {
		t.Errorf("error = %v, want one that names ns/bad", err)
	}
	owners := map[string]bool{}
	for _, f := range desired.Flows {
		owners[f.Owner.String()] = true
	}
	if got := slices.Sorted(maps.Keys(owners)); !slices.Equal(got, []string{"pipeline", "pod/ns/good", "self"}) {
		t.Errorf("owners with flows: %q", got)
	}
}

func TestConflictIsReportedWithoutHistory(t *testing.T) {
	a := model.Attachment{ContainerID: "a", Pod: model.PodRef{Namespace: "ns", Name: "a"}, OFPort: 16,
		IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}
	b := a
	b.ContainerID, b.Pod.Name, b.OFPort = "b", "b", 17
	s := &model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve), KernelDatapath: true,
		Attachments: map[model.AttachmentKey]model.Attachment{a.Key(): a, b.Key(): b}}
	for _, order := range [][]model.Owner{
		{model.PodOwner(a), model.PodOwner(b), model.SelfOwner},
		{model.PodOwner(b), model.SelfOwner, model.PodOwner(a)},
	} {
		c := flows.NewCompiler()
		for _, o := range order {
			if _, failed := c.Update(s, []model.Owner{o}); len(failed) > 0 {
				t.Fatal(failed)
			}
		}
		conflicts := c.Conflicts()
		if len(conflicts) != 1 || conflicts[0].Key.Match.String() != "ip,nw_dst=10.244.1.2" ||
			conflicts[0].Owners[0] != model.PodOwner(a) {
			t.Errorf("conflicts = %+v", conflicts)
			continue
		}
		if f := c.Desired().Flows[conflicts[0].Key]; f.Owner != model.PodOwner(a) {
			t.Errorf("%s has the address, want %s whatever the order", f.Owner, model.PodOwner(a))
		}
	}
}

func TestDiffLeavesForeignFlows(t *testing.T) {
	s := &model.Snapshot{Self: node("n1", 1), Transport: model.Tunnel(model.Geneve)}
	desired, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	parse := func(line string) openflow.Entry {
		e, err := openflow.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	var actual []openflow.Entry
	for _, f := range desired.Flows {
		actual = append(actual, openflow.Entry{Flow: f.Flow})
	}
	foreign := parse("cookie=0x1,table=0,priority=7,in_port=9 actions=drop")
	stale := parse(fmt.Sprintf("cookie=%#x,table=60,priority=100,ip,nw_dst=10.9.9.0/24 actions=drop",
		flows.Cookie(model.NodeOwner("gone"))))
	// Another program overwrote one of ours with another cookie: it is ours again.
	overwritten := slices.IndexFunc(actual, func(e openflow.Entry) bool { return e.Table == flows.Output })
	actual[overwritten].Cookie, actual[overwritten].Actions = 0, openflow.Actions{}
	actual = append(actual, foreign, stale)

	delta := flows.Diff(openflow.Contents{Flows: actual}, desired)
	if len(delta.Delete) != 1 || delta.Delete[0].Key != stale.Key {
		t.Errorf("deletes %v, want just the flow of the node that is gone", delta.Delete)
	}
	if len(delta.Set) != 1 || delta.Set[0].Table != flows.Output {
		t.Errorf("sets %v, want just the overwritten flow", delta.Set)
	}
}

func TestCookie(t *testing.T) {
	o := model.PodOwner(model.Attachment{Pod: model.PodRef{Namespace: "shop", Name: "web"}, ContainerID: "c"})
	if !flows.Ours(flows.Cookie(o)) || flows.KindOf(flows.Cookie(o)) != model.KindPod {
		t.Errorf("cookie %#x does not say Weft and pod", flows.Cookie(o))
	}
	if flows.Cookie(o) == flows.Cookie(model.NodeOwner("shop/web")) || flows.Ours(0x1234) {
		t.Error("cookies do not tell kinds, or others' flows, apart")
	}
	if want := uint64(0x576504bc9d9e9e1e) >> 40; flows.Cookie(o)>>40 != want {
		t.Errorf("cookie %#x: its mark and kind are %#x, want %#x; they must never change", flows.Cookie(o),
			flows.Cookie(o)>>40, want)
	}
}
