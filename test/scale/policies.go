package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-cni/weft/internal/testing/apiserver"
)

// The cluster with policies: 100 namespaces, each with pods of 20 applications, each namespace one of 50 teams'.
const (
	namespaces   = 100
	applications = 20
	teams        = 50
	blocks       = 50 // of addresses outside the cluster
)

// place is what policies see of a pod's number.
func place(i int) (namespace, application string) {
	return fmt.Sprint("ns", i%namespaces), fmt.Sprint("app", i/namespaces%applications)
}

func podLabels(i int) map[string]string {
	_, application := place(i)
	return map[string]string{"app": application, "tier": "backend", "pod-template-hash": fmt.Sprintf("%x", i%5000)}
}

func remotePod(i int, labels map[string]string) *corev1.Pod {
	namespace, _ := place(i)
	at := 1 + i%otherNodes
	ip := remoteAddr(at, i/otherNodes%220).String()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprint("pod", i), UID: uid("pod", i), Labels: labels,
			CreationTimestamp: metav1.Now()},
		Spec: corev1.PodSpec{NodeName: fmt.Sprint("n", at), Containers: []corev1.Container{container()}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			HostIP: nodeAddr(at).String()},
	}
}

// localNumber is the number of this node's pods among all, which spreads them over namespaces and applications.
func localNumber(i int) int { return i * (otherNodes + 1) }

// aPolicy selects the application of one pod in its namespace and allows, at the port named http and at 8080, another
// application of the namespace, one of a team's namespaces, and a block of addresses.
func aPolicy(name string, i, about int) *networkingv1.NetworkPolicy {
	namespace, application := place(about)
	label := func(key, value string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
	tcp, number, named := corev1.ProtocolTCP, intstr.FromInt32(endpointPort), intstr.FromString("http")
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *label("app", application), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: label("app", fmt.Sprint("app", (about/namespaces+i/500)%applications))},
					{NamespaceSelector: label("team", fmt.Sprint("team", (i+i/100)%teams)), PodSelector: label("app",
						fmt.Sprint("app", (about/namespaces+1)%applications))},
					{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("198.18.%d.0/24", i%blocks),
						Except: []string{fmt.Sprintf("198.18.%d.8/29", i%blocks)}}},
				},
				Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &number}, {Protocol: &tcp, Port: &named}},
			}},
		},
	}
}

func measurePolicies(ctx context.Context, n *node, opt options, r *report) error {
	r.Mix = fmt.Sprintf("%d policies, every one about pods of this node, over %d pods of which %d are local", opt.policies,
		opt.pods, opt.local)
	return n.policies(ctx, opt, r, func(i int) int { return localNumber(i % opt.local) })
}

func measureSpread(ctx context.Context, n *node, opt options, r *report) error {
	r.Mix = fmt.Sprintf("%d policies about all pods alike, over %d pods of which %d are local", opt.policies, opt.pods,
		opt.local)
	return n.policies(ctx, opt, r, func(i int) int { return i })
}

// policies measures a cluster whose policies are about the pods with these numbers.
func (n *node) policies(ctx context.Context, opt options, r *report, about func(int) int) error {
	r.Mix += fmt.Sprintf(". %d namespaces of %d applications; a policy selects one application and allows at two ports "+
		"another of its namespace, one of a team's two namespaces, and one of %d blocks with an exception", namespaces,
		applications, blocks)
	if err := n.populate(ctx, opt); err != nil {
		return err
	}
	for i := range opt.policies {
		if err := n.api.Put(apiserver.NetworkPolicies, aPolicy(fmt.Sprint("policy", i), i, about(i))); err != nil {
			return err
		}
	}
	if err := n.empty(ctx); err != nil {
		return err
	}
	if err := n.coldStart(ctx, r, 1300*time.Millisecond, 200); err != nil {
		return err
	}
	if err := n.changePolicies(ctx, opt, r); err != nil {
		return err
	}
	return n.restart(ctx, r, 200)
}

