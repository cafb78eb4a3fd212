package manifest

import (
	stdjson "encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
)

// kinds maps apiVersion and kind to what takes such an object in.
var kinds = map[string]func(l *loader, p place){
	"v1 Namespace":                       (*loader).namespace,
	"v1 Node":                            (*loader).node,
	"v1 Pod":                             (*loader).pod,
	"v1 Service":                         (*loader).service,
	"apps/v1 Deployment":                 (*loader).deployment,
	"apps/v1 StatefulSet":                (*loader).statefulSet,
	"apps/v1 DaemonSet":                  (*loader).daemonSet,
	"networking.k8s.io/v1 NetworkPolicy": (*loader).policy,
	"discovery.k8s.io/v1 EndpointSlice":  (*loader).endpointSlice,
}

// ignored are kinds that often stand beside the others and mean nothing to a network.
var ignored = []string{
	"v1 ConfigMap", "v1 Secret", "v1 ServiceAccount", "v1 PersistentVolumeClaim", "v1 PersistentVolume", "v1 LimitRange",
	"v1 ResourceQuota",
	"rbac.authorization.k8s.io/v1 Role", "rbac.authorization.k8s.io/v1 RoleBinding",
	"rbac.authorization.k8s.io/v1 ClusterRole",
	"rbac.authorization.k8s.io/v1 ClusterRoleBinding", "policy/v1 PodDisruptionBudget",
	"autoscaling/v2 HorizontalPodAutoscaler",
	"storage.k8s.io/v1 StorageClass", "scheduling.k8s.io/v1 PriorityClass",
}

// reserved are names of the lab's parts other than nodes.
var reserved = []string{"underlay", "outside", "lab"}

func (l *loader) read(file string, data []byte) {
	docs, problems := parse(file, data)
	l.problems = append(l.problems, problems...)
	for _, doc := range docs {
		l.document(place{doc: doc})
	}
}

func (l *loader) document(p place) {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := json.UnmarshalCaseSensitivePreserveInts(p.doc.json, &head); err != nil || head.APIVersion == "" ||
		head.Kind == "" {
		l.wrong(p, "not a Kubernetes object: it needs apiVersion and kind")
		return
	}
	kind := head.APIVersion + " " + head.Kind
	if take, ok := kinds[kind]; ok {
		take(l, p)
		return
	}
	if slices.Contains(ignored, kind) {
		l.set.Ignored = append(l.set.Ignored, head.Kind)
		return
	}
	var known []string
	for k := range kinds {
		known = append(known, k)
	}
	slices.Sort(known)
	l.wrong(p.at("kind"), "a lab does not know %s of %s; it knows %s", head.Kind, head.APIVersion,
		strings.Join(known, ", "))
}

// decode reads the document into an object and tells whether it can be used. What is wrong is noted.
func (l *loader) decode(p place, into metav1.Object) bool {
	strict, err := json.UnmarshalStrict(p.doc.json, into)
	for _, err := range strict {
		var field json.FieldError
		if errors.As(err, &field) {
			what, _, _ := strings.Cut(err.Error(), ` "`)
			l.wrong(p.at("%s", field.FieldPath()), "%s", what)
		} else {
			l.wrong(p, "%v", err)
		}
	}
	if err != nil {
		l.undecodable(p, err)
		return false
	}
	return len(strict) == 0
}

// undecodable notes a value of the wrong type.
func (l *loader) undecodable(p place, err error) {
	line, text := p.doc.line(""), err.Error()
	var mismatch *stdjson.UnmarshalTypeError
	if errors.As(err, &mismatch) {
		line = p.doc.lineAt(int(mismatch.Offset))
		text = fmt.Sprintf("%s: a %s is not allowed here", mismatch.Field, mismatch.Value)
	}
	l.problems = append(l.problems, Problem{File: p.doc.file, Line: line, Text: text})
}

func (l *loader) namespace(p place) {
	var n corev1.Namespace
	if l.decode(p, &n) && l.meta(p, "Namespace", &n.ObjectMeta, false) {
		l.refuseStatus(p, n.Status.Phase != "" || n.Status.Conditions != nil)
		l.set.Namespaces = append(l.set.Namespaces, &n)
	}
}

func (l *loader) node(p place) {
	var n corev1.Node
	if !l.decode(p, &n) || !l.meta(p, "Node", &n.ObjectMeta, false) {
		return
	}
	if slices.Contains(reserved, n.Name) {
		l.wrong(p.at("metadata.name"), "a lab has something else by the name %q", n.Name)
	}
	if n.Spec.PodCIDR != "" || n.Spec.PodCIDRs != nil {
		l.wrong(p.at("spec"), "podCIDR and podCIDRs are not supported: a lab assigns the ranges")
	}
	l.unsupported(p.at("spec.taints"), len(n.Spec.Taints) > 0,
		"a lab has no scheduler that would heed them; use nodeName or nodeSelector")
	l.refuseStatus(p, len(n.Status.Addresses) > 0 || len(n.Status.Conditions) > 0)
	l.set.Nodes = append(l.set.Nodes, &n)
}

func (l *loader) pod(p place) {
	var pod corev1.Pod
	if !l.decode(p, &pod) || !l.meta(p, "Pod", &pod.ObjectMeta, true) {
		return
	}
	for i, c := range pod.Status.Conditions {
		l.unsupported(p.at("status.conditions[%d]", i), c.Type != corev1.PodReady, "a lab lets you say Ready only")
	}
	ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	l.unsupported(p.at("status.phase"), pod.Status.Phase != "" && !ended, "a lab lets you say Succeeded and Failed only")
	l.refuseStatus(p, pod.Status.PodIP != "" || pod.Status.PodIPs != nil)
	l.podSpec(p.at("spec"), &pod.Spec)
	l.workloads = append(l.workloads, workload{place: p, kind: "Pod", meta: pod.ObjectMeta,
		template: corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec},
		replicas: 1, conditions: pod.Status.Conditions, phase: pod.Status.Phase})
}

func (l *loader) deployment(p place) {
	var d appsv1.Deployment
	if l.decode(p, &d) && l.meta(p, "Deployment", &d.ObjectMeta, true) {
		l.refuseStatus(p, d.Status.Replicas != 0 || d.Status.Conditions != nil)
		l.workload(workload{place: p, kind: "Deployment", meta: d.ObjectMeta, template: d.Spec.Template}, d.Spec.Selector,
			d.Spec.Replicas)
	}
}

func (l *loader) statefulSet(p place) {
	var s appsv1.StatefulSet
	if l.decode(p, &s) && l.meta(p, "StatefulSet", &s.ObjectMeta, true) {
		l.refuseStatus(p, s.Status.Replicas != 0 || s.Status.Conditions != nil)
		first := 0
		if s.Spec.Ordinals != nil {
			first = int(s.Spec.Ordinals.Start)
		}
		l.workload(workload{place: p, kind: "StatefulSet", meta: s.ObjectMeta, template: s.Spec.Template, first: first},
			s.Spec.Selector, s.Spec.Replicas)
	}
}

func (l *loader) daemonSet(p place) {
	var d appsv1.DaemonSet
	if l.decode(p, &d) && l.meta(p, "DaemonSet", &d.ObjectMeta, true) {
		l.refuseStatus(p, d.Status.NumberReady != 0 || d.Status.Conditions != nil)
		l.workload(workload{place: p, kind: "DaemonSet", meta: d.ObjectMeta, template: d.Spec.Template, everyNode: true},
			d.Spec.Selector, nil)
	}
}
