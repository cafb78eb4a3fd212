package kube

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-cni/weft/pkg/kube/cnp"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/state"
)

// LogAnnotation on a NetworkPolicy, or on the namespace for all of its policies, asks with "true" for a sample of the
// packets that the policy decides about to be logged.
const LogAnnotation = "weft.dev/log-policy"

// StagedAnnotation on a NetworkPolicy or ClusterNetworkPolicy makes it staged with "true": it has no effect, and what
// it would decide is counted and logged.
const StagedAnnotation = "weft.dev/staged"

// localIndex is the informer's index of this node's pods.
const localIndex = "local"

// followPolicies registers what NetworkPolicies need: all pods and namespaces, and the policies.
func (w *Watcher) followPolicies() error {
	core, policies := w.client.CoreV1(), w.client.NetworkingV1().NetworkPolicies("")
	w.pods = informer(w, "pods", &corev1.Pod{}, "", core.Pods("").List, core.Pods("").Watch)
	w.namespaces = informer(w, "namespaces", &corev1.Namespace{}, "", core.Namespaces().List, core.Namespaces().Watch)
	w.policies = informer(w, "networkpolicies", &networkingv1.NetworkPolicy{}, "", policies.List, policies.Watch)
	indexed := w.pods.AddIndexers(cache.Indexers{localIndex: func(obj any) ([]string, error) {
		if p, ok := obj.(*pod); ok && p.pod.Node == w.node {
			return []string{w.node}, nil
		}
		return nil, nil
	}})
	handled, err := handle("pods", w.pods, trimPod, func(obj any, first bool) {
		if p, ok := obj.(*pod); ok {
			w.gate.setPod(p, first)
		}
	}, func(key string) {
		namespace, name, _ := strings.Cut(key, "/")
		w.gate.deletePod(namespace, name)
	})
	w.run(w.pods, handled)
	return errors.Join(indexed, err,
		w.follow("namespaces", w.namespaces, trimNamespace, w.namespaceChanged, func(name string) {
			w.emit(state.DeleteNamespace{Name: name})
			w.gate.setNamespace(name, false)
		}),
		w.follow("networkpolicies", w.policies, trimPolicy, w.policyChanged, func(key string) {
			namespace, name, _ := strings.Cut(key, "/")
			w.emit(state.DeletePolicy{ID: model.NetworkPolicy(namespace, name)})
			w.gate.deletePolicy(model.NetworkPolicy(namespace, name))
		}),
	)
}

func (w *Watcher) namespaceChanged(obj any) {
	if n, ok := obj.(*corev1.Namespace); ok {
		w.hand(n)
		w.gate.setNamespace(n.Name, true)
	}
}

// A policy that cannot be understood is reported by the nodes whose pods it is about.
func (w *Watcher) policyChanged(obj any) {
	if p, ok := obj.(*networkingv1.NetworkPolicy); ok {
		w.hand(p)
		w.gate.setPolicy(model.NetworkPolicy(p.Namespace, p.Name), p.ResourceVersion)
	}
}

// PolicyNodes are the nodes with pods that a policy selects, in no order; none for one that is not known. It looks at
// all pods of the cluster.
func (w *Watcher) PolicyNodes(id model.PolicyID) []string {
	var selects func(p *pod) bool
	if id.Kind == model.KindClusterPolicy {
		selects = w.clusterSubject(id.Name)
	} else {
		obj, found, err := w.policies.GetStore().GetByKey(id.String())
		if object, ok := obj.(*networkingv1.NetworkPolicy); err == nil && found && ok {
			selector := selectorOf(object.Spec.PodSelector)
			selects = func(p *pod) bool { return p.Namespace == id.Namespace && selector.Matches(p.pod.Labels) }
		}
	}
	if selects == nil {
		return nil
	}
	nodes := map[string]bool{}
	for _, obj := range w.pods.GetStore().List() {
		if p, ok := obj.(*pod); ok && p.pod.Node != "" && !p.pod.HostNetwork && selects(p) {
			nodes[p.pod.Node] = true
		}
	}
	return slices.Collect(maps.Keys(nodes))
}

