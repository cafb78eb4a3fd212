package manifest

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"runtime"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// maxPods bounds what one workload may ask for: a /24 per node.
const maxPods = 1000

// workload is what pods are made from.
type workload struct {
	place    place
	kind     string
	meta     metav1.ObjectMeta
	template corev1.PodTemplateSpec
	replicas int
	// selector is a Deployment's, StatefulSet's or DaemonSet's.
	selector labels.Selector
	// first is the number of the first pod.
	first int
	// conditions and phase are what a Pod says of its status.
	conditions []corev1.PodCondition
	phase      corev1.PodPhase
	// everyNode asks for one pod on each node that the template selects.
	everyNode bool
}

// at is where the pods' spec is.
func (w workload) at() place {
	if w.kind == "Pod" {
		return w.place.at("spec")
	}
	return w.place.at("spec.template.spec")
}

// workload takes in a Deployment, StatefulSet or DaemonSet.
func (l *loader) workload(w workload, selector *metav1.LabelSelector, replicas *int32) {
	w.replicas = 1
	if replicas != nil {
		w.replicas = int(*replicas)
	}
	if w.replicas < 0 || w.replicas > maxPods {
		l.wrong(w.place.at("spec.replicas"), "%d is not allowed; allowed: 0 to %d", w.replicas, maxPods)
		return
	}
	if selector == nil {
		l.wrong(w.place.at("spec"), "selector is missing")
	} else if s, ok := l.selector(w.place.at("spec.selector"), selector); ok {
		w.selector = s
		if !s.Matches(labels.Set(w.template.Labels)) {
			l.wrong(w.place.at("spec.selector"), "%s does not match the labels of the template, %s", s,
				cmp.Or(labels.Set(w.template.Labels).String(), "of which there are none"))
		}
	}
	l.labels(w.place.at("spec.template.metadata.labels"), w.template.Labels)
	l.podSpec(w.at(), &w.template.Spec)
	l.workloads = append(l.workloads, w)
}

// makes tells whether a pod that a controller has made is one of the workload's.
func (w workload) makes(pod *corev1.Pod) bool {
	return w.selector != nil && w.meta.Namespace == cmp.Or(pod.Namespace, metav1.NamespaceDefault) &&
		w.selector.Matches(labels.Set(pod.Labels))
}

// expand makes a workload's pods. Their names, and with the same nodes their places, depend on the workload alone, so
// an edit of one does not move the pods of another.
func (l *loader) expand(w workload) {
	nodes := l.nodesFor(w)
	if len(nodes) == 0 {
		return
	}
	if w.kind == "Pod" {
		l.addPod(w, w.meta.Name, nodes[w.turn()%len(nodes)])
		return
	}
	if w.everyNode {
		for _, node := range nodes {
			l.addPod(w, w.meta.Name+"-"+node, node)
		}
		return
	}
	for i := range w.replicas {
		l.addPod(w, fmt.Sprintf("%s-%d", w.meta.Name, w.first+i), nodes[(w.turn()+i)%len(nodes)])
	}
}

// turn is which node a workload begins with, so that not all begin with the first. Those that name the same node of a
// cluster begin with the same.
func (w workload) turn() int {
	h := fnv.New32a()
	h.Write([]byte(cmp.Or(w.template.Spec.NodeName, w.meta.Namespace+"/"+w.meta.Name)))
	return int(h.Sum32() >> 1)
}

// nodesFor lists the nodes that a workload's pods may be on, in order.
func (l *loader) nodesFor(w workload) []string {
	spec := w.template.Spec
	var nodes []string
	for _, n := range l.set.Nodes {
		if labels.SelectorFromSet(spec.NodeSelector).Matches(labels.Set(n.Labels)) && (spec.NodeName == "" ||
			spec.NodeName == n.Name) {
			nodes = append(nodes, n.Name)
		}
	}
	if len(nodes) > 0 {
		return nodes
	}
	var all []string
	for _, n := range l.set.Nodes {
		all = append(all, n.Name)
	}
	at, text := w.at().at("nodeSelector"), fmt.Sprintf("no node has these labels; there are the nodes %v", all)
	if spec.NodeName != "" && !slices.Contains(all, spec.NodeName) {
		at, text = w.at().at("nodeName"), fmt.Sprintf("there is no node %q; there are %v", spec.NodeName, all)
	}
	if l.described {
		l.wrong(at, "%s", text)
		return nil
	}
	l.warn(at, "%s, any of which may be taken", text)
	return all
}

