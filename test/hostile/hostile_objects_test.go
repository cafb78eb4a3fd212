package hostile

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/pkg/service"
)

// Two namespaces of hostile tenants, whose names sort before and after every honest one: what depends on the order of
// names shows.
var tenants = []string{"a" + strings.Repeat("0", 62), "z" + strings.Repeat("z", 62)}

// Names and labels at the limits of Kubernetes: 63 for a label, 253 for a subdomain, and 253/63 for a label's key.
var (
	longName = strings.Repeat("x", 63) + "." + strings.Repeat("y", 63) + "." + strings.Repeat("z", 63) + "." +
		strings.Repeat("w", 61)
	longKey   = strings.Repeat("k", 63)
	longValue = strings.Repeat("v", 63)
)

// claimed are the addresses of others: nodes, gateways, pods, Services, the API server, and those that no host has.
var claimed = []string{
	"172.30.0.1", "172.30.0.2", "10.244.1.1", "10.244.1.2", "10.244.2.2", "10.244.3.2", dnsAddr, webAddr, "10.96.0.1",
	apiServerAddr,
	"127.0.0.1", "169.254.169.254", "169.254.87.1", "169.254.87.2", "240.87.0.80", "0.0.0.0", "255.255.255.255",
	"224.0.0.1", "fd44:1::2", "fd96::1", "::1", "fe80::1",
}

// hostile are the objects of tenants and of a node that mean harm, of a size from 1 (seconds) up. They are as the API
// server would store them, and some as only an older or a broken one would.
func hostile(size int) objects {
	var o objects
	hostileNodes(&o, size)
	for i, tenant := range tenants {
		o.add(apiserver.Namespaces, &corev1.Namespace{ObjectMeta: meta("", tenant, map[string]string{longKey: longValue,
			"kubernetes.io/metadata.name": "kube-system"})})
		hostilePods(&o, tenant, uint32(100+20*i), size)
		hostileServices(&o, tenant, size)
		hostilePolicies(&o, tenant, size)
	}
	return o
}

// hostileNodes claim what others have. A kubelet may write its own addresses, pod CIDRs come from a controller.
func hostileNodes(o *objects, size int) {
	for i, cidr := range []string{
		"0.0.0.0/0", "10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/25", "10.244.3.2/32", "10.96.0.0/12", "172.30.0.0/24",
		"127.0.0.0/8", "::/0", "fd44::/16",
		"::ffff:10.244.1.0/120", "fd96::/108", "10.0.0.0/7", "nonsense", strings.Repeat("9", 1000),
	} {
		o.add(apiserver.Nodes, node(fmt.Sprintf("evil-%d", i), []string{cidr}, []string{fmt.Sprintf("172.30.66.%d", i+1)}))
	}
	for i, addr := range claimed {
		o.add(apiserver.Nodes, node(fmt.Sprintf("evil-at-%d", i), []string{fmt.Sprintf("10.66.%d.0/24", i)},
			[]string{addr, "fd30::2"}))
	}
	for i := range 100 * size {
		o.add(apiserver.Nodes, node(fmt.Sprintf("%s-%d", longName[:200], i), []string{fmt.Sprintf("10.%d.%d.0/24", 70+i/250,
			i%250)}, []string{fmt.Sprintf("172.31.%d.%d", i/250, 1+i%250)}))
	}
}

func hostileLabels(n int) map[string]string {
	labels := map[string]string{}
	for i := range n {
		labels[fmt.Sprintf("%s%03d/%s", longName[:250], i, longKey)] = longValue
	}
	return labels
}

