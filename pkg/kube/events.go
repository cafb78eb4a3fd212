package kube

import (
	"log/slog"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/weft-cni/weft/pkg/model"
)

// Reporter writes Events about objects, so that kubectl describe shows what Weft has to say of them. It repeats and
// limits them the way client-go does, on goroutines of its own.
type Reporter struct {
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
	node        string
}

// NewReporter gives a reporter that writes as the agent of the named node.
func NewReporter(client kubernetes.Interface, node string) *Reporter {
	b := record.NewBroadcaster()
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return &Reporter{broadcaster: b, recorder: b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "weft-agent", Host: node}), node: node}
}

// Close ends the reporter.
func (r *Reporter) Close() { r.broadcaster.Shutdown() }

// Warn writes a warning about the object that an owner of flows stands for: a pod, a policy, a node, or else this node.
func (r *Reporter) Warn(o model.Owner, reason, message string) {
	ref := corev1.ObjectReference{Kind: "Node", Name: r.node, UID: types.UID(r.node)} // the kubelet names a node's UID so, too
	switch o.Kind {
	case model.KindPod:
		pod, err := model.ParsePodRef(o.Name)
		if err != nil {
			slog.Error("an owner of flows is no pod", "owner", o, "err", err)
			return
		}
		ref = corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name}
	case model.KindPolicy:
		namespace, name, _ := strings.Cut(o.Name, "/")
		ref = corev1.ObjectReference{Kind: "NetworkPolicy", APIVersion: "networking.k8s.io/v1", Namespace: namespace, Name: name}
	case model.KindNode:
		ref.Name, ref.UID = o.Name, types.UID(o.Name)
	}
	r.recorder.Event(&ref, corev1.EventTypeWarning, reason, message)
}