// populate fills in namespaces and pods, and leaves the node without an agent.
func (n *node) populate(ctx context.Context, opt options) error {
	if err := n.addNamespaces(); err != nil {
		return err
	}
	if _, err := n.start(ctx); err != nil {
		return err
	}
	var local []*corev1.Pod
	ours := map[int]bool{}
	for i := range opt.local {
		number := localNumber(i)
		ours[number] = true
		namespace, _ := place(number)
		local = append(local, localPod(namespace, fmt.Sprint("pod", number), podLabels(number)))
	}
	if err := n.attach(local); err != nil {
		return err
	}
	if err := n.halt(); err != nil {
		return err
	}
	for i := range opt.pods {
		if !ours[i] {
			if err := n.api.Put(apiserver.Pods, remotePod(i, podLabels(i))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *node) addNamespaces() error {
	var all []apiserver.Object
	for i := range namespaces {
		name := fmt.Sprint("ns", i)
		all = append(all, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			"kubernetes.io/metadata.name": name, "team": fmt.Sprint("team", i%teams)}}})
	}
	return n.api.Apply(apiserver.Namespaces, all)
}

// moreNumber is the number of a policy that comes later.
func moreNumber(opt options, i int) int { return opt.policies + 37*i }

// changePolicies measures one more policy, and a pod whose labels change.
func (n *node) changePolicies(ctx context.Context, opt options, r *report) error {
	c, err := n.watch(ctx)
	if err != nil {
		return err
	}
	defer c.stop()
	var added, labelled []time.Duration
	var flowsAdded, flowsLabelled int
	for i := range opt.rounds {
		took, flows, _, err := c.after(ctx, func() error {
			return n.api.Put(apiserver.NetworkPolicies, aPolicy(fmt.Sprint("more", i), moreNumber(opt, i),
				localNumber(i%opt.local)))
		})
		if err != nil {
			return fmt.Errorf("one more policy: %w", err)
		}
		added, flowsAdded = append(added, took), max(flowsAdded, flows)
	}
	for i := range opt.rounds {
		// A pod of another node becomes one that the policy of the same round, above, allows.
		number := localNumber(i%opt.local) + namespaces
		application := fmt.Sprint("app", (localNumber(i%opt.local)/namespaces+moreNumber(opt, i)/500)%applications)
		for podLabels(number)["app"] == application || number%(otherNodes+1) == 0 {
			number += namespaces
		}
		labels := podLabels(number)
		labels["app"] = application
		took, flows, _, err := c.after(ctx, func() error { return n.api.Put(apiserver.Pods, remotePod(number, labels)) })
		if err != nil {
			return fmt.Errorf("one pod's labels: %w", err)
		}
		labelled, flowsLabelled = append(labelled, took), max(flowsLabelled, flows)
	}
	r.times("one more policy, from its write to the switch", added, 20*time.Millisecond)
	r.number("flows that it changed, at most", float64(flowsAdded), "", 0)
	r.times("one pod's change of application, from its write to the switch", labelled, 20*time.Millisecond)
	r.number("flows that it changed, at most", float64(flowsLabelled), "", 0)
	return nil
}

// measureSquare is one policy that lets 200 pods of other nodes reach 200 of this one.
func measureSquare(ctx context.Context, n *node, _ options, r *report) error {
	const side = 200
	r.Mix = fmt.Sprintf("one policy that lets %d pods reach %d of this node", side, side)
	if err := n.addNamespaces(); err != nil {
		return err
	}
	if _, err := n.start(ctx); err != nil {
		return err
	}
	var local []*corev1.Pod
	for i := range side {
		local = append(local, localPod("ns0", fmt.Sprint("to", i), map[string]string{"side": "to"}))
	}
	if err := n.attach(local); err != nil {
		return err
	}
	c, err := n.watch(ctx)
	if err != nil {
		return err
	}
	defer c.stop()
	for i := range side {
		p := remotePod(i, map[string]string{"side": "from"})
		p.Namespace = "ns0"
		if err := n.api.Put(apiserver.Pods, p); err != nil {
			return err
		}
	}
	c.count(ctx, time.Second)
	p := aPolicy("square", 0, 0)
	p.Spec.PodSelector = metav1.LabelSelector{MatchLabels: map[string]string{"side": "to"}}
	p.Spec.Ingress[0].From = []networkingv1.NetworkPolicyPeer{
		{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"side": "from"}}}}
	took, flows, _, err := c.after(ctx, func() error { return n.api.Put(apiserver.NetworkPolicies, p) })
	if err != nil {
		return err
	}
	r.number("flows of the policy", float64(flows), "", 1000)
	r.time("from its write to the switch", took, 0)
	return nil
}
