package apiserver

import (
	"cmp"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-cni/weft/pkg/kube/cnp"
)

// The resources that the API has.
const (
	Nodes           = "nodes"
	Namespaces      = "namespaces"
	Pods            = "pods"
	Services        = "services"
	EndpointSlices  = "endpointslices"
	NetworkPolicies = "networkpolicies"
	ServiceCIDRs    = "servicecidrs"

	ClusterNetworkPolicies = cnp.Resource
)

// resourceInfo says where a resource is in the API.
type resourceInfo struct {
	group      schema.GroupVersion
	kind       string
	namespaced bool
	empty      func() Object
}

func (r resourceInfo) gvk() schema.GroupVersionKind { return r.group.WithKind(r.kind) }

// prefix is the path that the resource's group is below.
func (r resourceInfo) prefix() string {
	if r.group.Group == "" {
		return "/api/" + r.group.Version
	}
	return "/apis/" + r.group.String()
}

var resources = map[string]resourceInfo{
	Nodes:      {corev1.SchemeGroupVersion, "Node", false, func() Object { return &corev1.Node{} }},
	Namespaces: {corev1.SchemeGroupVersion, "Namespace", false, func() Object { return &corev1.Namespace{} }},
	Pods:       {corev1.SchemeGroupVersion, "Pod", true, func() Object { return &corev1.Pod{} }},
	Services:   {corev1.SchemeGroupVersion, "Service", true, func() Object { return &corev1.Service{} }},
	EndpointSlices: {discoveryv1.SchemeGroupVersion, "EndpointSlice", true, func() Object {
		return &discoveryv1.EndpointSlice{}
	}},
	NetworkPolicies: {networkingv1.SchemeGroupVersion, "NetworkPolicy", true, func() Object {
		return &networkingv1.NetworkPolicy{}
	}},
	ClusterNetworkPolicies: {cnp.GroupVersion, cnp.Kind, false, func() Object { return &cnp.ClusterNetworkPolicy{} }},

	ServiceCIDRs: {networkingv1.SchemeGroupVersion, "ServiceCIDR", false, func() Object {
		return &networkingv1.ServiceCIDR{}
	}},
}

func compareNames(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// copyOf is a deep copy under the same interface.
func copyOf(o Object) Object {
	c, ok := o.DeepCopyObject().(Object)
	if !ok {
		panic("apiserver: the copy of an object is not one") // every API type copies to itself
	}
	return c
}

func equal(a, b Object) bool { return reflect.DeepEqual(a, b) }