// Pods are the pods that the API server knows on this node.
func (w *Watcher) Pods() []model.Pod {
	objects, err := w.pods.GetIndexer().ByIndex(localIndex, w.node)
	if err != nil {
		w.log.Error("this node's pods cannot be listed", "err", err) // the index is there from the start
	}
	pods := make([]model.Pod, 0, len(objects))
	for _, obj := range objects {
		if p, ok := obj.(*pod); ok {
			pods = append(pods, model.Pod{
				PodRef:      model.PodRef{Namespace: p.Namespace, Name: p.Name, UID: p.pod.UID},
				HostNetwork: p.pod.HostNetwork, Phase: p.phase, HostPorts: p.hostPorts,
			})
		}
	}
	return pods
}

// AllPods calls visit with every pod of the cluster, as policies see it, until that returns false.
func (w *Watcher) AllPods(visit func(policy.Pod) bool) {
	for _, obj := range w.pods.GetStore().List() {
		if p, ok := obj.(*pod); ok && !visit(p.pod) {
			return
		}
	}
}

// PolicyObjects are the objects that policies are evaluated by, as they were received last: this node's pods, and all
// namespaces, nodes and policies. Nodes is empty.
func (w *Watcher) PolicyObjects() policy.Cluster {
	c := policy.Cluster{Namespaces: map[string]map[string]string{}}
	objects, err := w.pods.GetIndexer().ByIndex(localIndex, w.node)
	if err != nil {
		w.log.Error("this node's pods cannot be listed", "err", err) // the index is there from the start
	}
	for _, obj := range objects {
		if p, ok := obj.(*pod); ok {
			c.Pods = append(c.Pods, p.pod)
		}
	}
	for _, obj := range w.namespaces.GetStore().List() {
		if n, ok := obj.(*corev1.Namespace); ok {
			c.Namespaces[n.Name] = n.Labels
		}
	}
	for _, obj := range w.nodes.GetStore().List() {
		if n, ok := obj.(*corev1.Node); ok {
			c.PeerNodes = append(c.PeerNodes, PeerNode(n))
		}
	}
	for _, obj := range append(w.policies.GetStore().List(), w.cluster.objects()...) {
		switch p := obj.(type) {
		case *networkingv1.NetworkPolicy:
			c.Policies = append(c.Policies, NetworkPolicy(p))
		case *cnp.ClusterNetworkPolicy:
			c.Policies = append(c.Policies, ClusterNetworkPolicy(p))
		}
	}
	slices.SortFunc(c.Pods, func(a, b policy.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(c.PeerNodes, func(a, b policy.Node) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Policies, func(a, b policy.Policy) int { return a.ID().Compare(b.ID()) })
	return c
}

// pod is what the informer keeps of a Pod: on a large cluster pods are most of what an agent holds.
type pod struct {
	metav1.ObjectMeta
	pod       policy.Pod
	phase     string
	hostPorts []model.HostPort
}

// sameAs tells an update that changes nothing for policies.
func (p *pod) sameAs(old any) bool {
	before, ok := old.(*pod)
	return ok && before.pod.Equal(p.pod)
}

// trimPod also makes equal strings one: pods that one template made have most of their labels in common.
func trimPod(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	out := &pod{pod: Pod(p), phase: one(string(p.Status.Phase)), hostPorts: HostPorts(p)}
	out.ObjectMeta = metav1.ObjectMeta{Namespace: out.pod.Namespace, Name: out.pod.Name,
		ResourceVersion: p.ResourceVersion}
	return out, nil
}

func one(s string) string { return unique.Make(s).Value() }

// Pod is what policies see of a Pod.
func Pod(object *corev1.Pod) policy.Pod {
	p := policy.Pod{
		Namespace: one(object.Namespace), Name: strings.Clone(object.Name), UID: string(object.UID), Node: one(
			object.Spec.NodeName),
		HostNetwork: object.Spec.HostNetwork,
		Done:        object.Status.Phase == corev1.PodSucceeded || object.Status.Phase == corev1.PodFailed,
		Terminating: object.DeletionTimestamp != nil,
	}
	p.Created = seconds(object.CreationTimestamp)
	// A static pod runs under the UID of its file; the pod in the API, its mirror, has another.
	if uid, mirror := object.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		p.UID = uid
	}
	if len(object.Labels) > 0 {
		p.Labels = make(map[string]string, len(object.Labels))
		for key, value := range object.Labels {
			p.Labels[one(key)] = one(value)
		}
	}
	ips := object.Status.PodIPs
	if len(ips) == 0 && object.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: object.Status.PodIP}}
	}
	for _, ip := range ips {
		if addr, err := netip.ParseAddr(ip.IP); err == nil && addr.Zone() == "" { // the kubelet writes none but addresses
			p.Addrs = append(p.Addrs, addr.Unmap())
		}
	}
	for c := range running(object) {
		p.Ports = appendPorts(p.Ports, c)
	}
	return p
}

