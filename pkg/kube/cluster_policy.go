package kube

import (
	"errors"
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/pkg/kube/cnp"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
)

// ClusterNetworkPolicy is what a ClusterNetworkPolicy is to Weft. What cannot be understood, or is not supported, is
// said in the Err of the policy or of the rule, which then fails closed.
func ClusterNetworkPolicy(object *cnp.ClusterNetworkPolicy) policy.Policy {
	p := policy.Policy{Name: object.Name, Tier: model.AdminTier, Priority: object.Spec.Priority}
	annotate(&p, object.Annotations)
	var bad []error
	switch object.Spec.Tier {
	case model.AdminTier.String():
	case model.BaselineTier.String():
		p.Tier = model.BaselineTier
	default:
		bad = append(bad, fmt.Errorf("unknown tier %q", object.Spec.Tier))
	}
	namespaces, pods, err := subjectOf(object.Spec.Subject)
	if err != nil {
		bad = append(bad, fmt.Errorf("subject: %w", err))
	}
	p.NamespaceSelector, p.PodSelector = selectorOf(namespaces), selectorOf(pods)
	for _, r := range object.Spec.Ingress {
		p.Ingress = append(p.Ingress, clusterRule(r, r.From))
	}
	for _, r := range object.Spec.Egress {
		p.Egress = append(p.Egress, clusterRule(r, r.To))
	}
	if err := errors.Join(bad...); err != nil {
		p.Err = err.Error()
	}
	return p
}

// subjectOf selects all pods when the subject is not understood: the policy fails closed for them.
func subjectOf(s cnp.Subject) (namespaces, pods metav1.LabelSelector, err error) {
	switch {
	case fields(s) != 1:
		return namespaces, pods, errors.New("not exactly one of namespaces and pods")
	case s.Namespaces != nil:
		return *s.Namespaces, pods, nil
	}
	return s.Pods.NamespaceSelector, s.Pods.PodSelector, nil
}

func clusterRule(object cnp.Rule, peers []cnp.Peer) policy.Rule {
	var r policy.Rule
	var bad []error
	switch object.Action {
	case model.Accept.String():
	case model.Deny.String():
		r.Verdict = model.Deny
	case model.Pass.String():
		r.Verdict = model.Pass
	default:
		r.Verdict = model.Deny
		bad = append(bad, fmt.Errorf("unknown action %q", object.Action))
	}
	for i, peer := range peers {
		list, err := clusterPeers(peer)
		if err != nil {
			bad = append(bad, fmt.Errorf("peer %d: %w", i, err))
		}
		r.Peers = append(r.Peers, list...)
	}
	for i, protocol := range object.Protocols {
		list, err := clusterPorts(protocol)
		if err != nil {
			bad = append(bad, fmt.Errorf("protocols[%d]: %w", i, err))
		}
		r.Ports = append(r.Ports, list...)
		if protocol.DestinationNamedPort != "" && !onlyPods(peers) {
			bad = append(bad, fmt.Errorf("protocols[%d]: only pods have ports with names", i))
		}
	}
	if err := errors.Join(bad...); err != nil {
		r.Err = err.Error()
	}
	return r
}

func onlyPods(peers []cnp.Peer) bool {
	for _, p := range peers {
		if p.Namespaces == nil && p.Pods == nil {
			return false
		}
	}
	return true
}

func clusterPeers(p cnp.Peer) ([]policy.Peer, error) {
	switch {
	case fields(p) != 1:
		return nil, errors.New("not exactly one field that is known")
	case p.Namespaces != nil:
		s := selectorOf(*p.Namespaces)
		return []policy.Peer{{NamespaceSelector: &s}}, nil
	case p.Pods != nil:
		namespaces, pods := selectorOf(p.Pods.NamespaceSelector), selectorOf(p.Pods.PodSelector)
		return []policy.Peer{{NamespaceSelector: &namespaces, PodSelector: &pods}}, nil
	case p.Nodes != nil:
		s := selectorOf(*p.Nodes)
		return []policy.Peer{{NodeSelector: &s}}, nil
	case len(p.DomainNames) > 0:
		return domainPeers(p.DomainNames)
	}
	var list []policy.Peer
	for _, text := range p.Networks {
		cidr, err := parseBlock(text)
		if err != nil {
			return nil, fmt.Errorf("networks: %w", err)
		}
		list = append(list, policy.Peer{IPBlock: &policy.IPBlock{CIDR: cidr}})
	}
	return list, nil
}

func domainPeers(names []string) (list []policy.Peer, err error) {
	for _, text := range names {
		domain, err := policy.ParseDomain(text)
		if err != nil {
			return nil, fmt.Errorf("domainNames: %w", err)
		}
		list = append(list, policy.Peer{Domain: domain})
	}
	return list, nil
}

// clusterPorts are several where a port's name is that of any protocol.
func clusterPorts(p cnp.Protocol) ([]policy.Port, error) {
	if fields(p) != 1 {
		return nil, errors.New("not exactly one field that is known")
	}
	var list []policy.Port
	for _, of := range []struct {
		protocol policy.Protocol
		ports    *cnp.Ports
	}{{policy.TCP, p.TCP}, {policy.UDP, p.UDP}, {policy.SCTP, p.SCTP}} {
		port := policy.Port{Protocol: of.protocol, Name: p.DestinationNamedPort}
		if port.Name == "" {
			if of.ports == nil {
				continue
			}
			if err := setNumbers(&port, of.ports.DestinationPort); err != nil {
				return nil, err
			}
		}
		list = append(list, port)
	}
	return list, nil
}

func setNumbers(port *policy.Port, of *cnp.Port) error {
	if of == nil {
		return nil // all of the protocol
	}
	if fields(*of) != 1 {
		return errors.New("destinationPort: not exactly one field that is known")
	}
	first, last := of.Number, int32(0)
	if of.Range != nil {
		first, last = of.Range.Start, of.Range.End
		if first >= last {
			return fmt.Errorf("destinationPort: the range begins at %d and ends at %d", first, last)
		}
	}
	var valid, ends bool
	port.Number, valid = portNumber(first)
	port.EndPort, ends = portNumber(last)
	if !valid || last != 0 && !ends {
		return fmt.Errorf("destinationPort: invalid port %d or %d", first, last)
	}
	return nil
}

// fields is how many fields of a value are set.
func fields(of any) int {
	n := 0
	for v, i := reflect.ValueOf(of), 0; i < v.NumField(); i++ {
		if f := v.Field(i); !f.IsZero() && (f.Kind() != reflect.Slice || f.Len() > 0) {
			n++
		}
	}
	return n
}

// clusterSubject returns what tells whether a ClusterNetworkPolicy selects a pod, or nil when it is not known.
func (w *Watcher) clusterSubject(name string) func(p *pod) bool {
	w.cluster.mu.Lock()
	store := w.cluster.store
	w.cluster.mu.Unlock()
	if store == nil {
		return nil
	}
	obj, found, err := store.GetByKey(name)
	object, ok := obj.(*cnp.ClusterNetworkPolicy)
	if err != nil || !found || !ok {
		return nil
	}
	subject := ClusterNetworkPolicy(object)
	return func(p *pod) bool {
		obj, found, err := w.namespaces.GetStore().GetByKey(p.Namespace)
		n, ok := obj.(*corev1.Namespace)
		return err == nil && found && ok && subject.NamespaceSelector.Matches(n.Labels) &&
			subject.PodSelector.Matches(p.pod.Labels)
	}
}
