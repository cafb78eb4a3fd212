package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/service"
)

const (
	defaultAffinity = 10800 // seconds, as the API documents it
	maxAffinity     = 86400
	// maxExternal bounds the external IPs of a Service, each at each of its ports: what they cost the switch and nftables
	// of every node.
	maxExternal = 10_000
)

// Service is what pkg/service wants to know of a Service. The error lists what cannot be used; the rest is still good.
func Service(object *corev1.Service) (service.Service, error) {
	spec := &object.Spec
	s := service.Service{Name: object.Namespace + "/" + object.Name, Created: seconds(object.CreationTimestamp)}
	var bad problems
	if spec.Type == corev1.ServiceTypeExternalName || spec.ClusterIP == corev1.ClusterIPNone {
		return s, nil
	}
	s.ClusterIPs = clusterIPs(spec, &bad)
	if len(s.ClusterIPs) == 0 {
		return s, bad.err()
	}
	for _, p := range spec.Ports {
		if port, ok := servicePort(p, &bad); ok {
			s.Ports = append(s.Ports, port)
		}
	}
	for _, text := range spec.ExternalIPs {
		if strings.TrimSpace(text) != "" { // old objects may have such
			s.ExternalIPs = appendAddr(s.ExternalIPs, "spec.externalIPs", text, special, &bad)
		}
	}
	s.ExternalIPs = slices.DeleteFunc(s.ExternalIPs, func(a netip.Addr) bool {
		own := slices.Contains(s.ClusterIPs, a)
		if own {
			bad.add("spec.externalIPs: %s is the Service's own ClusterIP", a)
		}
		return own
	})
	if n := len(s.ExternalIPs) * len(s.Ports); n > maxExternal {
		bad.add("spec.externalIPs: %d addresses at %d ports are more than %d frontends; none is used", len(s.ExternalIPs),
			len(s.Ports), maxExternal)
		s.ExternalIPs = nil
	}
	for _, ingress := range object.Status.LoadBalancer.Ingress {
		// With ipMode Proxy packets do not arrive with this address, and pods are to take the way through the load balancer.
		if ingress.IP != "" && (ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP) {
			s.LoadBalancerIPs = appendAddr(s.LoadBalancerIPs, "status.loadBalancer.ingress", ingress.IP, specialButLinkLocal,
				&bad)
		}
	}
	sources(object, &s, &bad)
	s.InternalLocal = spec.InternalTrafficPolicy != nil &&
		*spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	external := spec.Type == corev1.ServiceTypeLoadBalancer || spec.Type == corev1.ServiceTypeNodePort ||
		len(spec.ExternalIPs) > 0
	s.ExternalLocal = external && spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if s.ExternalLocal && spec.Type == corev1.ServiceTypeLoadBalancer {
		var ok bool
		if s.HealthCheckNodePort, ok = portNumber(spec.HealthCheckNodePort); !ok && spec.HealthCheckNodePort != 0 {
			bad.add("spec.healthCheckNodePort: invalid port %d", spec.HealthCheckNodePort)
		}
	}
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		s.Affinity = affinity(spec.SessionAffinityConfig, &bad)
	}
	var err error
	if s.Algorithm, err = service.ParseBalance(object.Annotations[service.BalanceAnnotation]); err != nil {
		bad = append(bad, err)
	}
	weights, wrong := service.ParseWeights(object.Annotations[service.WeightsAnnotation])
	s.Weights, bad = weights, append(bad, wrong...)
	return s, bad.err()
}

// clusterIPs are the Service's own addresses, the first of each family.
func clusterIPs(spec *corev1.ServiceSpec, bad *problems) (out []netip.Addr) {
	texts := spec.ClusterIPs
	if len(texts) == 0 && spec.ClusterIP != "" {
		texts = []string{spec.ClusterIP}
	}
	families := map[bool]bool{}
	for _, text := range texts {
		for _, addr := range appendAddr(nil, "spec.clusterIPs", text, specialButLinkLocal, bad) {
			if !families[addr.Is4()] {
				families[addr.Is4()] = true
				out = append(out, addr)
			}
		}
	}
	return out
}