// running are the containers that run as long as the pod does.
func running(object *corev1.Pod) iter.Seq[corev1.Container] {
	return func(yield func(corev1.Container) bool) {
		for _, c := range object.Spec.InitContainers {
			sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
			if sidecar && !yield(c) {
				return
			}
		}
		for _, c := range object.Spec.Containers {
			if !yield(c) {
				return
			}
		}
	}
}

// HostPorts are the ports of its node that lead to a pod. Those that no API server lets through are left out.
func HostPorts(object *corev1.Pod) []model.HostPort {
	if object.Spec.HostNetwork {
		return nil
	}
	var list []model.HostPort
	for c := range running(object) {
		for _, port := range c.Ports {
			number, ok := portNumber(port.HostPort)
			to, valid := portNumber(port.ContainerPort)
			protocol, known := protocolOf(port.Protocol)
			if !ok || !valid || !known {
				continue
			}
			p := model.HostPort{Protocol: protocol, Port: number, ContainerPort: to}
			if port.HostIP != "" {
				var err error
				if p.Addr, err = parseAddr(port.HostIP); err != nil {
					continue
				}
			}
			list = append(list, p)
		}
	}
	return list
}

// appendPorts takes a container's ports that have names.
func appendPorts(to []policy.ContainerPort, c corev1.Container) []policy.ContainerPort {
	for _, port := range c.Ports {
		number, ok := portNumber(port.ContainerPort)
		if !ok || port.Name == "" {
			continue
		}
		protocol := policy.TCP
		if port.Protocol != "" {
			protocol = policy.Protocol(one(string(port.Protocol)))
		}
		to = append(to, policy.ContainerPort{Name: one(port.Name), Protocol: protocol, Number: number})
	}
	return to
}

func trimNamespace(obj any) (any, error) {
	n, ok := obj.(*corev1.Namespace)
	if !ok {
		return obj, nil
	}
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n.Name, ResourceVersion: n.ResourceVersion,
		Labels: n.Labels, Annotations: kept(n.Annotations, LogAnnotation)}}, nil
}

func trimPolicy(obj any) (any, error) {
	p, ok := obj.(*networkingv1.NetworkPolicy)
	if !ok {
		return obj, nil
	}
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, ResourceVersion: p.ResourceVersion,
			Annotations: kept(p.Annotations, LogAnnotation, StagedAnnotation)},
		Spec: p.Spec,
	}, nil
}

// kept are some of an object's annotations.
func kept(all map[string]string, keys ...string) map[string]string {
	var some map[string]string
	for _, key := range keys {
		if value, ok := all[key]; ok {
			if some == nil {
				some = map[string]string{}
			}
			some[key] = value
		}
	}
	return some
}

// annotate completes a policy with what its annotations ask for.
func annotate(p *policy.Policy, annotations map[string]string) {
	p.Log = annotations[LogAnnotation] == "true"
	staged, ok := annotations[StagedAnnotation]
	switch {
	case staged == "true":
		p.Staged = true
	case ok && staged != "false":
		p.Warning = fmt.Sprintf("annotation %s: invalid value %.40q; allowed: true, false; the policy is enforced",
			StagedAnnotation, staged)
	}
}

