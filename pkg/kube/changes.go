package kube

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-cni/weft/pkg/kube/cnp"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/state"
)

// Effect is what an object means to a node's view.
type Effect struct {
	// Set are the changes that add or replace it, Gone those that remove it. Both are empty for an object that agents do
	// not follow.
	Set, Gone []state.Change
	// Problem says what of the object cannot be used; the rest is still good. What the changes themselves carry of that
	// (policy.Policy.Err, service.Service.Problem) is not repeated.
	Problem error
}

// EffectOf translates an object for the agent of the node self: one of the API, or what an informer holds of it.
// ServiceCIDRs, which count together, are not among them.
func EffectOf(self string, object any) Effect {
	switch o := object.(type) {
	case *corev1.Node:
		n, err := Node(o)
		e := Effect{Problem: err, Set: []state.Change{state.SetNode{Node: n}, state.SetPeerNode{Node: PeerNode(o)}},
			Gone: []state.Change{state.DeleteNode{Name: o.Name}}}
		if o.Name == self {
			e.Set = append(e.Set, state.SetZone{Zone: o.Labels[corev1.LabelTopologyZone]})
		}
		return e
	case *corev1.Pod:
		return podEffect(Pod(o))
	case *pod:
		return podEffect(o.pod)
	case *corev1.Namespace:
		return effect(state.SetNamespace{Namespace: policy.Namespace{Name: o.Name, Labels: o.Labels,
			Log: o.Annotations[LogAnnotation] == "true"}}, state.DeleteNamespace{Name: o.Name})
	case *networkingv1.NetworkPolicy:
		return effect(state.SetPolicy{Policy: NetworkPolicy(o)},
			state.DeletePolicy{ID: model.NetworkPolicy(o.Namespace, o.Name)})
	case *cnp.ClusterNetworkPolicy:
		return effect(state.SetPolicy{Policy: ClusterNetworkPolicy(o)},
			state.DeletePolicy{ID: model.ClusterNetworkPolicy(o.Name)})
	case *corev1.Service:
		s, err := Service(o)
		s.Problem = textOf(err)
		held := &serviceObject{Service: s}
		switch {
		case selects(ServiceSelector, o.Labels):
			return EffectOf(self, held)
		case selects(OtherProxySelector, o.Labels):
			return otherProxyEffect(held)
		}
	case *serviceObject:
		return effect(state.SetService{Service: &o.Service}, state.DeleteService{Name: o.Service.Name})
	case *discoveryv1.EndpointSlice:
		s, err := EndpointSlice(o)
		s.Problem = textOf(err)
		if selects(SliceSelector, o.Labels) {
			return EffectOf(self, &sliceObject{Slice: s})
		}
	case *sliceObject:
		return effect(state.SetSlice{Slice: &o.Slice}, state.DeleteSlice{Name: o.Slice.Name})
	}
	return Effect{}
}

func effect(set, gone state.Change) Effect {
	return Effect{Set: []state.Change{set}, Gone: []state.Change{gone}}
}

func podEffect(p policy.Pod) Effect {
	return effect(state.SetPod{Pod: p}, state.DeletePod{Namespace: p.Namespace, Name: p.Name})
}

// otherProxyEffect is that of a Service that another proxy serves.
func otherProxyEffect(o *serviceObject) Effect {
	return effect(state.SetOtherProxy{Service: o.Service.Name, ClusterIPs: o.ClusterIPs},
		state.SetOtherProxy{Service: o.Service.Name})
}

// selects says whether a watch with a label selector has an object with these labels.
func selects(selector string, of map[string]string) bool {
	s, err := labels.Parse(selector)
	return err == nil && s.Matches(labels.Set(of))
}