func servicePort(p corev1.ServicePort, bad *problems) (service.Port, bool) {
	protocol, ok := protocolOf(p.Protocol)
	if !ok {
		bad.add("spec.ports: port %s%d: unknown protocol %q", named(p.Name), p.Port, p.Protocol)
		return service.Port{}, false
	}
	number, ok := portNumber(p.Port)
	if !ok {
		bad.add("spec.ports: port %s%d: invalid number", named(p.Name), p.Port)
		return service.Port{}, false
	}
	nodePort, ok := portNumber(p.NodePort)
	if !ok && p.NodePort != 0 {
		bad.add("spec.ports: port %s%d: invalid nodePort %d", named(p.Name), p.Port, p.NodePort)
	}
	return service.Port{Name: p.Name, Protocol: protocol, Port: number, NodePort: nodePort}, true
}

func named(port string) string {
	if port == "" {
		return ""
	}
	return port + " "
}

// sources reads whom the load balancer's addresses accept. The field goes before the annotation that it replaced.
func sources(object *corev1.Service, s *service.Service, bad *problems) {
	where, texts := "spec.loadBalancerSourceRanges", object.Spec.LoadBalancerSourceRanges
	if old := object.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; len(texts) == 0 &&
		strings.TrimSpace(old) != "" {
		where, texts = "annotation "+corev1.AnnotationLoadBalancerSourceRangesKey, strings.Split(old, ",")
	}
	for _, text := range texts {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		if cidr, err := parsePrefix(text); err != nil {
			s.SourcesLost = true
			bad.add("%s: %w; a family without another range accepts no client", where, err)
		} else {
			s.LoadBalancerSources = append(s.LoadBalancerSources, cidr)
		}
	}
}

func affinity(config *corev1.SessionAffinityConfig, bad *problems) time.Duration {
	seconds := int32(defaultAffinity)
	if config != nil && config.ClientIP != nil && config.ClientIP.TimeoutSeconds != nil {
		seconds = *config.ClientIP.TimeoutSeconds
	}
	if seconds < 1 || seconds > maxAffinity {
		was := seconds
		if seconds = defaultAffinity; was > maxAffinity {
			seconds = maxAffinity
		}
		bad.add("spec.sessionAffinityConfig: a timeout of %d s is not between 1 and %d; %d is used", was, maxAffinity,
			seconds)
	}
	return time.Duration(seconds) * time.Second
}

