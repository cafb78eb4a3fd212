package kube

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/weft-cni/weft/pkg/kube/cnp"
	"github.com/weft-cni/weft/pkg/model"
)

// Reporter writes Events about objects, so that kubectl describe shows what Weft has to say of them. It repeats and
// limits them the way client-go does, on goroutines of its own.
type Reporter struct {
	client      kubernetes.Interface
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
	node        string
	warnings    chan warning
	stop        context.CancelFunc
	stopped     chan struct{}
}

type warning struct {
	owner           model.Owner
	reason, message string
	// ours says whether this agent is the one to write it; nil when it is.
	ours func() bool
}

const (
	// maxWarnings is how many warnings may wait for the API server. Of more than that only the log tells.
	maxWarnings = 256
	// lookupTimeout bounds the question for an object's UID.
	lookupTimeout = 5 * time.Second
)

// NewReporter gives a reporter that writes as the agent of the named node.
func NewReporter(client kubernetes.Interface, node string) *Reporter {
	b := record.NewBroadcaster()
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	ctx, stop := context.WithCancel(context.Background())
	r := &Reporter{
		client: client, broadcaster: b, recorder: b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "weft-agent",
			Host: node}), node: node,
		warnings: make(chan warning, maxWarnings), stop: stop, stopped: make(chan struct{}),
	}
	go r.run(ctx)
	return r
}

// Close ends the reporter.
func (r *Reporter) Close() {
	r.stop()
	<-r.stopped
	r.broadcaster.Shutdown()
}

// Warn writes a warning about the object that an owner of flows stands for: a pod, a Service, a policy, a node, or else
// this node. It does not wait for the API server.
func (r *Reporter) Warn(o model.Owner, reason, message string) {
	r.enqueue(warning{o, reason, message, nil})
}

// WarnIf is Warn if ours says so, which is asked on the reporter's goroutine: of several agents that see the same, one
// writes (see Speaker).
func (r *Reporter) WarnIf(ours func() bool, o model.Owner, reason, message string) {
	r.enqueue(warning{o, reason, message, ours})
}

// Speaker returns which of several nodes writes an Event about an object: the one with the highest hash of both, so
// that each agent finds the same one, and objects are spread over the nodes.
func Speaker(o model.Owner, nodes []string) string {
	var best [sha256.Size]byte
	speaker := ""
	for _, n := range nodes {
		sum := sha256.Sum256([]byte(o.String() + "\x00" + n))
		if c := bytes.Compare(sum[:], best[:]); c > 0 || c == 0 && n < speaker || speaker == "" {
			best, speaker = sum, n
		}
	}
	return speaker
}

func (r *Reporter) enqueue(w warning) {
	select {
	case r.warnings <- w:
	default:
		slog.Warn("too many Events wait for the API server; this one is left out", "object", w.owner, "reason", w.reason,
			"message", w.message)
	}
}

func (r *Reporter) run(ctx context.Context) {
	defer close(r.stopped)
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-r.warnings:
			if w.ours != nil && !w.ours() {
				continue
			}
			ref := r.reference(w.owner)
			if uid, err := r.uid(ctx, w.owner, ref); err != nil {
				slog.Warn("the object of an Event cannot be looked up; kubectl describe will not show the Event", "object", w.owner,
					"err", err)
			} else {
				ref.UID = uid
			}
			r.recorder.Event(&ref, corev1.EventTypeWarning, w.reason, w.message)
		}
	}
}

// objectKind is the kind of the object that an owner stands for: that of a policy whether or not it is staged.
func objectKind(o model.Owner) model.Kind {
	if o.Kind.IsPolicy() {
		return o.Policy().Kind
	}
	return o.Kind
}

// reference is the object that an owner stands for, less its UID.
func (r *Reporter) reference(o model.Owner) corev1.ObjectReference {
	namespace, name, _ := strings.Cut(o.Name, "/")
	switch objectKind(o) {
	case model.KindPod:
		return corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: namespace, Name: name}
	case model.KindService:
		return corev1.ObjectReference{Kind: "Service", APIVersion: "v1", Namespace: namespace, Name: name}
	case model.KindPolicy:
		return corev1.ObjectReference{Kind: "NetworkPolicy", APIVersion: "networking.k8s.io/v1", Namespace: o.Namespace,
			Name: o.Name}
	case model.KindClusterPolicy:
		return corev1.ObjectReference{Kind: "ClusterNetworkPolicy", APIVersion: cnp.GroupVersion.String(), Name: o.Name}
	case model.KindNode:
		return corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: o.Name}
	default:
		return corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: r.node}
	}
}

// uid is what kubectl describe finds an object's Events by.
func (r *Reporter) uid(ctx context.Context, o model.Owner, ref corev1.ObjectReference) (types.UID, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var object metav1.Object
	var err error
	switch objectKind(o) {
	case model.KindPod:
		object, err = r.client.CoreV1().Pods(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	case model.KindService:
		object, err = r.client.CoreV1().Services(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	case model.KindPolicy:
		object, err = r.client.NetworkingV1().NetworkPolicies(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	case model.KindClusterPolicy:
		object, err = clusterClient{r.client}.get(ctx, o.Name)
	default:
		return types.UID(ref.Name), nil // the kubelet names a node's UID so, and kubectl looks for that
	}
	if err != nil {
		return "", fmt.Errorf("get %s %s: %w", ref.Kind, o.FullName(), err)
	}
	return object.GetUID(), nil
}