// hostilePods claim the addresses of others, with labels that honest policies select.
func hostilePods(o *objects, tenant string, number uint32, size int) {
	for i := range uint32(4) {
		o.attach(number+i, tenant, fmt.Sprint("p", i), map[string]string{"app": "client", longKey: longValue},
			fmt.Sprintf("10.244.1.%d", number+i), fmt.Sprintf("fd44:1::%d", number+i))
	}
	for i, addr := range claimed {
		p := pod(tenant, fmt.Sprint("claim-", i), "evil-0", map[string]string{"app": "client"}, addr)
		maps.Copy(p.Labels, hostileLabels(20))
		o.add(apiserver.Pods, p, pod(tenant, fmt.Sprint("web-", i), "", map[string]string{"app": "web"}, addr))
	}
	for i := range 100 * size {
		p := pod(tenant, fmt.Sprint(longName[:240], i), "evil-1", map[string]string{"app": "db", longKey: longValue},
			fmt.Sprintf("10.244.%d.%d", i/250%250, 1+i%250))
		for j := range 100 {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Ports: []corev1.ContainerPort{
				{Name: fmt.Sprint("p", j%10), ContainerPort: int32(1 + (i*100+j)%65535)}}})
		}
		o.add(apiserver.Pods, p)
	}
}

func hostileServices(o *objects, tenant string, size int) {
	// One Service for each address of another, at the ports of honest Services and of the API server.
	for i, addr := range claimed {
		s := serviceOf(tenant, fmt.Sprint("claim-", i), fmt.Sprintf("10.96.%d.%d", 1+tenantNumber(tenant), i),
			func(s *corev1.ServiceSpec) {
				s.Type, s.ExternalIPs = corev1.ServiceTypeLoadBalancer, []string{addr}
			}, tcp("a", 80, 0), tcp("b", 53, 0), tcp("c", 443, 0), tcp("d", 6443, 0), tcp("e", 5432, 0), corev1.ServicePort{
				Name: "f", Protocol: corev1.ProtocolUDP, Port: 53})
		o.add(apiserver.Services, s)
		for _, port := range s.Spec.Ports {
			o.add(apiserver.EndpointSlices, slice(tenant, s.Name+port.Name, s.Name, endpointPort(port.Name, port.Protocol, 1),
				fmt.Sprintf("10.244.1.%d", 100+i%4), addr))
		}
	}
	// The most ports and as many addresses as the watcher takes for them, times endpoints, with affinity: more flows than
	// one owner may have.
	o.add(apiserver.Services, serviceOf(tenant, "wide", fmt.Sprintf("10.96.%d.250", 1+tenantNumber(tenant)),
		func(s *corev1.ServiceSpec) {
			s.SessionAffinity = corev1.ServiceAffinityClientIP
			s.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{
				TimeoutSeconds: ptr(int32(1 << 30))}}
			for i := range 10 {
				s.ExternalIPs = append(s.ExternalIPs, fmt.Sprintf("192.0.0.%d", 1+i))
			}
			for i := range 1000 {
				s.Ports = append(s.Ports, tcp(fmt.Sprint("p", i), int32(1+i), 0))
			}
		}))
	for i := range 4 * size {
		s := slice(tenant, fmt.Sprint("wide-", i), "wide", endpointPort("p0", corev1.ProtocolTCP, 80))
		for j := range 999 {
			s.Ports = append(s.Ports, endpointPort(fmt.Sprint("p", 1+j), corev1.ProtocolTCP, 80))
		}
		for j := range 10 {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 200+i/250,
				i%250, 1+j)}})
		}
		o.add(apiserver.EndpointSlices, s)
	}
	// The most endpoints in one port, heavy weights and many sources.
	many := serviceOf(tenant, "many", fmt.Sprintf("10.96.%d.251", 1+tenantNumber(tenant)), func(s *corev1.ServiceSpec) {
		s.Type, s.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
		for i := range 2000 * size {
			s.LoadBalancerSourceRanges = append(s.LoadBalancerSourceRanges, fmt.Sprintf("%s/32", ipv4(0x0b000000+uint32(2*i))))
		}
	}, tcp("p", 80, 0))
	many.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.255.1"}, {IP: strings.Repeat("1", 500)}}
	var weights []string
	for i := range 1000 {
		weights = append(weights, fmt.Sprintf("p%d=65535", i))
	}
	many.Annotations = map[string]string{service.WeightsAnnotation: strings.Join(weights, ","),
		service.BalanceAnnotation: "source"}
	o.add(apiserver.Services, many)
	for i := range 3 * size {
		s := slice(tenant, fmt.Sprint("many-", i), "many", endpointPort("p", corev1.ProtocolTCP, 80))
		for j := range 1000 { // the API server's limit for one slice
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ipv4(0x0ac80000 + uint32(i*1000+j))},
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: fmt.Sprint("p", j)}})
		}
		o.add(apiserver.EndpointSlices, s)
	}
	// Slices that name a Service of another namespace, or none that exists, and Services that lead to each other.
	for i, of := range []string{"web", "dns", "kubernetes", longValue} {
		o.add(apiserver.EndpointSlices, slice(tenant, fmt.Sprint("foreign-", i), of, endpointPort("http", corev1.ProtocolTCP,
			80), "10.244.1.100"))
	}
}

