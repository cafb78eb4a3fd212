package policy_test

import (
	"flag"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
	"sigs.k8s.io/kube-network-policies/pkg/network"

	"github.com/weft-cni/weft/pkg/kube"
	weft "github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/trace/tracetest"
)

// TestRandomPolicies: the oracles judge random policies, too, which say what cyclonus' cases do not: labels that are
// missing, names of ports that mean several numbers, overlapping exceptions and ranges; and kube-network-policies
// judges ClusterNetworkPolicies of both tiers among them. That the flows agree with Eval
// on these is pkg/trace's test.
//
//	go test -C test/oracle/policy -run TestRandomPolicies -rapid.checks=100000
func TestRandomPolicies(t *testing.T) {
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		if err := checks.Value.Set("2000"); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		c := tracetest.DrawCluster(t)
		c.Policies = tracetest.DrawPolicies(t)
		var objects []*networkingv1.NetworkPolicy
		cluster, err := split(c.Policies)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range c.Policies {
			if p.Tier.Ordered() {
				continue
			}
			object := object(p)
			objects = append(objects, object)
			c.Policies[i] = kube.NetworkPolicy(object) // the way that the agent reads it
		}
		notIn := slices.ContainsFunc(objects, hasNotIn)
		view := c.ForEval()
		theirs := matcher.BuildNetworkPolicies(false, objects)
		var pods []*corev1.Pod
		for _, p := range c.Pods {
			pods = append(pods, podObject(p))
		}
		admin, baseline, err := clusterEvaluators(cluster, c.PeerNodes)
		if err != nil {
			t.Fatal(err)
		}
		engine, err := engineOf(pods, c.Namespaces, objects, admin, baseline)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range tracetest.DrawPackets(t, c) {
			protocol := protocolOf(p.Protocol)
			src, dst := podOf(c, p.Src), podOf(c, p.Dst)
			// The oracles know neither echoes nor that a pod and its node always reach itself and each other.
			if protocol == "" || src != nil && src == dst || ownNode(view, src, p.Dst) || ownNode(view, dst, p.Src) {
				continue
			}
			verdict := tracetest.Expected(view, p)
			// For cyclonus NotIn does not match where the label is missing; for Kubernetes' own selectors, and the other oracle,
			// it does.
			if got := cyclonusSays(theirs, c, src, dst, p, protocol); got != verdict.Allowed && !notIn &&
				len(cluster) == 0 { // it knows no others
				t.Errorf("cyclonus says %t of %+v, Eval %+v\n%+v", got, p, verdict, c)
			}
			got, err := engine.EvaluatePacket(t.Context(), &network.Packet{SrcIP: p.Src.AsSlice(), DstIP: p.Dst.AsSlice(),
				Proto: protocol, SrcPort: int(p.SrcPort), DstPort: int(p.DstPort)})
			if err != nil || got != verdict.Allowed {
				t.Errorf("kube-network-policies says %t, %v of %+v, Eval %+v\n%+v", got, err, p, verdict, c)
			}
		}
	})
}

func hasNotIn(p *networkingv1.NetworkPolicy) bool {
	return strings.Contains(p.String(), string(metav1.LabelSelectorOpNotIn))
}

func ownNode(view weft.Cluster, pod *weft.Pod, other netip.Addr) bool {
	return pod != nil && slices.Contains(view.Nodes[pod.Node], other)
}

func podOf(c tracetest.Cluster, a netip.Addr) *weft.Pod {
	for i, p := range c.Pods {
		if !p.HostNetwork && slices.Contains(p.Addrs, a) {
			return &c.Pods[i]
		}
	}
	return nil
}

func protocolOf(number uint8) corev1.Protocol {
	return map[uint8]corev1.Protocol{6: corev1.ProtocolTCP, 17: corev1.ProtocolUDP, 132: corev1.ProtocolSCTP}[number]
}

