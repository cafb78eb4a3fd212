package policy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	cnpevaluator "sigs.k8s.io/kube-network-policies/plugins/npa-v1alpha2"
	npav1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/network-policy-api/pkg/client/clientset/versioned"
	"sigs.k8s.io/network-policy-api/pkg/client/informers/externalversions"

	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/kube/cnp"
	"github.com/weft-cni/weft/pkg/model"
	weft "github.com/weft-cni/weft/pkg/policy"
)

// clusterObject is a drawn policy as the API has it, in the types of its own module.
func clusterObject(p weft.Policy) *npav1alpha2.ClusterNetworkPolicy {
	out := &npav1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: p.Name}}
	out.Spec.Tier, out.Spec.Priority = npav1alpha2.Tier(p.Tier.String()), p.Priority
	out.Spec.Subject.Pods = &npav1alpha2.NamespacedPod{NamespaceSelector: selectorObject(p.NamespaceSelector),
		PodSelector: selectorObject(p.PodSelector)}
	for _, r := range p.Ingress {
		rule := npav1alpha2.ClusterNetworkPolicyIngressRule{Protocols: protocolObjects(r.Ports),
			Action: npav1alpha2.ClusterNetworkPolicyRuleAction(r.Verdict.String())}
		for _, peer := range r.Peers {
			var from npav1alpha2.ClusterNetworkPolicyIngressPeer
			from.Namespaces, from.Pods = podsObject(peer)
			rule.From = append(rule.From, from)
		}
		out.Spec.Ingress = append(out.Spec.Ingress, rule)
	}
	for _, r := range p.Egress {
		rule := npav1alpha2.ClusterNetworkPolicyEgressRule{Protocols: protocolObjects(r.Ports),
			Action: npav1alpha2.ClusterNetworkPolicyRuleAction(r.Verdict.String())}
		for _, peer := range r.Peers {
			var to npav1alpha2.ClusterNetworkPolicyEgressPeer
			switch {
			case peer.IPBlock != nil:
				to.Networks = []npav1alpha2.CIDR{npav1alpha2.CIDR(peer.IPBlock.CIDR.String())}
			case peer.NodeSelector != nil:
				s := selectorObject(*peer.NodeSelector)
				to.Nodes = &s
			default:
				to.Namespaces, to.Pods = podsObject(peer)
			}
			rule.To = append(rule.To, to)
		}
		out.Spec.Egress = append(out.Spec.Egress, rule)
	}
	return out
}

func podsObject(p weft.Peer) (*metav1.LabelSelector, *npav1alpha2.NamespacedPod) {
	namespaces := selectorObject(*p.NamespaceSelector)
	if p.PodSelector == nil {
		return &namespaces, nil
	}
	return nil, &npav1alpha2.NamespacedPod{NamespaceSelector: namespaces, PodSelector: selectorObject(*p.PodSelector)}
}

// protocolObjects says a port's name once, which the drawn policy has for each protocol.
func protocolObjects(ports []weft.Port) (list []npav1alpha2.ClusterNetworkPolicyProtocol) {
	for _, p := range ports {
		var out npav1alpha2.ClusterNetworkPolicyProtocol
		var port *npav1alpha2.Port
		switch {
		case p.Name != "":
			out.DestinationNamedPort = p.Name
			if !slices.Contains(list, out) {
				list = append(list, out)
			}
			continue
		case p.EndPort > p.Number:
			port = &npav1alpha2.Port{Range: &npav1alpha2.PortRange{Start: int32(p.Number), End: int32(p.EndPort)}}
		case p.Number != 0:
			port = &npav1alpha2.Port{Number: int32(p.Number)}
		}
		switch p.Protocol {
		case weft.UDP:
			out.UDP = &npav1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
		case weft.SCTP:
			out.SCTP = &npav1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}
		default:
			out.TCP = &npav1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		}
		list = append(list, out)
	}
	return list
}

// asRead is the policy as the agent reads it from the API server.
func asRead(object *npav1alpha2.ClusterNetworkPolicy) (weft.Policy, error) {
	data, err := json.Marshal(object)
	if err != nil {
		return weft.Policy{}, err
	}
	var read cnp.ClusterNetworkPolicy
	if err := json.Unmarshal(data, &read); err != nil {
		return weft.Policy{}, err
	}
	p := kube.ClusterNetworkPolicy(&read)
	return p, p.Check()
}

// clusterEvaluators are kube-network-policies' evaluators of the tiers Admin and Baseline.
func clusterEvaluators(policies []*npav1alpha2.ClusterNetworkPolicy, nodes []weft.Node) (admin,
	baseline api.PolicyEvaluator, err error) {
	// Never started, so no server is asked.
	made := externalversions.NewSharedInformerFactory(&versioned.Clientset{},
		0).Policy().V1alpha2().ClusterNetworkPolicies()
	nodeInformer := informers.NewSharedInformerFactory(&kubernetes.Clientset{}, 0).Core().V1().Nodes()
	var errs []error
	for _, p := range policies {
		errs = append(errs, made.Informer().GetIndexer().Add(p))
	}
	for _, n := range nodes {
		object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels}}
		for _, a := range n.Addrs {
			object.Status.Addresses = append(object.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP,
				Address: a.String()})
		}
		errs = append(errs, nodeInformer.Informer().GetIndexer().Add(object))
	}
	of := func(tier npav1alpha2.Tier) api.PolicyEvaluator {
		return cnpevaluator.NewClusterNetworkPolicy(tier, made, nil, nodeInformer.Lister())
	}
	return of(npav1alpha2.AdminTier), of(npav1alpha2.BaselineTier), errors.Join(errs...)
}

// split are the policies of each kind as objects; policies become what the agent reads of these.
func split(policies []weft.Policy) (cluster []*npav1alpha2.ClusterNetworkPolicy, err error) {
	var errs []error
	for i, p := range policies {
		if p.Tier == model.NetworkPolicyTier {
			continue
		}
		object := clusterObject(p)
		cluster = append(cluster, object)
		if policies[i], err = asRead(object); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.Name, err))
		}
	}
	return cluster, errors.Join(errs...)
}
