package manifest

import (
	"errors"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/kube/cnp"
)

func checkName(name string) error {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return errors.New(problems[0])
	}
	return nil
}

// meta checks an object's metadata, fills in its namespace and claims its name.
func (l *loader) meta(p place, kind string, m *metav1.ObjectMeta, namespaced bool) bool {
	at := p.at("metadata")
	if m.Name == "" {
		l.wrong(at, "name is missing")
		return false
	}
	if err := checkName(m.Name); err != nil {
		l.wrong(at.at("name"), "%q is not a name: %v", m.Name, err)
		return false
	}
	switch {
	case !namespaced && m.Namespace != "":
		l.wrong(at.at("namespace"), "a %s is in no namespace", kind)
	case namespaced && m.Namespace == "":
		m.Namespace = metav1.NamespaceDefault
	case namespaced:
		if problems := validation.IsDNS1123Label(m.Namespace); len(problems) > 0 {
			l.wrong(at.at("namespace"), "%q is not a name: %s", m.Namespace, problems[0])
		}
	}
	l.labels(at.at("labels"), m.Labels)
	// What an API server sets, the lab's own does.
	m.UID, m.ResourceVersion, m.Generation, m.ManagedFields = "", "", 0, nil
	return l.claim(at.at("name"), kind, m.Namespace, m.Name)
}

func (l *loader) labels(p place, set map[string]string) {
	for key, value := range set {
		if problems := validation.IsQualifiedName(key); len(problems) > 0 {
			l.wrong(p, "%q is not a label: %s", key, problems[0])
		}
		if problems := validation.IsValidLabelValue(value); len(problems) > 0 {
			l.wrong(p, "%q is not the value of a label: %s", value, problems[0])
		}
	}
}

func (l *loader) selector(p place, s *metav1.LabelSelector) (labels.Selector, bool) {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		l.wrong(p, "%v", err)
	}
	return selector, err == nil
}

// unsupported warns of a field that says something a lab does not do.
func (l *loader) unsupported(p place, used bool, why string) {
	if used {
		l.warn(p, "not supported: %s", why)
	}
}

// podSpec checks what of a pod matters to a network. Images, volumes, resources and the like do not.
func (l *loader) podSpec(p place, spec *corev1.PodSpec) {
	l.unsupported(p.at("affinity"), spec.Affinity != nil,
		"a lab has no scheduler; nodeName and nodeSelector have an effect")
	l.unsupported(p.at("topologySpreadConstraints"), len(spec.TopologySpreadConstraints) > 0,
		"a lab has no scheduler; nodeName and nodeSelector have an effect")
	names := map[string]bool{}
	for i, c := range spec.InitContainers {
		l.unsupported(p.at("initContainers[%d].ports", i), len(c.Ports) > 0,
			"nothing answers there; give the ports to a container")
	}
	for i, c := range spec.Containers {
		for j, port := range c.Ports {
			at := p.at("containers[%d].ports[%d]", i, j)
			l.portNumber(at.at("containerPort"), port.ContainerPort)
			l.protocol(at.at("protocol"), port.Protocol)
			l.unsupported(at.at("hostPort"), port.HostPort != 0 && !spec.HostNetwork,
				"it is the portmap plugin's, which a lab does not run")
			l.unsupported(at.at("hostIP"), port.HostIP != "", "it is the portmap plugin's, which a lab does not run")
			if port.Name == "" {
				continue
			}
			if problems := validation.IsValidPortName(port.Name); len(problems) > 0 {
				l.wrong(at.at("name"), "%q is not a port's name: %s", port.Name, problems[0])
			}
			if names[port.Name] {
				l.wrong(at.at("name"), "the pod has two ports called %q", port.Name)
			}
			names[port.Name] = true
		}
	}
}

func (l *loader) portNumber(p place, number int32) {
	if problems := validation.IsValidPortNum(int(number)); len(problems) > 0 {
		l.wrong(p, "%d is not a port: %s", number, problems[0])
	}
}

func (l *loader) protocol(p place, protocol corev1.Protocol) {
	switch protocol {
	case "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
	default:
		l.wrong(p, "%q is not allowed; allowed: TCP, UDP, SCTP", protocol)
	}
}