func (l *loader) addPod(w workload, name, node string) {
	if w.kind != "Pod" && !l.claim(w.place.at("metadata.name"), "Pod", w.meta.Namespace, name) {
		return
	}
	if err := checkName(name); err != nil {
		l.wrong(w.place.at("metadata.name"), "gives the pod name %q: %v", name, err)
		return
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.meta.Namespace, Name: name, Labels: maps.Clone(w.template.Labels),
			Annotations: maps.Clone(w.template.Annotations)},
		Spec:   *w.template.Spec.DeepCopy(),
		Status: corev1.PodStatus{Conditions: w.conditions, Phase: w.phase},
	}
	pod.Spec.NodeName = node
	if w.kind == "Pod" {
		pod.DeletionTimestamp = w.meta.DeletionTimestamp
	}
	if pod.Spec.HostNetwork {
		for _, c := range pod.Spec.Containers {
			for _, port := range c.Ports {
				l.claim(w.at().at("containers"), fmt.Sprintf("port %d/%s of node", port.ContainerPort, cmp.Or(port.Protocol,
					corev1.ProtocolTCP)), "", node)
			}
		}
	}
	if w.kind == "StatefulSet" {
		if pod.Labels == nil {
			pod.Labels = map[string]string{}
		}
		pod.Labels["statefulset.kubernetes.io/pod-name"] = name
	}
	l.set.Pods = append(l.set.Pods, pod)
}

// finishNodes makes the nodes that no manifest describes, and gives all of them the label that every node has.
func (l *loader) finishNodes() {
	l.described = len(l.set.Nodes) > 0
	if described := len(l.set.Nodes); described > 0 && l.opt.Nodes != 0 && l.opt.Nodes != described {
		l.problems = append(l.problems, Problem{File: "--nodes",
			Text: fmt.Sprintf("%d asked for, but the manifests describe %d; leave the option out", l.opt.Nodes, described)})
	}
	if len(l.set.Nodes) == 0 {
		count := l.opt.Nodes
		if count == 0 {
			count = DefaultNodes
		}
		for i := range count {
			l.set.Nodes = append(l.set.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node%d", i+1)}})
		}
	}
	if n := len(l.set.Nodes); n > MaxNodes {
		l.problems = append(l.problems, Problem{File: "--nodes", Text: fmt.Sprintf("%d nodes; a lab has at most %d", n,
			MaxNodes)})
	}
	for _, n := range l.set.Nodes {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[corev1.LabelHostname] = n.Name
		for key, value := range map[string]string{corev1.LabelOSStable: runtime.GOOS,
			corev1.LabelArchStable: runtime.GOARCH} {
			if n.Labels[key] == "" {
				n.Labels[key] = value
			}
		}
	}
}

// finishNamespaces makes the namespaces that objects are in and no manifest describes.
func (l *loader) finishNamespaces() {
	have := map[string]bool{}
	for _, n := range l.set.Namespaces {
		have[n.Name] = true
	}
	need := func(name string) {
		if !have[name] {
			have[name] = true
			l.set.Namespaces = append(l.set.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	}
	need(metav1.NamespaceDefault)
	for _, p := range l.set.Pods {
		need(p.Namespace)
	}
	for _, s := range l.set.Services {
		need(s.Namespace)
	}
	for _, s := range l.set.Slices {
		need(s.Namespace)
	}
	for _, p := range l.set.Policies {
		need(p.Namespace)
	}
	for _, n := range l.set.Namespaces {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[corev1.LabelMetadataName] = n.Name
	}
}
