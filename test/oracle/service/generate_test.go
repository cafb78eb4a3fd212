package service_test

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

var (
	nodes     = []string{"n1", "n2", "n3"} // we are n1
	zones     = []string{"", "a", "b"}
	protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	portNames = []string{"http", "dns", "metrics"}
)

// serviceGen makes Services that an API server might hold. Values that Weft refuses and kube-proxy does not (addresses
// that the API refuses, unreadable source ranges) are not among them.
var serviceGen = rapid.Custom(func(t *rapid.T) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "svc"}}
	spec := &s.Spec
	spec.Type = rapid.SampledFrom([]corev1.ServiceType{
		corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer,
		corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName,
	}).Draw(t, "type")
	spec.IPFamilies = rapid.SampledFrom([][]corev1.IPFamily{
		{corev1.IPv4Protocol}, {corev1.IPv6Protocol}, {corev1.IPv4Protocol, corev1.IPv6Protocol}, {corev1.IPv6Protocol,
			corev1.IPv4Protocol},
	}).Draw(t, "families")
	switch headless := rarely(t, "headless"); {
	case spec.Type == corev1.ServiceTypeExternalName &&
		rapid.Bool().Draw(t, "without addresses"): // it may be left with some
		spec.IPFamilies = nil
	case headless && spec.Type == corev1.ServiceTypeClusterIP:
		spec.ClusterIPs = []string{corev1.ClusterIPNone}
	default:
		for _, f := range spec.IPFamilies {
			spec.ClusterIPs = append(spec.ClusterIPs, map[corev1.IPFamily]string{corev1.IPv4Protocol: "10.96.0.7",
				corev1.IPv6Protocol: "fd10:96::7"}[f])
		}
	}
	if len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	if len(spec.IPFamilies) == 1 && rapid.Bool().Draw(t, "without families") { // an object from before dual stack
		spec.IPFamilies = nil
	}
	for i, name := range portNames[:rapid.IntRange(1, len(portNames)).Draw(t, "ports")] {
		p := corev1.ServicePort{Name: name, Protocol: rapid.SampledFrom(protocols).Draw(t, "protocol"), Port: int32(80 + i)}
		if spec.Type != corev1.ServiceTypeClusterIP && rapid.Bool().Draw(t, "nodePort") {
			p.NodePort = int32(30000 + i)
		}
		spec.Ports = append(spec.Ports, p)
	}
	if len(spec.Ports) == 1 && rapid.Bool().Draw(t, "unnamed") {
		spec.Ports[0].Name = ""
	}
	if rapid.Bool().Draw(t, "internal local") {
		policy := rapid.SampledFrom([]corev1.ServiceInternalTrafficPolicy{corev1.ServiceInternalTrafficPolicyLocal,
			corev1.ServiceInternalTrafficPolicyCluster}).Draw(t, "internal")
		spec.InternalTrafficPolicy = &policy
	}
	spec.ExternalTrafficPolicy = rapid.SampledFrom([]corev1.ServiceExternalTrafficPolicy{"",
		corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal}).Draw(t, "external")
	spec.ExternalIPs = some(t, "externalIPs", "198.51.100.1", "198.51.100.001", "2001:db8::1", "203.0.113.5",
		"::ffff:198.51.100.2", "no address", "")
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		vip, proxied := corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy
		for _, ip := range some(t, "ingress", "203.0.113.5", "203.0.113.6", "2001:db8::5", "") {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{
				IP: ip, Hostname: "lb.example", IPMode: rapid.SampledFrom([]*corev1.LoadBalancerIPMode{nil, &vip, &proxied}).Draw(t,
					"ipMode"),
			})
		}
		spec.LoadBalancerSourceRanges = some(t, "ranges", "192.0.2.0/24", " 192.0.2.0/24", "192.0.2.77/24", "10.0.0.0/08",
			"2001:db8:1::/48", "0.0.0.0/0", "::/0")
		spec.HealthCheckNodePort = rapid.SampledFrom([]int32{0, 32000}).Draw(t, "healthCheckNodePort")
	}
	if rapid.Bool().Draw(t, "affinity") {
		seconds := rapid.Int32Range(1, 86400).Draw(t, "seconds")
		spec.SessionAffinity = corev1.ServiceAffinityClientIP
		spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	return s
})

// some draws some of the values, in any order and perhaps twice.
func some(t *rapid.T, label string, values ...string) []string {
	return rapid.SliceOfN(rapid.SampledFrom(values), 0, 4).Draw(t, label)
}

