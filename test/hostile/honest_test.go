package hostile

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/pkg/model"
)

// objects are a cluster's, by resource, and what is attached on this node, n1.
type objects struct {
	byResource map[string][]apiserver.Object
	attached   []model.Attachment
}

func (o *objects) add(resource string, list ...apiserver.Object) {
	if o.byResource == nil {
		o.byResource = map[string][]apiserver.Object{}
	}
	o.byResource[resource] = append(o.byResource[resource], list...)
}

func ptr[T any](v T) *T { return &v }

func meta(namespace, name string, labels map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}
}

func node(name string, cidrs, addrs []string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: meta("", name, nil), Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func pod(namespace, name, node string, labels map[string]string, ips ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: meta(namespace, name, labels), Spec: corev1.PodSpec{NodeName: node}}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

// attach gives this node a pod, with what CNI gave it.
func (o *objects) attach(number uint32, namespace, name string, labels map[string]string, ips ...string) {
	o.add(apiserver.Pods, pod(namespace, name, "n1", labels, ips...))
	a := model.Attachment{
		ContainerID: namespace + name, IfName: "eth0", Pod: model.PodRef{Namespace: namespace,
			Name: name}, HostIfName: "veth" + name,
		OFPort: model.PortPodMin + number, MAC: model.MAC{0x0a, 0x58, 10, 244, 1, byte(number)},
	}
	for _, ip := range ips {
		a.IPs = append(a.IPs, netip.MustParseAddr(ip))
	}
	o.attached = append(o.attached, a)
}

func serviceOf(namespace, name, clusterIP string, change func(*corev1.ServiceSpec),
	ports ...corev1.ServicePort) *corev1.Service {
	s := &corev1.Service{ObjectMeta: meta(namespace, name, nil), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP}, Ports: ports}}
	if change != nil {
		change(&s.Spec)
	}
	return s
}

func tcp(name string, port, nodePort int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Protocol: corev1.ProtocolTCP, Port: port, NodePort: nodePort}
}

func slice(namespace, name, of string, port discoveryv1.EndpointPort, addrs ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: meta(namespace, name, map[string]string{discoveryv1.LabelServiceName: of}),
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{port}}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

func endpointPort(name string, protocol corev1.Protocol, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port}
}

// The addresses of honest objects that hostile ones claim.
const (
	apiServerAddr = "172.30.0.9" // beside the nodes
	externalAddr  = "198.51.100.10"
	dnsAddr       = "10.96.0.2"
	webAddr       = "10.96.0.10"
)

// honest is a cluster of three nodes with a shop, its policies and DNS.
func honest() objects {
	var o objects
	o.add(apiserver.Nodes,
		node("n1", []string{"10.244.1.0/24", "fd44:1::/64"}, []string{"172.30.0.1", "fd30::1"}),
		node("n2", []string{"10.244.2.0/24", "fd44:2::/64"}, []string{"172.30.0.2", "fd30::2"}),
		node("n3", []string{"10.244.3.0/24", "fd44:3::/64"}, []string{"172.30.0.3", "fd30::3"}))
	for _, name := range []string{"default", "kube-system", "shop"} {
		o.add(apiserver.Namespaces, &corev1.Namespace{ObjectMeta: meta("", name,
			map[string]string{"kubernetes.io/metadata.name": name})})
	}
	o.add(apiserver.ServiceCIDRs, &networkingv1.ServiceCIDR{ObjectMeta: meta("", "kubernetes", nil),
		Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16", "fd96::/108"}}})
	web, client := map[string]string{"app": "web"}, map[string]string{"app": "client"}
	o.attach(2, "shop", "web-0", web, "10.244.1.2", "fd44:1::2")
	o.attach(3, "shop", "client", client, "10.244.1.3", "fd44:1::3")
	o.attach(4, "kube-system", "dns-0", map[string]string{"app": "dns"}, "10.244.1.4", "fd44:1::4")
	o.add(apiserver.Pods, pod("shop", "web-1", "n2", web, "10.244.2.2", "fd44:2::2"), pod("shop", "db", "n3",
		map[string]string{"app": "db"}, "10.244.3.2", "fd44:3::2"),
		pod("kube-system", "apiserver", "n2", nil, "172.30.0.2"))

	dns := func(protocol corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{Name: string(protocol), Protocol: protocol, Port: 53}
	}
	o.add(apiserver.Services,
		serviceOf("default", "kubernetes", "10.96.0.1", nil, tcp("https", 443, 0)),
		serviceOf("kube-system", "dns", dnsAddr, nil, dns(corev1.ProtocolUDP), dns(corev1.ProtocolTCP)),
		serviceOf("shop", "web", webAddr, func(s *corev1.ServiceSpec) {
			s.Type, s.ExternalIPs, s.SessionAffinity = corev1.ServiceTypeNodePort, []string{
				externalAddr}, corev1.ServiceAffinityClientIP
		}, tcp("http", 80, 30080)),
		serviceOf("shop", "db", "10.96.0.11", nil, tcp("sql", 5432, 0)))
	o.add(apiserver.EndpointSlices,
		slice("default", "kubernetes", "kubernetes", endpointPort("https", corev1.ProtocolTCP, 6443), apiServerAddr),
		slice("kube-system", "dns-u", "dns", endpointPort("UDP", corev1.ProtocolUDP, 53), "10.244.1.4"),
		slice("kube-system", "dns-t", "dns", endpointPort("TCP", corev1.ProtocolTCP, 53), "10.244.1.4"),
		slice("shop", "web", "web", endpointPort("http", corev1.ProtocolTCP, 8080), "10.244.1.2", "10.244.2.2"),
		slice("shop", "db", "db", endpointPort("sql", corev1.ProtocolTCP, 5432), "10.244.3.2"))

	peers := func(labels map[string]string) []networkingv1.NetworkPolicyPeer {
		return []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: labels}}}
	}
	on := func(port int32) []networkingv1.NetworkPolicyPort {
		return []networkingv1.NetworkPolicyPort{{Port: ptr(intstr.FromInt32(port))}}
	}
	o.add(apiserver.NetworkPolicies,
		&networkingv1.NetworkPolicy{ObjectMeta: meta("shop", "deny", nil), Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}},
		&networkingv1.NetworkPolicy{ObjectMeta: meta("shop", "web", nil), Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: web},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: peers(client), Ports: on(8080)},
				{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "203.0.113.0/24",
					Except: []string{"203.0.113.128/25"}}}}, Ports: on(8080)}}}},
		&networkingv1.NetworkPolicy{ObjectMeta: meta("shop", "db", nil), Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: client}, PolicyTypes: []networkingv1.PolicyType{
				networkingv1.PolicyTypeEgress},
			Egress: []networkingv1.NetworkPolicyEgressRule{{To: peers(map[string]string{"app": "db"}), Ports: on(5432)},
				{To: peers(web), Ports: on(8080)},
				{To: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{
					"kubernetes.io/metadata.name": "kube-system"}}}}}}}})
	return o
}
