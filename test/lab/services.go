package lab

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab/manifest"
)

// maxEndpoints is how many endpoints a slice holds, as in a cluster.
const maxEndpoints = 100

// services are the manifests' Services as an API server completes them, in the order of their names.
func (l *Lab) services() []*corev1.Service {
	sorted := slices.SortedFunc(slices.Values(l.set.Services), func(a, b *corev1.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	taken, ports := map[netip.Addr]bool{}, map[nodePort]bool{}
	for _, s := range sorted {
		for _, text := range s.Spec.ClusterIPs {
			if addr, err := netip.ParseAddr(text); err == nil {
				taken[addr] = true
			}
		}
		for _, p := range s.Spec.Ports {
			ports[nodePort{p.Protocol, p.NodePort}] = true
		}
	}
	out := make([]*corev1.Service, 0, len(sorted))
	for _, s := range sorted {
		o := s.DeepCopy()
		complete(&o.Spec)
		o.Spec.IPFamilies, o.Spec.IPFamilyPolicy = l.serviceFamilies(o)
		if o.Spec.ClusterIP != corev1.ClusterIPNone {
			for _, ip := range serviceIPs(o.Spec.IPFamilies[min(len(o.Spec.ClusterIPs), len(o.Spec.IPFamilies)):],
				o.Namespace+"/"+o.Name, taken) {
				o.Spec.ClusterIPs = append(o.Spec.ClusterIPs, ip.String())
			}
			o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
		} else {
			o.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
		}
		assignNodePorts(o, ports)
		out = append(out, o)
	}
	return out
}

// complete fills in what the API has defaults for.
func complete(s *corev1.ServiceSpec) {
	s.Type = cmp.Or(s.Type, corev1.ServiceTypeClusterIP)
	s.SessionAffinity = cmp.Or(s.SessionAffinity, corev1.ServiceAffinityNone)
	if s.InternalTrafficPolicy == nil && s.ClusterIP != corev1.ClusterIPNone {
		cluster := corev1.ServiceInternalTrafficPolicyCluster
		s.InternalTrafficPolicy = &cluster
	}
	if s.Type != corev1.ServiceTypeClusterIP || len(s.ExternalIPs) > 0 {
		s.ExternalTrafficPolicy = cmp.Or(s.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
}

// nodePort is a port that a Service has at every node.
type nodePort struct {
	protocol corev1.Protocol
	number   int32
}

// assignNodePorts gives a Service the node ports that it lacks. Like the addresses they depend on the name first of
// all.
func assignNodePorts(s *corev1.Service, taken map[nodePort]bool) {
	if s.Spec.Type != corev1.ServiceTypeNodePort && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	const count = manifest.LastNodePort - manifest.FirstNodePort + 1
	free := func(what string, protocol corev1.Protocol) int32 {
		h := fnv.New32a()
		fmt.Fprintf(h, "%s/%s %s", s.Namespace, s.Name, what)
		for i := range uint32(count) {
			number := int32(manifest.FirstNodePort + (h.Sum32()+i)%count)
			if !taken[nodePort{protocol, number}] {
				taken[nodePort{protocol, number}] = true
				return number
			}
		}
		return 0 // all of them are in use, and the API server would refuse the Service
	}
	wanted := s.Spec.AllocateLoadBalancerNodePorts == nil || *s.Spec.AllocateLoadBalancerNodePorts ||
		s.Spec.Type == corev1.ServiceTypeNodePort
	for i := range s.Spec.Ports {
		if p := &s.Spec.Ports[i]; p.NodePort == 0 && wanted {
			p.NodePort = free(p.Name, p.Protocol)
		}
	}
	local := s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer && local && s.Spec.HealthCheckNodePort == 0 {
		s.Spec.HealthCheckNodePort = free("health check", corev1.ProtocolTCP)
	}
}

// externalAddrs are the addresses of a Service that packets come to from beyond the nodes.
func externalAddrs(s *corev1.Service) []netip.Addr {
	texts := slices.Clone(s.Spec.ExternalIPs)
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if ingress.IP != "" && (ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP) {
			texts = append(texts, ingress.IP)
		}
	}
	var addrs []netip.Addr
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// serviceFamilies decides as the API server does: one family, the lab's primary one, unless the Service says otherwise.
func (l *Lab) serviceFamilies(s *corev1.Service) ([]corev1.IPFamily, *corev1.IPFamilyPolicy) {
	all := pick(l.opt.Family, corev1.IPv4Protocol, corev1.IPv6Protocol)
	families := slices.DeleteFunc(slices.Clone(s.Spec.IPFamilies), func(f corev1.IPFamily) bool {
		return !slices.Contains(all, f)
	})
	if len(families) == 0 {
		for _, text := range s.Spec.ClusterIPs { // an address says its family
			family := corev1.IPv4Protocol
			if strings.Contains(text, ":") {
				family = corev1.IPv6Protocol
			}
			families = append(families, family)
		}
	}
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
		families = families[:max(1, len(s.Spec.ClusterIPs))]
	}
	return families, &policy
}

// endpointSlices derives a Service's slices as the endpoint slice controller does: for each family, one for each way in
// which the target ports resolve. A Service without a selector has none.
func endpointSlices(s *corev1.Service, pods []*pod) []*discoveryv1.EndpointSlice {
	if len(s.Spec.Selector) == 0 {
		return nil
	}
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
			slice.Endpoints = append(slice.Endpoints, p.endpoint(s, ip))
		}
	}
	return out
}

// slicesOf are a Service's slices: those that follow from its selector, and those that the manifests spell out.
func (l *Lab) slicesOf(s *corev1.Service, pods []*pod) []*discoveryv1.EndpointSlice {
	out := endpointSlices(s, pods)
	for _, slice := range l.set.Slices {
		if slice.Namespace == s.Namespace && slice.Labels[discoveryv1.LabelServiceName] == s.Name {
			out = append(out, slice)
		}
	}
	return out
}

func newSlice(s *corev1.Service, family corev1.IPFamily, ports []discoveryv1.EndpointPort,
	number int) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace, Name: fmt.Sprintf("%s-%s-%d", s.Name, strings.ToLower(string(family)), number),
			Labels: map[string]string{discoveryv1.LabelServiceName: s.Name, discoveryv1.LabelManagedBy: "weft-lab"},
		},
		AddressType: discoveryv1.AddressType(family),
		Ports:       ports,
	}
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		slice.Labels[corev1.IsHeadlessService] = ""
	}
	return slice
}