// cyclonusSays asks about each name that the port has: its traffic has only one.
func cyclonusSays(p *matcher.Policy, c tracetest.Cluster, src, dst *weft.Pod, packet tracetest.Packet,
	protocol corev1.Protocol) bool {
	names := []string{""}
	if dst != nil {
		for _, port := range dst.Ports {
			if port.Number == packet.DstPort && string(port.Protocol) == string(protocol) {
				names = append(names, port.Name)
			}
		}
	}
	egress, ingress := false, false
	for _, name := range names {
		r := p.IsTrafficAllowed(&matcher.Traffic{Source: peerOf(c, src, packet.Src), Destination: peerOf(c, dst, packet.Dst),
			ResolvedPort: int(packet.DstPort), ResolvedPortName: name, Protocol: protocol})
		egress, ingress = egress || r.Egress.IsAllowed(), ingress || r.Ingress.IsAllowed()
	}
	return egress && ingress
}

func peerOf(c tracetest.Cluster, p *weft.Pod, a netip.Addr) *matcher.TrafficPeer {
	peer := &matcher.TrafficPeer{IP: a.String()}
	if p != nil {
		peer.Internal = &matcher.InternalPeer{PodLabels: p.Labels, NamespaceLabels: c.Namespaces[p.Namespace],
			Namespace: p.Namespace}
	}
	return peer
}

func podObject(p weft.Pod) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels}}
	out.Spec.NodeName, out.Spec.HostNetwork = p.Node, p.HostNetwork
	container := corev1.Container{Name: "c"}
	for _, port := range p.Ports {
		container.Ports = append(container.Ports, corev1.ContainerPort{Name: port.Name, ContainerPort: int32(port.Number),
			Protocol: corev1.Protocol(port.Protocol)})
	}
	out.Spec.Containers = []corev1.Container{container}
	for _, a := range p.Addrs {
		out.Status.PodIPs = append(out.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	out.Status.PodIP = out.Status.PodIPs[0].IP
	return out
}

// object is a drawn policy as the API server stores it: with the defaults of policyTypes and protocols.
func object(p weft.Policy) *networkingv1.NetworkPolicy {
	out := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}}
	out.Spec.PodSelector = selectorObject(p.PodSelector)
	for _, d := range p.Types {
		out.Spec.PolicyTypes = append(out.Spec.PolicyTypes, networkingv1.PolicyType(d))
	}
	if len(p.Types) == 0 {
		out.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Egress) > 0 {
			out.Spec.PolicyTypes = append(out.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	for _, r := range p.Ingress {
		out.Spec.Ingress = append(out.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peerObjects(r.Peers),
			Ports: portObjects(r.Ports)})
	}
	for _, r := range p.Egress {
		out.Spec.Egress = append(out.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peerObjects(r.Peers),
			Ports: portObjects(r.Ports)})
	}
	return out
}

func peerObjects(peers []weft.Peer) (list []networkingv1.NetworkPolicyPeer) {
	for _, p := range peers {
		var out networkingv1.NetworkPolicyPeer
		if p.PodSelector != nil {
			s := selectorObject(*p.PodSelector)
			out.PodSelector = &s
		}
		if p.NamespaceSelector != nil {
			s := selectorObject(*p.NamespaceSelector)
			out.NamespaceSelector = &s
		}
		if p.IPBlock != nil {
			out.IPBlock = &networkingv1.IPBlock{CIDR: p.IPBlock.CIDR.String()}
			for _, e := range p.IPBlock.Except {
				out.IPBlock.Except = append(out.IPBlock.Except, e.String())
			}
		}
		list = append(list, out)
	}
	return list
}

func portObjects(ports []weft.Port) (list []networkingv1.NetworkPolicyPort) {
	for _, p := range ports {
		protocol := corev1.ProtocolTCP
		if p.Protocol != "" {
			protocol = corev1.Protocol(p.Protocol)
		}
		out := networkingv1.NetworkPolicyPort{Protocol: &protocol}
		switch {
		case p.Name != "":
			name := intstr.FromString(p.Name)
			out.Port = &name
		case p.Number != 0:
			number := intstr.FromInt32(int32(p.Number))
			out.Port = &number
		}
		if p.EndPort != 0 {
			end := int32(p.EndPort)
			out.EndPort = &end
		}
		list = append(list, out)
	}
	return list
}

func selectorObject(s weft.Selector) metav1.LabelSelector {
	out := metav1.LabelSelector{MatchLabels: s.MatchLabels}
	for _, r := range s.MatchExpressions {
		out.MatchExpressions = append(out.MatchExpressions, metav1.LabelSelectorRequirement{Key: r.Key,
			Operator: metav1.LabelSelectorOperator(r.Operator), Values: r.Values})
	}
	return out
}
