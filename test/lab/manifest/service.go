package manifest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// NodePorts are the first and the last port that Services have at nodes, as in a cluster by default.
const (
	FirstNodePort = 30000
	LastNodePort  = 32767
)

// sliceController is who writes a cluster's EndpointSlices of Services with selectors.
const sliceController = "endpointslice-controller.k8s.io"

func (l *loader) service(p place) {
	var s corev1.Service
	if !l.decode(p, &s) || !l.meta(p, "Service", &s.ObjectMeta, true) {
		return
	}
	at := p.at("spec")
	switch s.Spec.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	case corev1.ServiceTypeExternalName:
		l.unsupported(at.at("type"), true, "an ExternalName is a matter of DNS, which a lab does not have")
		return
	default:
		l.wrong(at.at("type"), "%q is not allowed; allowed: ClusterIP, NodePort, LoadBalancer", s.Spec.Type)
	}
	oneOf(l, at.at("internalTrafficPolicy"), s.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster,
		corev1.ServiceInternalTrafficPolicyLocal)
	oneOf(l, at.at("externalTrafficPolicy"), &s.Spec.ExternalTrafficPolicy, "", corev1.ServiceExternalTrafficPolicyCluster,
		corev1.ServiceExternalTrafficPolicyLocal)
	oneOf(l, at.at("sessionAffinity"), &s.Spec.SessionAffinity, "", corev1.ServiceAffinityNone,
		corev1.ServiceAffinityClientIP)
	l.clusterIPs(at, &s)
	for i, text := range s.Spec.ExternalIPs {
		l.addr(at.at("externalIPs[%d]", i), text)
	}
	s.Status.Conditions = nil
	balancer := p.at("status.loadBalancer")
	if len(s.Status.LoadBalancer.Ingress) > 0 && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		l.wrong(balancer, "only a Service of type LoadBalancer has one")
	}
	for i, ingress := range s.Status.LoadBalancer.Ingress {
		if ingress.IP != "" {
			l.addr(balancer.at("ingress[%d].ip", i), ingress.IP)
		}
	}
	if len(s.Spec.Ports) == 0 && s.Spec.ClusterIP != corev1.ClusterIPNone {
		l.wrong(at, "ports are missing")
	}
	l.servicePorts(at, s.Spec.Ports)
	l.set.Services = append(l.set.Services, &s)
	l.checks = append(l.checks, func() { l.warnOfService(p, &s) })
}

// oneOf checks a value of which there are only some.
func oneOf[T ~string](l *loader, p place, value *T, allowed ...T) {
	if value == nil || slices.Contains(allowed, *value) {
		return
	}
	var texts []string
	for _, a := range allowed {
		if a != "" {
			texts = append(texts, string(a))
		}
	}
	l.wrong(p, "%q is not allowed; allowed: %s", *value, strings.Join(texts, ", "))
}

// clusterIPs checks the addresses that a Service asks for.
func (l *loader) clusterIPs(p place, s *corev1.Service) {
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		return
	}
	texts, at := s.Spec.ClusterIPs, p.at("clusterIPs")
	switch {
	case s.Spec.ClusterIP == "" && len(texts) > 0, s.Spec.ClusterIP != "" && len(texts) > 0 &&
		s.Spec.ClusterIP != texts[0]:
		l.wrong(at, "the first has to be clusterIP")
		return
	case len(texts) == 0 && s.Spec.ClusterIP != "":
		texts, at = []string{s.Spec.ClusterIP}, p.at("clusterIP")
		s.Spec.ClusterIPs = texts
	}
	var ours []string
	for _, text := range texts {
		addr, ok := l.addr(at, text)
		if !ok {
			continue
		}
		if len(l.opt.ServiceCIDRs) > 0 && !slices.ContainsFunc(l.opt.ServiceCIDRs, func(c netip.Prefix) bool {
			return c.Contains(addr)
		}) {
			l.warn(at, "%s is in none of the lab's ranges %v; the lab assigns another", addr, l.opt.ServiceCIDRs)
			continue
		}
		l.claim(at, "cluster IP", "", addr.String())
		ours = append(ours, text)
	}
	s.Spec.ClusterIP, s.Spec.ClusterIPs = "", ours
	if len(ours) > 0 {
		s.Spec.ClusterIP = ours[0]
	}
}

