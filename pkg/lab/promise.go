package lab

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
)

// cluster is the lab as policies see it.
func (l *Lab) cluster(pods []*pod) (policy.Cluster, error) {
	c := policy.Cluster{Namespaces: map[string]map[string]string{}, Nodes: map[string][]netip.Addr{}}
	for _, n := range l.set.Namespaces {
		c.Namespaces[n.Name] = n.Labels
	}
	for _, n := range l.nodes {
		c.Nodes[n.name] = addrsOf(n.underlay)
		for _, cidr := range n.podCIDRs {
			c.Nodes[n.name] = append(c.Nodes[n.name], model.GatewayAddr(cidr))
		}
	}
	for _, p := range pods {
		one := policy.Pod{Namespace: p.object.Namespace, Name: p.object.Name, Node: p.node.name, Labels: p.object.Labels, Addrs: p.ips}
		for _, container := range p.object.Spec.Containers {
			for _, port := range container.Ports {
				one.Ports = append(one.Ports, policy.ContainerPort{Name: port.Name, Protocol: policy.Protocol(protocolOf(port.Protocol)), Number: uint16(port.ContainerPort)})
			}
		}
		c.Pods = append(c.Pods, one)
	}
	var bad []error
	for _, object := range l.set.Policies {
		p, err := policyOf(object)
		if err != nil {
			bad = append(bad, fmt.Errorf("NetworkPolicy %s/%s: %w", object.Namespace, object.Name, err))
		}
		c.Policies = append(c.Policies, p)
	}
	return c, errors.Join(bad...)
}

func policyOf(object *networkingv1.NetworkPolicy) (policy.Policy, error) {
	p := policy.Policy{Namespace: object.Namespace, Name: object.Name, PodSelector: selectorOf(object.Spec.PodSelector)}
	for _, t := range object.Spec.PolicyTypes {
		p.Types = append(p.Types, policy.Direction(t))
	}
	for _, rule := range object.Spec.Ingress {
		r, err := ruleOf(rule.From, rule.Ports)
		if err != nil {
			return p, err
		}
		p.Ingress = append(p.Ingress, r)
	}
	for _, rule := range object.Spec.Egress {
		r, err := ruleOf(rule.To, rule.Ports)
		if err != nil {
			return p, err
		}
		p.Egress = append(p.Egress, r)
	}
	return p, nil
}

func ruleOf(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) (policy.Rule, error) {
	var r policy.Rule
	for _, peer := range peers {
		var one policy.Peer
		if peer.PodSelector != nil {
			s := selectorOf(*peer.PodSelector)
			one.PodSelector = &s
		}
		if peer.NamespaceSelector != nil {
			s := selectorOf(*peer.NamespaceSelector)
			one.NamespaceSelector = &s
		}
		if peer.IPBlock != nil {
			block, err := blockOf(*peer.IPBlock)
			if err != nil {
				return r, err
			}
			one.IPBlock = &block
		}
		r.Peers = append(r.Peers, one)
	}
	for _, port := range ports {
		var one policy.Port
		if port.Protocol != nil {
			one.Protocol = policy.Protocol(*port.Protocol)
		}
		if port.Port != nil && port.Port.Type == intstr.String {
			one.Name = port.Port.StrVal
		} else if port.Port != nil {
			one.Number = uint16(port.Port.IntVal)
		}
		if port.EndPort != nil {
			one.EndPort = uint16(*port.EndPort)
		}
		r.Ports = append(r.Ports, one)
	}
	return r, nil
}

func blockOf(b networkingv1.IPBlock) (policy.IPBlock, error) {
	var out policy.IPBlock
	var err error
	if out.CIDR, err = netip.ParsePrefix(b.CIDR); err != nil {
		return out, fmt.Errorf("ipBlock: %w", err)
	}
	for _, text := range b.Except {
		except, err := netip.ParsePrefix(text)
		if err != nil {
			return out, fmt.Errorf("ipBlock: %w", err)
		}
		out.Except = append(out.Except, except)
	}
	return out, nil
}

func selectorOf(s metav1.LabelSelector) policy.Selector {
	out := policy.Selector{MatchLabels: maps.Clone(s.MatchLabels)}
	for _, r := range s.MatchExpressions {
		out.MatchExpressions = append(out.MatchExpressions, policy.Requirement{Key: r.Key, Operator: policy.Operator(r.Operator), Values: r.Values})
	}
	return out
}