func (l *loader) portName(p place, name string) {
	if problems := validation.IsValidPortName(name); len(problems) > 0 {
		l.wrong(p, "%q is not a port's name: %s", name, problems[0])
	}
}

func (l *loader) policy(p place) {
	var n networkingv1.NetworkPolicy
	if !l.decode(p, &n) || !l.meta(p, "NetworkPolicy", &n.ObjectMeta, true) {
		return
	}
	at := p.at("spec")
	l.selector(at.at("podSelector"), &n.Spec.PodSelector)
	for i, t := range n.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			l.wrong(at.at("policyTypes[%d]", i), "%q is not allowed; allowed: Ingress, Egress", t)
		}
	}
	for i, rule := range n.Spec.Ingress {
		l.policyRule(at.at("ingress[%d]", i), rule.Ports, "from", rule.From)
	}
	for i, rule := range n.Spec.Egress {
		l.policyRule(at.at("egress[%d]", i), rule.Ports, "to", rule.To)
	}
	l.set.Policies = append(l.set.Policies, &n)
	l.checks = append(l.checks, func() { l.warnOfPolicy(p, &n) })
}

// clusterPolicy refuses what would fail closed on a node: a lab has no CustomResourceDefinition that would refuse it.
func (l *loader) clusterPolicy(p place) {
	var object cnp.ClusterNetworkPolicy
	if !l.decode(p, &object) || !l.meta(p, cnp.Kind, &object.ObjectMeta, false) {
		return
	}
	if err := kube.ClusterNetworkPolicy(&object).Check(); err != nil {
		l.wrong(p.at("spec"), "%v", err)
	}
	l.set.ClusterPolicies = append(l.set.ClusterPolicies, &object)
}

func (l *loader) policyRule(p place, ports []networkingv1.NetworkPolicyPort, list string,
	peers []networkingv1.NetworkPolicyPeer) {
	for i, port := range ports {
		at := p.at("ports[%d]", i)
		if port.Protocol != nil {
			l.protocol(at.at("protocol"), *port.Protocol)
		}
		switch {
		case port.Port != nil && port.Port.Type == intstr.String:
			l.portName(at.at("port"), port.Port.StrVal)
		case port.Port != nil:
			l.portNumber(at.at("port"), port.Port.IntVal)
		}
		if port.EndPort != nil {
			l.endPort(at.at("endPort"), port.Port, *port.EndPort)
		}
	}
	for i, peer := range peers {
		l.policyPeer(p.at("%s[%d]", list, i), peer)
	}
}

func (l *loader) endPort(p place, port *intstr.IntOrString, end int32) {
	if port == nil || port.Type == intstr.String {
		l.wrong(p, "needs a port that is a number")
		return
	}
	l.portNumber(p, end)
	if end < port.IntVal {
		l.wrong(p, "%d is less than the port %d", end, port.IntVal)
	}
}

func (l *loader) policyPeer(p place, peer networkingv1.NetworkPolicyPeer) {
	if peer.PodSelector != nil {
		l.selector(p.at("podSelector"), peer.PodSelector)
	}
	if peer.NamespaceSelector != nil {
		l.selector(p.at("namespaceSelector"), peer.NamespaceSelector)
	}
	if peer.IPBlock == nil {
		if peer.PodSelector == nil && peer.NamespaceSelector == nil {
			l.wrong(p, "needs a podSelector, a namespaceSelector or an ipBlock")
		}
		return
	}
	if peer.PodSelector != nil || peer.NamespaceSelector != nil {
		l.wrong(p.at("ipBlock"), "cannot stand beside a selector")
	}
	cidr, err := netip.ParsePrefix(peer.IPBlock.CIDR)
	if err != nil {
		l.wrong(p.at("ipBlock.cidr"), "%s", strings.TrimPrefix(err.Error(), "netip."))
		return
	}
	for i, text := range peer.IPBlock.Except {
		at := p.at("ipBlock.except[%d]", i)
		except, err := netip.ParsePrefix(text)
		if err != nil {
			l.wrong(at, "%s", strings.TrimPrefix(err.Error(), "netip."))
		} else if !cidr.Masked().Contains(except.Addr()) || except.Bits() <= cidr.Bits() {
			l.wrong(at, "%s is not a part of %s", except, cidr)
		}
	}
}