func (l *loader) addr(p place, text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		l.wrong(p, "%q is not an address", text)
		return addr, false
	}
	return addr, true
}

func (l *loader) nodePort(p place, port corev1.ServicePort) {
	if port.NodePort == 0 {
		return
	}
	if port.NodePort < FirstNodePort || port.NodePort > LastNodePort {
		l.wrong(p, "%d is not from %d to %d", port.NodePort, FirstNodePort, LastNodePort)
	}
	l.claim(p, "node port", string(port.Protocol), fmt.Sprint(port.NodePort))
}

func (l *loader) servicePorts(p place, ports []corev1.ServicePort) {
	type number struct {
		protocol corev1.Protocol
		port     int32
	}
	names, numbers := map[string]bool{}, map[number]bool{}
	for i := range ports {
		port := &ports[i]
		at := p.at("ports[%d]", i)
		l.portNumber(at.at("port"), port.Port)
		l.protocol(at.at("protocol"), port.Protocol)
		if port.Protocol == "" {
			port.Protocol = corev1.ProtocolTCP
		}
		if port.Name == "" && len(ports) > 1 {
			l.wrong(at, "name is missing: every port of a Service with several has one")
		}
		if names[port.Name] && port.Name != "" || numbers[number{port.Protocol, port.Port}] {
			l.wrong(at, "the Service has this port twice")
		}
		l.nodePort(at.at("nodePort"), *port)
		names[port.Name], numbers[number{port.Protocol, port.Port}] = true, true
		switch target := port.TargetPort; {
		case target.Type == intstr.String && target.StrVal != "":
			l.portName(at.at("targetPort"), target.StrVal)
		case target.Type == intstr.Int && target.IntVal != 0:
			l.portNumber(at.at("targetPort"), target.IntVal)
		default:
			port.TargetPort = intstr.FromInt32(port.Port)
		}
	}
}

// endpointSlice takes one in that a manifest spells out, beside those that follow from selectors.
func (l *loader) endpointSlice(p place) {
	var s discoveryv1.EndpointSlice
	if !l.decode(p, &s) || !l.meta(p, "EndpointSlice", &s.ObjectMeta, true) {
		return
	}
	if s.Labels[discoveryv1.LabelManagedBy] == sliceController {
		return // exported from a cluster; the lab derives its own
	}
	if s.Labels[discoveryv1.LabelServiceName] == "" {
		l.wrong(p.at("metadata"), "the label %s is missing: it says whose endpoints these are", discoveryv1.LabelServiceName)
	}
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
	default:
		l.wrong(p.at("addressType"), "%q is not allowed; allowed: IPv4, IPv6", s.AddressType)
		return
	}
	for i := range s.Ports {
		port := &s.Ports[i]
		at := p.at("ports[%d]", i)
		if port.Name == nil {
			port.Name = new(string)
		}
		if port.Protocol == nil {
			tcp := corev1.ProtocolTCP
			port.Protocol = &tcp
		}
		l.protocol(at.at("protocol"), *port.Protocol)
		if port.Port == nil {
			l.wrong(at, "port is missing")
		} else {
			l.portNumber(at.at("port"), *port.Port)
		}
	}
	for i, e := range s.Endpoints {
		at := p.at("endpoints[%d]", i)
		if len(e.Addresses) == 0 {
			l.wrong(at, "addresses are missing")
		}
		for _, text := range e.Addresses {
			if addr, ok := l.addr(at.at("addresses"), text); ok && addr.Is4() != (s.AddressType == discoveryv1.AddressTypeIPv4) {
				l.wrong(at.at("addresses"), "%s is not of type %s", addr, s.AddressType)
			}
		}
	}
	l.set.Slices = append(l.set.Slices, &s)
}