// NetworkPolicy is what policies are to Weft. What cannot be read of it is said in its Err, so that it closes and does
// not vanish.
func NetworkPolicy(object *networkingv1.NetworkPolicy) policy.Policy {
	p := policy.Policy{Namespace: object.Namespace, Name: object.Name, PodSelector: selectorOf(object.Spec.PodSelector)}
	annotate(&p, object.Annotations)
	var bad []error
	for _, t := range object.Spec.PolicyTypes {
		p.Types = append(p.Types, policy.Direction(t))
	}
	for i, rule := range object.Spec.Ingress {
		r, err := ruleOf(rule.From, rule.Ports)
		if err != nil {
			bad = append(bad, fmt.Errorf("ingress[%d]: %w", i, err))
		}
		p.Ingress = append(p.Ingress, r)
	}
	for i, rule := range object.Spec.Egress {
		r, err := ruleOf(rule.To, rule.Ports)
		if err != nil {
			bad = append(bad, fmt.Errorf("egress[%d]: %w", i, err))
		}
		p.Egress = append(p.Egress, r)
	}
	if err := errors.Join(bad...); err != nil {
		p.Err = err.Error()
	}
	return p
}

func ruleOf(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) (policy.Rule, error) {
	var r policy.Rule
	var bad []error
	for _, peer := range peers {
		var to policy.Peer
		if peer.PodSelector != nil {
			s := selectorOf(*peer.PodSelector)
			to.PodSelector = &s
		}
		if peer.NamespaceSelector != nil {
			s := selectorOf(*peer.NamespaceSelector)
			to.NamespaceSelector = &s
		}
		if peer.IPBlock != nil {
			block, err := blockOf(*peer.IPBlock)
			if err != nil {
				bad = append(bad, err)
			}
			to.IPBlock = &block
		}
		r.Peers = append(r.Peers, to)
	}
	for _, port := range ports {
		to, err := portOf(port)
		if err != nil {
			bad = append(bad, err)
		}
		r.Ports = append(r.Ports, to)
	}
	return r, errors.Join(bad...)
}

func portOf(port networkingv1.NetworkPolicyPort) (policy.Port, error) {
	var p policy.Port
	if port.Protocol != nil {
		p.Protocol = policy.Protocol(*port.Protocol)
	}
	var ok bool
	switch {
	case port.Port == nil:
	case port.Port.Type == intstr.String && port.Port.StrVal == "":
		return p, errors.New("ports: a port's name is empty") // and not all ports
	case port.Port.Type == intstr.String:
		p.Name = port.Port.StrVal
	default:
		if p.Number, ok = portNumber(port.Port.IntVal); !ok {
			return p, fmt.Errorf("ports: invalid port %d", port.Port.IntVal)
		}
	}
	if port.EndPort != nil {
		if p.EndPort, ok = portNumber(*port.EndPort); !ok {
			return p, fmt.Errorf("ports: invalid endPort %d", *port.EndPort)
		}
	}
	return p, nil
}

func blockOf(b networkingv1.IPBlock) (policy.IPBlock, error) {
	var out policy.IPBlock
	var err error
	if out.CIDR, err = parseBlock(b.CIDR); err != nil {
		return out, fmt.Errorf("ipBlock: %w", err)
	}
	for _, text := range b.Except {
		except, err := parseBlock(text)
		if err != nil {
			return out, fmt.Errorf("ipBlock: except: %w", err)
		}
		out.Except = append(out.Except, except)
	}
	return out, nil
}

// parseBlock reads a range as the API server does, which accepts, in policies from before it was strict, leading zeros
// (010.0.0.0 is 10.0.0.0), addresses inside a range, and IPv4 in IPv6's clothes.
func parseBlock(text string) (netip.Prefix, error) {
	addr, bits, ok := strings.Cut(text, "/")
	if parts := strings.Split(addr, "."); ok && len(parts) == 4 {
		for i, part := range parts {
			if n, err := strconv.ParseUint(part, 10, 8); err == nil {
				parts[i] = strconv.FormatUint(n, 10)
			}
		}
		text = strings.Join(parts, ".") + "/" + bits
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, err
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p, fmt.Errorf("%s is wider than all of IPv4", text)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

func selectorOf(s metav1.LabelSelector) policy.Selector {
	out := policy.Selector{MatchLabels: s.MatchLabels}
	for _, r := range s.MatchExpressions {
		out.MatchExpressions = append(out.MatchExpressions, policy.Requirement{Key: r.Key,
			Operator: policy.Operator(r.Operator), Values: r.Values})
	}
	return out
}
