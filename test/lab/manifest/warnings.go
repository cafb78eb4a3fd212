package manifest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// This file warns of what Kubernetes allows and what has no effect: mostly a mistake in a label or in a port's name.

// matching are the pods that a selector matches in namespaces; an empty namespace is all of them.
func (l *loader) matching(selector labels.Selector, namespace string) []*corev1.Pod {
	var pods []*corev1.Pod
	for _, pod := range l.set.Pods {
		if (namespace == "" || pod.Namespace == namespace) && selector.Matches(labels.Set(pod.Labels)) {
			pods = append(pods, pod)
		}
	}
	return pods
}

// hasPort says whether a pod has a port; a protocol that is not given is TCP.
func hasPort(pod *corev1.Pod, protocol corev1.Protocol, port intstr.IntOrString) bool {
	same := func(a, b corev1.Protocol) bool { return cmp.Or(a, corev1.ProtocolTCP) == cmp.Or(b, corev1.ProtocolTCP) }
	return slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool {
		return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool {
			if port.Type == intstr.String {
				return p.Name == port.StrVal && same(p.Protocol, protocol)
			}
			return p.ContainerPort == port.IntVal && same(p.Protocol, protocol)
		})
	})
}

// anyHasPort says whether one of the pods has a port.
func anyHasPort(pods []*corev1.Pod, protocol corev1.Protocol, port intstr.IntOrString) bool {
	return slices.ContainsFunc(pods, func(pod *corev1.Pod) bool { return hasPort(pod, protocol, port) })
}

// warnOfService warns of a Service without pods, and of a targetPort that none of its pods has.
func (l *loader) warnOfService(p place, s *corev1.Service) {
	if len(s.Spec.Selector) == 0 {
		return
	}
	selector := labels.SelectorFromSet(s.Spec.Selector)
	pods := l.matching(selector, s.Namespace)
	if len(pods) == 0 {
		l.warn(p.at("spec.selector"), "no pod of namespace %s has the labels %s", s.Namespace, selector)
		return
	}
	for i, port := range s.Spec.Ports {
		if !anyHasPort(pods, port.Protocol, port.TargetPort) {
			l.warn(p.at("spec.ports[%d].targetPort", i), "none of the pods has a port %s/%s; they have %s", &port.TargetPort,
				cmp.Or(port.Protocol, corev1.ProtocolTCP), portsOf(pods))
		}
	}
}

// portsOf names the ports of pods.
func portsOf(pods []*corev1.Pod) string {
	var names []string
	for _, pod := range pods {
		for _, c := range pod.Spec.Containers {
			for _, port := range c.Ports {
				name := fmt.Sprintf("%d/%s", port.ContainerPort, cmp.Or(port.Protocol, corev1.ProtocolTCP))
				if port.Name != "" {
					name += " (" + port.Name + ")"
				}
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return cmp.Or(strings.Join(slices.Compact(names), ", "), "none")
}

// warnOfPolicy warns of selectors that match no pod, and of named ports that no pod has.
func (l *loader) warnOfPolicy(p place, n *networkingv1.NetworkPolicy) {
	at := p.at("spec")
	selector, err := metav1.LabelSelectorAsSelector(&n.Spec.PodSelector)
	if err != nil {
		return // a problem
	}
	subjects := l.matching(selector, n.Namespace)
	if len(subjects) == 0 {
		l.warn(at.at("podSelector"), "no pod of namespace %s is selected (%s)", n.Namespace, selector)
	}
	for i, rule := range n.Spec.Ingress {
		at := at.at("ingress[%d]", i)
		l.warnOfPeers(at.at("from"), n.Namespace, rule.From)
		l.warnOfNamedPorts(at.at("ports"), rule.Ports, subjects)
	}
	for i, rule := range n.Spec.Egress {
		at := at.at("egress[%d]", i)
		peers := l.warnOfPeers(at.at("to"), n.Namespace, rule.To)
		if len(rule.To) == 0 {
			peers = l.set.Pods
		}
		l.warnOfNamedPorts(at.at("ports"), rule.Ports, peers)
	}
}

// warnOfPeers returns the pods that peers select.
func (l *loader) warnOfPeers(p place, namespace string, peers []networkingv1.NetworkPolicyPeer) []*corev1.Pod {
	var all []*corev1.Pod
	for i, peer := range peers {
		if peer.PodSelector == nil && peer.NamespaceSelector == nil {
			continue
		}
		pods, ok := l.peerPods(peer, namespace)
		if ok && len(pods) == 0 {
			l.warn(p.at("[%d]", i), "the selectors match no pod")
		}
		all = append(all, pods...)
	}
	return all
}

func (l *loader) peerPods(peer networkingv1.NetworkPolicyPeer, namespace string) ([]*corev1.Pod, bool) {
	selector := labels.Everything()
	var err error
	if peer.PodSelector != nil {
		if selector, err = metav1.LabelSelectorAsSelector(peer.PodSelector); err != nil {
			return nil, false
		}
	}
	if peer.NamespaceSelector == nil {
		return l.matching(selector, namespace), true
	}
	namespaces, err := metav1.LabelSelectorAsSelector(peer.NamespaceSelector)
	if err != nil {
		return nil, false
	}
	var pods []*corev1.Pod
	for _, ns := range l.set.Namespaces {
		set := labels.Merge(ns.Labels, labels.Set{corev1.LabelMetadataName: ns.Name})
		if namespaces.Matches(set) {
			pods = append(pods, l.matching(selector, ns.Name)...)
		}
	}
	return pods, true
}

func (l *loader) warnOfNamedPorts(p place, ports []networkingv1.NetworkPolicyPort, pods []*corev1.Pod) {
	for i, port := range ports {
		if port.Port == nil || port.Port.Type != intstr.String || len(pods) == 0 {
			continue
		}
		protocol := corev1.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		if !anyHasPort(pods, protocol, *port.Port) {
			l.warn(p.at("[%d].port", i), "none of the pods has a port %s/%s; they have %s", port.Port, protocol,
				portsOf(pods))
		}
	}
}