// slicesGen makes the Service's slices. An endpoint that is in several, as happens while endpoints move, says the same
// in each of them, except about its node: kube-proxy's answer would depend on the order of a map otherwise.
func slicesGen(s *corev1.Service) *rapid.Generator[[]*discoveryv1.EndpointSlice] {
	return rapid.Custom(func(t *rapid.T) []*discoveryv1.EndpointSlice {
		conditions := rapid.SampledFrom([]func(string) discoveryv1.EndpointConditions{
			// Nearly all are ready; any mixture; none is ready.
			func(string) discoveryv1.EndpointConditions { return discoveryv1.EndpointConditions{} },
			func(l string) discoveryv1.EndpointConditions { return drawConditions(t, l, nil) },
			func(l string) discoveryv1.EndpointConditions { no := false; return drawConditions(t, l, &no) },
		}).Draw(t, "conditions")
		hints := rapid.IntRange(0, 3).Draw(t, "hints")
		known := map[string]discoveryv1.Endpoint{}
		var out []*discoveryv1.EndpointSlice
		for i := range rapid.SampledFrom([]int{2, 3, 4, 1, 0}).Draw(t, "slices") {
			slice := &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: fmt.Sprintf("slice-%d", i), Labels: map[string]string{
					discoveryv1.LabelServiceName: s.Name}},
				AddressType: addressType(t, s, i),
				Ports:       drawPorts(t, s),
			}
			for range rapid.SampledFrom([]int{3, 6, 2, 1, 0}).Draw(t, "endpoints") {
				number, local := rapid.IntRange(1, 7).Draw(t, "endpoint"), rapid.Bool().Draw(t, "here")
				address := map[discoveryv1.AddressType]string{
					discoveryv1.AddressTypeIPv4: fmt.Sprintf("10.244.0.%d", number), discoveryv1.AddressTypeIPv6: fmt.Sprintf(
						"fd44::%d", number), discoveryv1.AddressTypeFQDN: "pod.example",
				}[slice.AddressType]
				id := fmt.Sprint(address, " here ", local)
				e, ok := known[id]
				if !ok {
					e = discoveryv1.Endpoint{Addresses: []string{address, "192.0.2.1"}, Conditions: conditions(id),
						Hints: drawHints(t, hints)}
					if local {
						e.NodeName = &nodes[0]
					} else {
						e.NodeName = rapid.SampledFrom([]*string{nil, &nodes[1], &nodes[2]}).Draw(t, "node")
					}
					known[id] = e
				}
				slice.Endpoints = append(slice.Endpoints, e)
			}
			out = append(out, slice)
		}
		return out
	})
}

func drawConditions(t *rapid.T, label string, ready *bool) discoveryv1.EndpointConditions {
	yes, no := true, false
	any3 := rapid.SampledFrom([]*bool{nil, &yes, &no})
	c := discoveryv1.EndpointConditions{Ready: ready, Serving: any3.Draw(t, label+" serving"), Terminating: any3.Draw(t,
		label+" terminating")}
	if ready == nil {
		c.Ready = any3.Draw(t, label+" ready")
	}
	return c
}

// drawHints draws hints of a richness: none at all, mostly some, always for zones, always for nodes and zones.
func drawHints(t *rapid.T, richness int) *discoveryv1.EndpointHints {
	if richness == 0 || richness == 1 && rarely(t, "unhinted") {
		return nil
	}
	h := &discoveryv1.EndpointHints{}
	for range rapid.IntRange(min(1, richness-1), 2).Draw(t, "zones") {
		h.ForZones = append(h.ForZones, discoveryv1.ForZone{Name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "zone")})
	}
	if richness != 2 {
		for range rapid.IntRange(richness/3, 2).Draw(t, "nodes") {
			h.ForNodes = append(h.ForNodes, discoveryv1.ForNode{Name: rapid.SampledFrom(nodes).Draw(t, "hinted node")})
		}
	}
	return h
}

// drawPorts draws the numbers of the Service's ports at a slice's endpoints; some are missing, or are of another
// protocol, or of no Service.
func drawPorts(t *rapid.T, s *corev1.Service) (out []discoveryv1.EndpointPort) {
	for _, p := range s.Spec.Ports {
		name, protocol := p.Name, p.Protocol
		number := rapid.SampledFrom([]*int32{of(8080), of(8081), of(9090)}).Draw(t, "target port")
		if rarely(t, "bad port") {
			number = rapid.SampledFrom([]*int32{of(0), nil}).Draw(t, "no port")
		}
		if rarely(t, "missing port") {
			continue
		}
		if rarely(t, "other protocol") {
			protocol = rapid.SampledFrom(protocols).Draw(t, "protocol")
		}
		port := discoveryv1.EndpointPort{Name: &name, Port: number, Protocol: &protocol}
		if rarely(t, "no name") {
			port.Name = nil
		}
		out = append(out, port)
	}
	if rarely(t, "foreign") {
		name := "of-no-service"
		out = append(out, discoveryv1.EndpointPort{Name: &name, Port: of(7777), Protocol: &protocols[0]})
	}
	return slices.Clip(out)
}

// addressType is mostly one of the Service's, each in turn.
func addressType(t *rapid.T, s *corev1.Service, i int) discoveryv1.AddressType {
	if rarely(t, "other address type") || s.Spec.ClusterIP == "" {
		return rapid.SampledFrom([]discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6,
			discoveryv1.AddressTypeFQDN}).Draw(t, "address type")
	}
	if strings.Contains(s.Spec.ClusterIPs[i%len(s.Spec.ClusterIPs)], ":") {
		return discoveryv1.AddressTypeIPv6
	}
	return discoveryv1.AddressTypeIPv4
}

// rarely is true now and then. Small numbers are drawn more often than others, so it is a large one that counts.
func rarely(t *rapid.T, label string) bool { return rapid.IntRange(0, 9).Draw(t, label) == 9 }

func of(n int32) *int32 { return &n }
