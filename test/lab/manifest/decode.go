package manifest

import (
	"fmt"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/json"
	"sigs.k8s.io/kustomize/api/konfig"

	"github.com/weft-cni/weft/pkg/kube/cnp"
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

	cnp.GroupVersion.String() + " " + cnp.Kind: (*loader).clusterPolicy,
}

// ignored are kinds that often stand beside the others and mean nothing to a network.
var ignored = []string{
	"v1 ConfigMap", "v1 Secret", "v1 ServiceAccount", "v1 PersistentVolumeClaim", "v1 PersistentVolume", "v1 LimitRange",
	"v1 ResourceQuota",
	"rbac.authorization.k8s.io/v1 Role", "rbac.authorization.k8s.io/v1 RoleBinding",
	"rbac.authorization.k8s.io/v1 ClusterRole",
	"rbac.authorization.k8s.io/v1 ClusterRoleBinding", "policy/v1 PodDisruptionBudget",
	"autoscaling/v2 HorizontalPodAutoscaler",
	"storage.k8s.io/v1 StorageClass", "scheduling.k8s.io/v1 PriorityClass", "v1 Event", "coordination.k8s.io/v1 Lease",
	"apps/v1 ControllerRevision", "apiextensions.k8s.io/v1 CustomResourceDefinition", "networking.k8s.io/v1 IngressClass",
	"admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration",
	"admissionregistration.k8s.io/v1 MutatingWebhookConfiguration",
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
	err := json.UnmarshalCaseSensitivePreserveInts(p.doc.json, &head)
	if slices.Contains(konfig.RecognizedKustomizationFileNames(), filepath.Base(p.doc.file)) {
		l.wrong(p, "a kustomization is built: give its directory to -k")
		return
	}
	if err != nil || head.APIVersion == "" || head.Kind == "" {
		l.wrong(p, "not a Kubernetes object: it needs apiVersion and kind")
		return
	}
	kind := head.APIVersion + " " + head.Kind
	if take, ok := kinds[kind]; ok {
		take(l, p)
		return
	}
	// What has an owner (a Deployment's ReplicaSet) is made from it.
	owned := child(child(p.doc.root, "metadata"), "ownerReferences").Kind == yaml.SequenceNode
	if slices.Contains(ignored, kind) || owned {
		l.set.Ignored = append(l.set.Ignored, head.Kind)
		return
	}
	gv, err := schema.ParseGroupVersion(head.APIVersion)
	if err == nil && scheme.Scheme.IsVersionRegistered(gv) && !scheme.Scheme.Recognizes(gv.WithKind(head.Kind)) {
		l.wrong(p.at("kind"), "Kubernetes has no kind %s in %s", head.Kind, head.APIVersion)
		return
	}
	l.unknown[head.Kind+" of "+head.APIVersion] = append(l.unknown[head.Kind+" of "+head.APIVersion], p)
}

// warnOfUnknown names the kinds that were left out, each once.
func (l *loader) warnOfUnknown() {
	for kind, places := range l.unknown {
		text := "a lab does not know " + kind + "; it is left out"
		if more := len(places) - 1; more > 0 {
			text += fmt.Sprintf(", with %d more of this kind", more)
		}
		l.warn(places[0].at("kind"), "%s", text)
	}
}

func (l *loader) namespace(p place) {
	var n corev1.Namespace
	if l.decode(p, &n) && l.meta(p, "Namespace", &n.ObjectMeta, false) {
		n.Status = corev1.NamespaceStatus{}
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
	l.unsupported(p.at("spec.podCIDR"), n.Spec.PodCIDR != "", "a lab assigns the ranges")
	l.unsupported(p.at("spec.taints"), len(n.Spec.Taints) > 0,
		"a lab has no scheduler; nodeName and nodeSelector have an effect")
	n.Spec.PodCIDR, n.Spec.PodCIDRs, n.Status = "", nil, corev1.NodeStatus{}
	l.set.Nodes = append(l.set.Nodes, &n)
}

func (l *loader) pod(p place) {
	var pod corev1.Pod
	if !l.decode(p, &pod) {
		return
	}
	if metav1.GetControllerOf(&pod) == nil {
		l.takePod(p, &pod)
		return
	}
	l.controlled = append(l.controlled, func() {
		if !slices.ContainsFunc(l.workloads, func(w workload) bool { return w.makes(&pod) }) {
			l.takePod(p, &pod)
		}
	})
}

func (l *loader) takePod(p place, pod *corev1.Pod) {
	if !l.meta(p, "Pod", &pod.ObjectMeta, true) {
		return
	}
	// Of its status, only what the lab cannot know counts: whether it is ready, and whether it has ended.
	conditions := slices.DeleteFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type != corev1.PodReady
	})
	phase := pod.Status.Phase
	if phase != corev1.PodSucceeded && phase != corev1.PodFailed {
		phase = ""
	}
	l.podSpec(p.at("spec"), &pod.Spec)
	l.workloads = append(l.workloads, workload{place: p, kind: "Pod", meta: pod.ObjectMeta,
		template: corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec},
		replicas: 1, conditions: conditions, phase: phase})
}

func (l *loader) deployment(p place) {
	var d appsv1.Deployment
	if l.decode(p, &d) && l.meta(p, "Deployment", &d.ObjectMeta, true) {
		l.workload(workload{place: p, kind: "Deployment", meta: d.ObjectMeta, template: d.Spec.Template}, d.Spec.Selector,
			d.Spec.Replicas)
	}
}

func (l *loader) statefulSet(p place) {
	var s appsv1.StatefulSet
	if l.decode(p, &s) && l.meta(p, "StatefulSet", &s.ObjectMeta, true) {
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
		l.workload(workload{place: p, kind: "DaemonSet", meta: d.ObjectMeta, template: d.Spec.Template, everyNode: true},
			d.Spec.Selector, nil)
	}
}