func (p *pod) ip(v4 bool) (netip.Addr, bool) {
	for _, ip := range p.ips {
		if ip.Is4() == v4 {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// source is the address that the pod's packets to pods have. A node's own come from its gateway.
func (p *pod) source(v4 bool) (netip.Addr, bool) {
	if !p.onHost() {
		return p.ip(v4)
	}
	for _, cidr := range p.node.podCIDRs {
		if cidr.Addr().Is4() == v4 {
			return model.GatewayAddr(cidr), true
		}
	}
	return netip.Addr{}, false
}

func (p *pod) endpoint(s *corev1.Service, ip netip.Addr) discoveryv1.Endpoint {
	serving, terminating := p.ready(), p.terminating()
	ready := s.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  []string{ip.String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		NodeName:   &p.node.name,
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.object.Namespace, Name: p.object.Name,
			UID: p.object.UID},
	}
	if p.node.zone != "" {
		e.Zone = &p.node.zone
	}
	e.Hints = p.node.hints(s.Spec.TrafficDistribution)
	return e
}

// hints say who is near a node's endpoints, for Services that ask for it.
func (n *node) hints(distribution *string) *discoveryv1.EndpointHints {
	if distribution == nil {
		return nil
	}
	var h discoveryv1.EndpointHints
	if n.zone != "" {
		h.ForZones = []discoveryv1.ForZone{{Name: n.zone}}
	}
	if *distribution == corev1.ServiceTrafficDistributionPreferSameNode {
		h.ForNodes = []discoveryv1.ForNode{{Name: n.name}}
	}
	return &h
}

// resolvePorts gives a Service's ports on one pod. A name that the pod does not have is left out.
func resolvePorts(s *corev1.Service, object *corev1.Pod) (ports []discoveryv1.EndpointPort, signature string) {
	for _, port := range s.Spec.Ports {
		number, ok := targetPort(port, object)
		if !ok {
			continue
		}
		ports = append(ports, discoveryv1.EndpointPort{Name: &port.Name, Protocol: &port.Protocol, Port: &number,
			AppProtocol: port.AppProtocol})
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
