package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/pkg/kube/cnp"
	"github.com/weft-cni/weft/pkg/model"
)

// priorities is how many a ClusterNetworkPolicy can have.
const priorities = 1001

// measureTiers measures as many NetworkPolicies and then, on the same node, policies of which a third each is in one of
// the tiers. They select the same pods, and allow the same but the addresses outside, which no ClusterNetworkPolicy's
// ingress can name.
func measureTiers(ctx context.Context, n *node, opt options, r *report) error {
	r.Mix = fmt.Sprintf("%d NetworkPolicies, then as many policies in three tiers, every one about pods of this node, "+
		"over "+
		"%d pods of which %d are local", opt.policies, opt.pods, opt.local)
	if err := n.populate(ctx, opt); err != nil {
		return err
	}
	about := func(i int) int { return localNumber(i % opt.local) }
	without := func(i int) *networkingv1.NetworkPolicy {
		p := aPolicy(fmt.Sprint("policy", i), i, about(i))
		peers := p.Spec.Ingress[0].From
		p.Spec.Ingress[0].From = slices.DeleteFunc(peers,
			func(p networkingv1.NetworkPolicyPeer) bool { return p.IPBlock != nil })
		return p
	}
	networkPolicy := func(i int) (string, apiserver.Object) { return apiserver.NetworkPolicies, without(i) }
	tiered := func(i int) (string, apiserver.Object) {
		tier := model.Tiers[i%len(model.Tiers)]
		if tier == model.NetworkPolicyTier {
			return networkPolicy(i)
		}
		return apiserver.ClusterNetworkPolicies, clusterPolicy(without(i), tier, i/len(model.Tiers)%priorities)
	}
	var cold, processor, more [2]float64
	for k, policy := range []func(int) (string, apiserver.Object){networkPolicy, tiered} {
		objects := map[string][]apiserver.Object{}
		for i := range opt.policies {
			resource, p := policy(i)
			objects[resource] = append(objects[resource], p)
		}
		for _, resource := range []string{apiserver.NetworkPolicies, apiserver.ClusterNetworkPolicies} {
			if err := n.api.Apply(resource, objects[resource]); err != nil { // in place of those before
				return err
			}
		}
		if err := n.empty(ctx); err != nil {
			return err
		}
		first := len(r.Figures)
		if err := n.coldStart(ctx, r, 0, 0); err != nil {
			return err
		}
		cold[k], processor[k] = r.Figures[first].Value, r.Figures[first+1].Value // the first two of coldStart
		first = len(r.Figures)
		if err := n.onePolicyMore(ctx, opt, r, policy); err != nil {
			return err
		}
		more[k] = r.Figures[first].Value
		if err := n.halt(); err != nil {
			return err
		}
	}
	r.number("cold start with three tiers, per cold start with NetworkPolicies", 100*cold[1]/cold[0], "%", 100)
	r.number("processor time of the agent until then, the same", 100*processor[1]/processor[0], "%", 0)
	r.number("one more policy with three tiers, per one with NetworkPolicies", 100*more[1]/more[0], "%", 100)
	return nil
}

// onePolicyMore measures policies that come later.
func (n *node) onePolicyMore(ctx context.Context, opt options, r *report,
	policy func(int) (string, apiserver.Object)) error {
	c, err := n.watch(ctx)
	if err != nil {
		return err
	}
	defer c.stop()
	var all []time.Duration
	most := 0
	for i := range opt.rounds {
		took, flows, _, err := c.after(ctx, func() error {
			resource, p := policy(opt.policies + i)
			return n.api.Put(resource, p)
		})
		if err != nil {
			return fmt.Errorf("one more policy: %w", err)
		}
		all, most = append(all, took), max(most, flows)
	}
	r.times("one more policy, from its write to the switch", all, 0)
	r.number("flows that it changed, at most", float64(most), "", 0)
	return nil
}

// clusterPolicy is a NetworkPolicy's rules in another tier.
func clusterPolicy(p *networkingv1.NetworkPolicy, tier model.Tier, priority int) *cnp.ClusterNetworkPolicy {
	namespace := metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": p.Namespace}}
	out := &cnp.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: p.Name}}
	out.Spec = cnp.Spec{Tier: tier.String(), Priority: int32(priority),
		Subject: cnp.Subject{Pods: &cnp.NamespacedPod{NamespaceSelector: namespace, PodSelector: p.Spec.PodSelector}}}
	for _, rule := range p.Spec.Ingress {
		r := cnp.Rule{Action: model.Accept.String()}
		for _, from := range rule.From {
			pods := cnp.NamespacedPod{NamespaceSelector: namespace, PodSelector: *from.PodSelector}
			if from.NamespaceSelector != nil {
				pods.NamespaceSelector = *from.NamespaceSelector
			}
			r.From = append(r.From, cnp.Peer{Pods: &pods})
		}
		for _, port := range rule.Ports {
			var protocol cnp.Protocol
			if port.Port.StrVal != "" {
				protocol.DestinationNamedPort = port.Port.StrVal
			} else {
				protocol.TCP = &cnp.Ports{DestinationPort: &cnp.Port{Number: int32(port.Port.IntValue())}}
			}
			r.Protocols = append(r.Protocols, protocol)
		}
		out.Spec.Ingress = append(out.Spec.Ingress, r)
	}
	return out
}
