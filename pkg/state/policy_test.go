package state_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/state"
)

// TestPolicyChanges: pods, namespaces and policies touch what follows from them for this node, and nothing else; a
// snapshot says that a pod is known together with the policies about it.
func TestPolicyChanges(t *testing.T) {
	attached := pod("web", 16)
	attached.Pod.UID, attached.IPs = "u", []netip.Addr{netip.MustParseAddr("10.244.1.2")}
	web := policy.Pod{Namespace: "ns", Name: "web", UID: "u", Node: "n1", Labels: map[string]string{"app": "web"}}
	peer := policy.Pod{Namespace: "ns", Name: "peer", Node: "n2", Labels: map[string]string{"app": "peer"},
		Addrs: []netip.Addr{netip.MustParseAddr("10.244.2.2")}}
	moved := peer
	moved.Addrs = []netip.Addr{netip.MustParseAddr("10.244.2.3")}
	about := policy.Policy{Namespace: "ns", Name: "p", PodSelector: policy.Selector{MatchLabels: web.Labels},
		Ingress: []policy.Rule{{Peers: []policy.Peer{{PodSelector: &policy.Selector{MatchLabels: peer.Labels}}}}}}
	elsewhere := about
	elsewhere.Name, elsewhere.PodSelector = "q", policy.Selector{MatchLabels: peer.Labels}
	podOwner, policyOwner := model.PodOwner(attached), model.NetworkPolicy("ns", "p").Owner()

	s := state.New("n1")
	s.Apply(state.SetNode{Node: node("n2", "172.30.0.2", "10.244.2.0/24")})
	s.Take()
	for _, step := range []struct {
		name    string
		changes []state.Change
		changed []model.Owner
		want    string // unknown attachments, policies and their peers
	}{
		{"a policy about no pod here", []state.Change{state.SetPolicy{Policy: about}, state.SetPolicy{Policy: elsewhere}},
			nil, "0 map[]"},
		{"an attachment whose pod is not known", []state.Change{state.SetAttachment{Attachment: attached}},
			[]model.Owner{podOwner}, "1 map[]"},
		{"its pod", []state.Change{state.SetPod{Pod: web}}, []model.Owner{podOwner, policyOwner}, "0 map[ns/p:[]]"},
		{"the same again", []state.Change{state.SetPod{Pod: web}, state.SetPolicy{Policy: about}}, nil, "0 map[ns/p:[]]"},
		{"a namespace that no policy selects", []state.Change{state.SetNamespace{Namespace: policy.Namespace{Name: "ns"}}},
			nil, "0 map[ns/p:[]]"},
		{"a peer", []state.Change{state.SetPod{Pod: peer}}, []model.Owner{policyOwner}, "0 map[ns/p:[10.244.2.2/32]]"},
		{"there and back", []state.Change{state.SetPod{Pod: moved}, state.SetPod{Pod: peer}}, nil,
			"0 map[ns/p:[10.244.2.2/32]]"},
		{"its address", []state.Change{state.SetPod{Pod: moved}}, []model.Owner{policyOwner}, "0 map[ns/p:[10.244.2.3/32]]"},
		{"the peer is gone", []state.Change{state.DeletePod{Namespace: "ns", Name: "peer"}}, []model.Owner{policyOwner},
			"0 map[ns/p:[]]"},
		{"the policy is gone", []state.Change{state.DeletePolicy{ID: model.NetworkPolicy("ns", "p")}, state.DeleteNamespace{
			Name: "ns"}}, []model.Owner{policyOwner}, "0 map[]"},
		{"the pod is gone", []state.Change{state.DeletePod{Namespace: "ns", Name: "web"}}, nil, "0 map[]"},
		{"and its attachment", []state.Change{state.DeleteAttachment{Key: attached.Key()}}, []model.Owner{podOwner},
			"0 map[]"},
	} {
		before := s.Snapshot()
		was := describe(before)
		for _, c := range step.changes {
			s.Apply(c)
		}
		after, changed := s.Take()
		if !slices.Equal(changed, step.changed) || describe(after) != step.want {
			t.Errorf("%s: changed %v, want %v; %s, want %s", step.name, changed, step.changed, describe(after), step.want)
		}
		if after.Revision > before.Revision != (len(step.changed) > 0) {
			t.Errorf("%s: revision %d to %d", step.name, before.Revision, after.Revision)
		}
		if describe(before) != was {
			t.Errorf("%s: the snapshot changed under its holder", step.name)
		}
	}
}

func describe(s *model.Snapshot) string {
	peers := map[string][]netip.Prefix{}
	for id, p := range s.Policies {
		name := id.String()
		peers[name] = nil
		for _, rule := range p.Ingress.Rules {
			peers[name] = append(peers[name], rule.Peers...)
		}
	}
	return fmt.Sprint(len(s.Unknown), " ", peers)
}
