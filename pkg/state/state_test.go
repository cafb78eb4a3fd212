package state_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

func node(name, addr, cidr string) model.Node {
	return model.Node{Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}, PodCIDRs: []netip.Prefix{
		netip.MustParsePrefix(cidr)}}
}

func pod(name string, port uint32) model.Attachment {
	return model.Attachment{ContainerID: "c-" + name, IfName: "eth0", Pod: model.PodRef{Namespace: "ns", Name: name},
		OFPort: port}
}

// take returns the newest snapshot and the owners that are dirty by it, sorted, and has them compiled.
func take(t *testing.T, s *state.Store, c *flows.Compiler) (*model.Snapshot, []model.Owner) {
	t.Helper()
	snapshot, changed := s.Take()
	dirty := c.Dirty(snapshot, changed)
	if _, failed := c.Update(snapshot, changed); len(failed) > 0 {
		t.Fatal(failed)
	}
	slices.SortFunc(dirty, model.Owner.Compare)
	return snapshot, dirty
}

func TestDirtyOwners(t *testing.T) {
	self, n2, n3 := node("n1", "172.30.0.1", "10.244.1.0/24"), node("n2", "172.30.0.2", "10.244.2.0/24"), node("n3",
		"172.30.0.3", "10.244.3.0/24")
	moved := self
	moved.Addrs = []netip.Addr{netip.MustParseAddr("172.30.0.9")}
	wider := moved
	wider.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")}
	renumbered := pod("a", 17)
	all := []model.Owner{model.NodeOwner("n2"), model.NodeOwner("n3")}

	s, c := state.New("n1"), flows.NewCompiler()
	for _, step := range []struct {
		name   string
		change state.Change
		want   []model.Owner
	}{
		{"a new store compiles what every node has", nil, []model.Owner{model.PipelineOwner, model.SelfOwner}},
		{"own node", state.SetNode{Node: self}, []model.Owner{model.SelfOwner}},
		{"another node", state.SetNode{Node: n2}, all[:1]},
		{"the same again", state.SetNode{Node: n2}, nil},
		{"a third node", state.SetNode{Node: n3}, all[1:]},
		{"own address: every way depends on it", state.SetNode{Node: moved}, append([]model.Owner{model.SelfOwner}, all...)},
		{"own range that no other node's overlaps", state.SetNode{Node: wider}, []model.Owner{model.SelfOwner}},
		{"tunnel", state.SetTransport{Transport: model.Tunnel(model.VXLAN)}, all},
		{"tunnel again", state.SetTransport{Transport: model.Tunnel(model.VXLAN)}, nil},
		{"pod", state.SetAttachment{Attachment: pod("a", 16)}, []model.Owner{model.PodOwner(pod("a", 16))}},
		{"datapath: questions are answered differently", state.SetKernelDatapath{Kernel: true},
			[]model.Owner{model.PipelineOwner, model.SelfOwner, model.PodOwner(pod("a", 16))}},
		{"datapath again", state.SetKernelDatapath{Kernel: true}, nil},
		{"pod again", state.SetAttachment{Attachment: pod("a", 16)}, nil},
		{"pod changes", state.SetAttachment{Attachment: renumbered}, []model.Owner{model.PodOwner(renumbered)}},
		{"pod gone", state.DeleteAttachment{Key: renumbered.Key()}, []model.Owner{model.PodOwner(renumbered)}},
		{"pod gone again", state.DeleteAttachment{Key: renumbered.Key()}, nil},
		{"node gone", state.DeleteNode{Name: "n3"}, all[1:]},
		{"node gone again", state.DeleteNode{Name: "n3"}, nil},
		{"own node object gone: it stays", state.DeleteNode{Name: "n1"}, nil},
	} {
		before := s.Snapshot()
		if step.change != nil {
			s.Apply(step.change)
		}
		after, got := take(t, s, c)
		if !slices.Equal(got, step.want) {
			t.Errorf("%s: dirty are %v, want %v", step.name, got, step.want)
		}
		told := after.SelfHeld != before.SelfHeld // of which no flow depends
		if newer := after.Revision > before.Revision; step.change != nil && newer != (len(step.want) > 0 || told) {
			t.Errorf("%s: revision %d to %d", step.name, before.Revision, after.Revision)
		}
		_, podOnly := step.change.(state.SetAttachment)
		if podOnly && after.NodesRevision != before.NodesRevision {
			t.Errorf("%s: counts as a change of nodes", step.name)
		} else if !podOnly && len(step.want) > 0 && step.want[0].Kind == model.KindNode &&
			after.NodesRevision != after.Revision {
			t.Errorf("%s: does not count as a change of nodes", step.name)
		}
	}
}

// TestSnapshotsAreImmutable: a snapshot never changes after it was returned.
func TestSnapshotsAreImmutable(t *testing.T) {
	s := state.New("n1")
	s.Apply(state.SetNode{Node: node("n2", "172.30.0.2", "10.244.2.0/24")})
	s.Apply(state.SetAttachment{Attachment: pod("a", 16)})
	held, _ := s.Take()
	s.Apply(state.DeleteNode{Name: "n2"})
	s.Apply(state.SetAttachment{Attachment: pod("b", 17)})
	s.Apply(state.DeleteAttachment{Key: pod("a", 16).Key()})
	if len(held.Nodes) != 1 || len(held.Attachments) != 1 || held.Attachments[pod("a", 16).Key()].OFPort != 16 {
		t.Errorf("the snapshot changed under its holder: %+v", held)
	}
	if got, _ := s.Take(); len(got.Nodes) != 0 || len(got.Attachments) != 1 {
		t.Errorf("newest snapshot = %+v", got)
	}
}

// TestExternalAddressesAreTouched: a load balancer's address that comes and goes touches the Service that claims it,
// too.
func TestExternalAddressesAreTouched(t *testing.T) {
	at := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	one := func(name string, external, balancer []netip.Addr) state.SetJoinedService {
		return state.SetJoinedService{Service: model.Service{Name: name, Ports: []model.ServicePort{{
			Protocol: model.TCP, Port: 80, ClusterIP: netip.MustParseAddr("10.96.0.1"), ExternalIPs: external,
			LoadBalancerIPs: balancer}}}}
	}
	thief, victim := model.ServiceOwner("a/thief"), model.ServiceOwner("z/web")
	s := state.New("n1")
	s.Take()
	for _, step := range []struct {
		name   string
		change state.Change
		want   []model.Owner
		lost   int
	}{
		{"an external IP", one("a/thief", at, nil), []model.Owner{thief}, 0},
		{"the same again", one("a/thief", at, nil), nil, 0},
		{"a Service without external addresses", one("z/web", nil, nil), []model.Owner{victim}, 0},
		{"it gets a load balancer", one("z/web", nil, at), []model.Owner{thief, victim}, 1},
		{"the same again", one("z/web", nil, at), nil, 1},
		{"the thief asks again", one("a/thief", at, nil), nil, 1},
		{"the load balancer is gone", state.DeleteService{Name: "z/web"}, []model.Owner{thief, victim}, 0},
	} {
		s.Apply(step.change)
		snapshot, got := s.Take()
		if !slices.Equal(got, step.want) {
			t.Errorf("%s: changed %v, want %v", step.name, got, step.want)
		}
		if lost := snapshot.Services["a/thief"].Lost; len(lost) != step.lost {
			t.Errorf("%s: the thief lost %v", step.name, lost)
		}
	}
}
