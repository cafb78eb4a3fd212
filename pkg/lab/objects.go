package lab

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-cni/weft/pkg/lab/apiserver"
	"github.com/weft-cni/weft/pkg/lab/manifest"
)

// maxEndpoints is how many endpoints a slice holds, as in a cluster.
const maxEndpoints = 100

// applyNodes gives the API the nodes, once: from then on the agents own their status.
func (l *Lab) applyNodes(set manifest.Set) error {
	var objects []apiserver.Object
	for i, object := range set.Nodes {
		o, n := object.DeepCopy(), l.nodes[i]
		for _, cidr := range n.podCIDRs {
			o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, cidr.String())
		}
		o.Spec.PodCIDR = o.Spec.PodCIDRs[0]
		for _, addr := range addrsOf(n.underlay) {
			o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: addr.String()})
		}
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.name})
		objects = append(objects, o)
	}
	return l.api.Apply(apiserver.Nodes, objects)
}

// applyObjects gives the API everything else: the pods that stand, those that are about to, and what follows from both.
func (l *Lab) applyObjects(pending []*pod) error {
	var pods, endpoints, services, policies, namespaces []apiserver.Object
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
	for _, p := range l.set.Policies {
		policies = append(policies, p)
	}
	for _, n := range l.set.Namespaces {
		namespaces = append(namespaces, n)
	}
	for _, step := range []struct {
		resource string
		objects  []apiserver.Object
	}{
		{apiserver.Namespaces, namespaces}, {apiserver.NetworkPolicies, policies}, {apiserver.Pods, pods},
		{apiserver.Services, services}, {apiserver.EndpointSlices, endpoints},
	} {
		if err := l.api.Apply(step.resource, step.objects); err != nil {
			return err
		}
	}
	return nil
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
	o.Status.Phase = corev1.PodRunning
	o.Status.HostIP = p.node.underlay[0].Addr().String()
	for _, ip := range p.ips {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	o.Status.PodIP = p.ips[0].String()
	o.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue},
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
	}
	return o
}

// services are the manifests' Services with their addresses, in the order of their names.
func (l *Lab) services() []*corev1.Service {
	sorted := slices.SortedFunc(slices.Values(l.set.Services), func(a, b *corev1.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	taken := map[netip.Addr]bool{}
	out := make([]*corev1.Service, 0, len(sorted))
	for _, s := range sorted {
		o := s.DeepCopy()
		if o.Spec.Type == "" {
			o.Spec.Type = corev1.ServiceTypeClusterIP
		}
		o.Spec.IPFamilies, o.Spec.IPFamilyPolicy = l.serviceFamilies(o)
		if o.Spec.ClusterIP != corev1.ClusterIPNone {
			for _, ip := range serviceIPs(o.Spec.IPFamilies, o.Namespace+"/"+o.Name, taken) {
				o.Spec.ClusterIPs = append(o.Spec.ClusterIPs, ip.String())
			}
			o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
		} else {
			o.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
		}
		out = append(out, o)
	}
	return out
}

// serviceFamilies decides as the API server does: one family, the lab's primary one, unless the Service says otherwise.
func (l *Lab) serviceFamilies(s *corev1.Service) ([]corev1.IPFamily, *corev1.IPFamilyPolicy) {
	all := pick(l.opt.Family, corev1.IPv4Protocol, corev1.IPv6Protocol)
	families := slices.DeleteFunc(slices.Clone(s.Spec.IPFamilies), func(f corev1.IPFamily) bool { return !slices.Contains(all, f) })
	policy := corev1.IPFamilyPolicySingleStack
	if s.Spec.IPFamilyPolicy != nil {
		policy = *s.Spec.IPFamilyPolicy
	}
	if len(families) > 1 && s.Spec.IPFamilyPolicy == nil {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	for _, f := range all {
		if !slices.Contains(families, f) && (len(families) == 0 || policy != corev1.IPFamilyPolicySingleStack) {
			families = append(families, f)
		}
	}
	if policy == corev1.IPFamilyPolicySingleStack {
		families = families[:1]
	}
	return families, &policy
}

// endpointSlices derives a Service's slices as the endpoint slice controller does: for each family, one for each way in
// which the target ports resolve.
func endpointSlices(s *corev1.Service, pods []*pod) []*discoveryv1.EndpointSlice {
	selector := labels.SelectorFromSet(s.Spec.Selector)
	var out []*discoveryv1.EndpointSlice
	for _, family := range s.Spec.IPFamilies {
		bySignature := map[string]*discoveryv1.EndpointSlice{}
		for _, p := range pods {
			if p.object.Namespace != s.Namespace || !selector.Matches(labels.Set(p.object.Labels)) {
				continue
			}
			ip, ok := p.ip(family == corev1.IPv4Protocol)
			if !ok {
				continue
			}
			ports, signature := resolvePorts(s, p.object)
			slice := bySignature[signature]
			if slice == nil || len(slice.Endpoints) == maxEndpoints {
				slice = newSlice(s, family, ports, len(out))
				bySignature[signature] = slice
				out = append(out, slice)
			}
			slice.Endpoints = append(slice.Endpoints, p.endpoint(ip))
		}
	}
	return out
}

func newSlice(s *corev1.Service, family corev1.IPFamily, ports []discoveryv1.EndpointPort, number int) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace, Name: fmt.Sprintf("%s-%s-%d", s.Name, strings.ToLower(string(family)), number),
			Labels: map[string]string{discoveryv1.LabelServiceName: s.Name, discoveryv1.LabelManagedBy: "weft-lab"},
		},
		AddressType: discoveryv1.AddressType(family),
		Ports:       ports,
	}
}

func (p *pod) ip(v4 bool) (netip.Addr, bool) {
	for _, ip := range p.ips {
		if ip.Is4() == v4 {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

func (p *pod) endpoint(ip netip.Addr) discoveryv1.Endpoint {
	yes, no := true, false
	return discoveryv1.Endpoint{
		Addresses:  []string{ip.String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
		NodeName:   &p.node.name,
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.object.Namespace, Name: p.object.Name, UID: p.object.UID},
	}
}

// resolvePorts gives a Service's ports on one pod. A name that the pod does not have is left out.
func resolvePorts(s *corev1.Service, object *corev1.Pod) (ports []discoveryv1.EndpointPort, signature string) {
	for _, port := range s.Spec.Ports {
		number, ok := targetPort(port, object)
		if !ok {
			continue
		}
		ports = append(ports, discoveryv1.EndpointPort{Name: &port.Name, Protocol: &port.Protocol, Port: &number, AppProtocol: port.AppProtocol})
		signature += fmt.Sprintf("%s=%d/%s ", port.Name, number, port.Protocol)
	}
	return ports, signature
}

func targetPort(port corev1.ServicePort, object *corev1.Pod) (int32, bool) {
	if port.TargetPort.Type == intstr.Int {
		return port.TargetPort.IntVal, true
	}
	for _, c := range object.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == port.TargetPort.StrVal && protocolOf(p.Protocol) == protocolOf(port.Protocol) {
				return p.ContainerPort, true
			}
		}
	}
	return 0, false
}
