package lab

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/test/lab/manifest"
)

// objects are all objects of one resource.
type objects struct {
	resource string
	list     []apiserver.Object
}

// applyNodes gives the API the nodes, once, since from then on the agents own their status, and the ranges of cluster
// IPs.
func (l *Lab) applyNodes(set manifest.Set) error { return l.applyAll(l.nodeObjects(set)) }

// applyObjects gives the API everything else: the pods that stand, those that are about to, and what follows from both.
func (l *Lab) applyObjects(pending []*pod) error { return l.applyAll(l.otherObjects(pending)) }

func (l *Lab) applyAll(all []objects) error {
	for _, o := range all {
		if err := l.api.Apply(o.resource, o.list); err != nil {
			return err
		}
	}
	return nil
}

// nodeObjects are the nodes, as kubelets and the controller manager complete them, and the ranges of cluster IPs.
func (l *Lab) nodeObjects(set manifest.Set) []objects {
	var nodes []apiserver.Object
	for i, object := range set.Nodes {
		o, n := object.DeepCopy(), l.nodes[i]
		for _, cidr := range n.podCIDRs {
			o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, cidr.String())
		}
		o.Spec.PodCIDR = o.Spec.PodCIDRs[0]
		for _, addr := range addrsOf(n.underlay) {
			o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP,
				Address: addr.String()})
		}
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.name})
		nodes = append(nodes, o)
	}
	ranges := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}}
	for _, cidr := range l.opt.Family.serviceCIDRs() {
		ranges.Spec.CIDRs = append(ranges.Spec.CIDRs, cidr.String())
	}
	return []objects{{apiserver.Nodes, nodes}, {apiserver.ServiceCIDRs, []apiserver.Object{ranges}}}
}

// otherObjects are all others, in an order in which none comes before what it needs.
func (l *Lab) otherObjects(pending []*pod) []objects {
	var pods, endpoints, services, policies, clusterPolicies, namespaces []apiserver.Object
	running := l.sortedPods()
	for _, p := range running {
		pods = append(pods, p.running())
	}
	for _, p := range pending {
		o := p.object.DeepCopy()
		o.Status.Phase = corev1.PodPending
		pods = append(pods, o)
	}
	for _, s := range l.services() {
		services = append(services, s)
		for _, slice := range endpointSlices(s, running) {
			endpoints = append(endpoints, slice)
		}
	}
	for _, slice := range l.set.Slices {
		endpoints = append(endpoints, slice)
	}
	for _, p := range l.set.Policies {
		policies = append(policies, p)
	}
	for _, p := range l.set.ClusterPolicies {
		clusterPolicies = append(clusterPolicies, p)
	}
	for _, n := range l.set.Namespaces {
		namespaces = append(namespaces, n)
	}
	return []objects{
		{apiserver.Namespaces, namespaces}, {apiserver.NetworkPolicies, policies},
		{apiserver.ClusterNetworkPolicies, clusterPolicies}, {apiserver.Pods, pods},
		{apiserver.Services, services}, {apiserver.EndpointSlices, endpoints},
	}
}

func (l *Lab) sortedPods() []*pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sortedPodsLocked()
}

func (l *Lab) sortedPodsLocked() []*pod {
	return slices.SortedFunc(maps.Values(l.pods), func(a, b *pod) int { return cmp.Compare(a.key, b.key) })
}

// running is the pod as a kubelet would report it.
func (p *pod) running() *corev1.Pod {
	o := p.object.DeepCopy()
	if p.leaving != nil {
		o.DeletionTimestamp = p.leaving
	}
	if o.Status.Phase == "" { // or what the manifest says, of a pod that has ended
		o.Status.Phase = corev1.PodRunning
	}
	o.Status.HostIP = p.node.underlay[0].Addr().String()
	for _, ip := range p.ips {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	o.Status.PodIP = p.ips[0].String()
	ready := corev1.ConditionTrue
	if !p.ready() {
		ready = corev1.ConditionFalse
	}
	o.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.PodReady, Status: ready}, {Type: corev1.ContainersReady, Status: ready},
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodInitialized,
			Status: corev1.ConditionTrue},
	}
	return o
}

// ready is what a kubelet's probe would find: yes, unless the manifest says otherwise.
func (p *pod) ready() bool {
	return !slices.ContainsFunc(p.object.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status != corev1.ConditionTrue
	})
}

// terminating is set on pods that the manifest or the lab is about to remove.
func (p *pod) terminating() bool { return p.leaving != nil || p.object.DeletionTimestamp != nil }