// EndpointSlice is what pkg/service wants to know of an EndpointSlice. The error lists what cannot be used; the rest is
// still good.
func EndpointSlice(object *discoveryv1.EndpointSlice) (service.Slice, error) {
	s := service.Slice{
		Name:    object.Namespace + "/" + object.Name,
		Service: object.Namespace + "/" + object.Labels[discoveryv1.LabelServiceName],
	}
	if object.AddressType != discoveryv1.AddressTypeIPv4 && object.AddressType != discoveryv1.AddressTypeIPv6 {
		return s, nil // names are not for a node to resolve
	}
	var bad problems
	for _, p := range object.Ports {
		if port, ok := slicePort(p, &bad); ok {
			s.Ports = append(s.Ports, port)
		}
	}
	if len(object.Endpoints) > 0 {
		s.Endpoints = make([]service.Endpoint, 0, len(object.Endpoints))
	}
	for i := range object.Endpoints {
		if e, ok := endpoint(&object.Endpoints[i], object.Namespace, object.AddressType == discoveryv1.AddressTypeIPv4,
			&bad); ok {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	return s, bad.err()
}

// slicePort reads a slice's port. One without a number means all ports, which is not for Services.
func slicePort(p discoveryv1.EndpointPort, bad *problems) (service.SlicePort, bool) {
	var out service.SlicePort
	if p.Name == nil {
		bad.add("ports: a port has no name")
		return out, false
	}
	out.Name = *p.Name
	if p.Port == nil {
		bad.add("ports: port %q has no number", out.Name)
		return out, false
	}
	var ok bool
	if out.Port, ok = portNumber(*p.Port); !ok {
		bad.add("ports: port %q: invalid port %d", out.Name, *p.Port)
		return out, false
	}
	var protocol corev1.Protocol
	if p.Protocol != nil {
		protocol = *p.Protocol
	}
	if out.Protocol, ok = protocolOf(protocol); !ok {
		bad.add("ports: port %q: unknown protocol %q", out.Name, protocol)
	}
	return out, ok
}

func endpoint(e *discoveryv1.Endpoint, namespace string, is4 bool, bad *problems) (service.Endpoint, bool) {
	if len(e.Addresses) == 0 {
		bad.add("endpoints: one has no address")
		return service.Endpoint{}, false
	}
	// What further addresses would mean is not defined.
	addr := appendAddr(nil, "endpoints", e.Addresses[0], special, bad)
	if len(addr) == 0 {
		return service.Endpoint{}, false
	}
	if addr[0].Is4() != is4 {
		bad.add("endpoints: %s is not of the slice's address type", addr[0])
		return service.Endpoint{}, false
	}
	out := service.Endpoint{
		Addr:        addr[0],
		Ready:       isTrue(e.Conditions.Ready, true),
		Serving:     isTrue(e.Conditions.Serving, true),
		Terminating: isTrue(e.Conditions.Terminating, false),
	}
	if e.NodeName != nil {
		out.Node = *e.NodeName
	}
	if t := e.TargetRef; t != nil && t.Kind == "Pod" && (t.Namespace == namespace || t.Namespace == "") {
		out.Pod = t.Name
	}
	if e.Hints != nil {
		for _, h := range e.Hints.ForZones {
			out.ForZones = append(out.ForZones, h.Name)
		}
		for _, h := range e.Hints.ForNodes {
			out.ForNodes = append(out.ForNodes, h.Name)
		}
	}
	return out, true
}

// seconds is a time in seconds since 1970, 0 when it is not known.
func seconds(t metav1.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func isTrue(b *bool, unset bool) bool {
	if b == nil {
		return unset
	}
	return *b
}

func protocolOf(p corev1.Protocol) (model.Protocol, bool) {
	if p == "" {
		return model.TCP, true
	}
	m := model.Protocol(p)
	return m, m.Number() != 0
}

func portNumber(n int32) (uint16, bool) {
	if n < 1 || n > 65535 {
		return 0, false
	}
	return uint16(n), true
}

// appendAddr reads an address; one that is bad, or refused, is reported.
func appendAddr(to []netip.Addr, where, text string, refused func(netip.Addr) bool, bad *problems) []netip.Addr {
	addr, err := parseAddr(text)
	switch {
	case err != nil:
		bad.add("%s: %w", where, err)
		return to
	case refused(addr):
		bad.add("%s: %s is a special address (unspecified, loopback, link-local, multicast, broadcast, or one of Weft's "+
			"own); use another", where, addr)
		return to
	}
	return append(to, addr)
}

// special are the addresses that the API refuses as external IPs and endpoints, and those that Weft uses itself.
func special(a netip.Addr) bool { return a.IsLinkLocalUnicast() || specialButLinkLocal(a) }

// limitedBroadcast is for all hosts of a link (RFC 919). The API accepts it.
var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func specialButLinkLocal(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == limitedBroadcast ||
		slices.ContainsFunc(model.VirtualPrefixes(a.Is4()), func(p netip.Prefix) bool { return p.Contains(a) })
}

// parseAddr reads an address as Kubernetes does: zeros may lead the numbers of an IPv4 address, and do not make them
// octal.
func parseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil && !strings.Contains(text, ":") {
		parts := strings.Split(text, ".")
		for i, p := range parts {
			if zeroless := strings.TrimLeft(p, "0"); zeroless != "" {
				parts[i] = zeroless
			} else if p != "" {
				parts[i] = "0"
			}
		}
		if again, err := netip.ParseAddr(strings.Join(parts, ".")); err == nil {
			return again, nil
		}
	}
	if err != nil {
		return addr, fmt.Errorf("invalid address %q", text)
	}
	if addr.Zone() != "" {
		return addr, fmt.Errorf("%q has a zone", text)
	}
	return addr.Unmap(), nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	bad := fmt.Errorf("invalid CIDR %q", text)
	addrText, bitsText, ok := strings.Cut(text, "/")
	addr, err := parseAddr(addrText)
	if !ok || err != nil {
		return netip.Prefix{}, bad
	}
	bits, err := strconv.ParseUint(bitsText, 10, 8)
	if err != nil {
		return netip.Prefix{}, bad
	}
	if addr.Is4() && strings.Contains(addrText, ":") { // IPv4 in IPv6's clothes
		if bits < 96 {
			return netip.Prefix{}, bad
		}
		bits -= 96
	}
	cidr, err := addr.Prefix(int(bits))
	if err != nil {
		return netip.Prefix{}, bad
	}
	return cidr, nil
}

// problems are what is wrong with an object.
type problems []error

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Errorf(format, args...)) }

func (p problems) err() error { return service.JoinProblems(p) }