func tenantNumber(tenant string) int { return strings.Index("az", tenant[:1]) }

func ipv4(n uint32) string {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n))).String()
}

// hostilePolicies isolate pods of their own namespace, by as many ranges, ports and selectors as fit.
func hostilePolicies(o *objects, tenant string, size int) {
	every := metav1.LabelSelector{}
	add := func(name string, ingress []networkingv1.NetworkPolicyIngressRule) {
		o.add(apiserver.NetworkPolicies, &networkingv1.NetworkPolicy{ObjectMeta: meta(tenant, name, hostileLabels(10)),
			Spec: networkingv1.NetworkPolicySpec{PodSelector: every, Ingress: ingress}})
	}
	// Scattered exceptions, each of which splits ::/0 into up to 128 ranges: as many flows as an object may have, a
	// quarter of a million, with a size of 8, and from 32 on a million ranges, which is more than are expanded at all.
	block := &networkingv1.IPBlock{CIDR: "::/0"}
	for i := range 250 * size {
		block.Except = append(block.Except, fmt.Sprintf("%x:%x::%x/128", i*7919%0xffff, i*104729%0xffff, i))
	}
	add("exceptions", []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: block}}}})
	// Overlapping blocks, and every odd port.
	var overlapping []networkingv1.NetworkPolicyPeer
	for i := range 1000 * size {
		overlapping = append(overlapping, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{
			CIDR: fmt.Sprintf("%s/%d", ipv4(uint32(i*2654435761)), i%33)}})
	}
	var ports []networkingv1.NetworkPolicyPort
	for i := range 1000 {
		ports = append(ports, networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromInt32(int32(1 + 2*i))),
			EndPort: ptr(int32(1 + 2*i + i%7*1000))})
	}
	add("overlapping", []networkingv1.NetworkPolicyIngressRule{{From: overlapping, Ports: ports}})
	// Named ports that hostile pods have in thousands, for any peer, and many rules about one peer.
	var rules []networkingv1.NetworkPolicyIngressRule
	for i := range 500 {
		rules = append(rules, networkingv1.NetworkPolicyIngressRule{
			From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "10.244.1.3/32"}},
				{NamespaceSelector: &every}},
			Ports: []networkingv1.NetworkPolicyPort{{Port: ptr(intstr.FromString(fmt.Sprint("p", i%10)))},
				{Port: ptr(intstr.FromInt32(int32(1 + i)))}}})
	}
	add("rules", rules)
	// What an API server would not store.
	add("invalid", []networkingv1.NetworkPolicyIngressRule{
		{From: []networkingv1.NetworkPolicyPeer{{}, {IPBlock: &networkingv1.IPBlock{CIDR: strings.Repeat("1", 10_000)}}},
			Ports: []networkingv1.NetworkPolicyPort{{Port: ptr(intstr.FromInt32(-1)), EndPort: ptr(int32(1 << 30))}}}})
	var values []string
	for i := range 1000 {
		values = append(values, fmt.Sprint(longValue[:58], i))
	}
	o.add(apiserver.NetworkPolicies, &networkingv1.NetworkPolicy{ObjectMeta: meta(tenant, longName, nil),
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: longKey, Operator: metav1.LabelSelectorOpNotIn, Values: values}}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}}})
	for i := range 50 * size {
		add(fmt.Sprint("policy-", i), []networkingv1.NetworkPolicyIngressRule{
			{From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &every, PodSelector: &every}}, Ports: ports[:10]}})
	}
}
