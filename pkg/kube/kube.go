// Package kube turns Kubernetes objects into changes of the node's view. It is the only package that imports client-go.
//
// Informers own the objects; each runs on a goroutine of its own and hands every change to the Emit function, which
// must not block. An object that cannot be understood is reported and leaves out just what is wrong with it.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/state"
)

// Client is a connection to the API server.
type Client = kubernetes.Interface

// NewClient connects to the API server as the kubeconfig file says or, when that is empty, with the pod's service
// account. A non-empty server is used instead of the kubernetes Service's address, which nothing may serve before
// Weft runs. Peers, if not nil, are told of the client's connections.
func NewClient(server, kubeconfig string, peers *Peers) (kubernetes.Interface, error) {
	var cfg *rest.Config
	var err error
	if kubeconfig == "" {
		cfg, err = rest.InClusterConfig()
	} else {
		cfg, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	if server != "" {
		cfg.Host = server
	}
	cfg.UserAgent = "weft-agent"
	if peers != nil {
		cfg.Dial = peers.dial
	}
	// On a large cluster decoding JSON is up to a third of what an agent computes at its start.
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	// Pods that start wait for an answer (see gate), and the API server protects itself (API Priority and Fairness).
	cfg.QPS, cfg.Burst = 20, 50
	return kubernetes.NewForConfig(cfg)
}

// Watcher follows the objects that concern one node.
type Watcher struct {
	node string
	emit func(state.Change)
	log  *slog.Logger
	// Draining is told, with each change of this node's object, whether the node is about to be deleted. It may be set
	// before Run, and must not block.
	Draining func(draining bool)
	// Unavailable is told, with each change of this node's object, whether its condition NetworkUnavailable is missing or
	// is not False. It may be set before Run, and must not block.
	Unavailable func(unavailable bool)

	client kubernetes.Interface
	feeds  []*feed
	gate   *gate

	nodes    cache.SharedIndexInformer
	pods     cache.SharedIndexInformer
	policies cache.SharedIndexInformer

	namespaces cache.SharedIndexInformer
	cluster    *clusterPolicies
	cidrs      *serviceCIDRs
	// services are those of this proxy, otherProxies those of others.
	services, otherProxies cache.SharedIndexInformer
	// informers are all of them. emitted say that what existed at the start was handed on: an informer has synced before
	// its handlers.
	informers []cache.SharedIndexInformer
	emitted   []cache.InformerSynced
}

// NewWatcher makes the watcher of the named node; Run starts it.
func NewWatcher(client kubernetes.Interface, node string, emit func(state.Change), log *slog.Logger) (*Watcher, error) {
	w := &Watcher{node: node, emit: emit, log: log, client: client, gate: newGate(node, client, emit, log)}
	core := client.CoreV1()
	w.nodes = informer(w, "nodes", &corev1.Node{}, "", core.Nodes().List, core.Nodes().Watch)
	w.services = informer(w, "services", &corev1.Service{}, ServiceSelector, core.Services("").List,
		core.Services("").Watch)
	w.otherProxies = informer(w, "services of other proxies", &corev1.Service{}, OtherProxySelector, core.Services("").List,
		core.Services("").Watch)
	slices := client.DiscoveryV1().EndpointSlices("")
	endpoints := informer(w, "endpointslices", &discoveryv1.EndpointSlice{}, SliceSelector, slices.List, slices.Watch)
	err := errors.Join(
		w.follow("nodes", w.nodes, trimNode, w.nodeChanged, func(name string) { emit(state.DeleteNode{Name: name}) }),
		w.followPolicies(),
		w.follow("services", w.services, trimService, w.hand, func(name string) {
			emit(state.DeleteService{Name: name})
		}),
		w.follow("services of other proxies", w.otherProxies, trimService, w.setOtherProxy, func(name string) {
			emit(state.SetOtherProxy{Service: name})
		}),
		w.follow("endpointslices", endpoints, trimSlice, w.hand, func(name string) {
			emit(state.DeleteSlice{Name: name})
		}),
		w.followServiceCIDRs(),
	)
	if err != nil {
		return nil, err
	}
	w.followClusterPolicies()
	return w, nil
}

// informer makes the informer of a resource, whose feed it adds. Its index is by namespace/name alone.
func informer[L runtime.Object](
	w *Watcher, resource string, object runtime.Object, selector string,
	list func(context.Context, metav1.ListOptions) (L, error),
	watching func(context.Context, metav1.ListOptions) (watch.Interface, error),
) cache.SharedIndexInformer {
	f := &feed{resource: resource, silence: silentAfter}
	w.feeds = append(w.feeds, f)
	made := cache.NewSharedIndexInformer(source(f, selector, list, watching), object, 0, cache.Indexers{})
	// Fails only for an informer that runs.
	_ = made.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *cache.Reflector, err error) {
		f.fail(err)
		cache.DefaultWatchErrorHandler(ctx, r, err)
	})
	return made
}

// follow registers an informer: changed is told of every object, deleted of the namespace/name (or name) of those that
// are gone. What trim leaves out is not kept: on a large cluster managed fields and images are most of what there is.
func (w *Watcher) follow(what string, informer cache.SharedIndexInformer, trim cache.TransformFunc,
	changed func(obj any), deleted func(key string)) error {
	handled, err := handle(what, informer, trim, func(obj any, _ bool) { changed(obj) }, deleted)
	if err != nil {
		return err
	}
	w.run(informer, handled)
	return nil
}

// run adds an informer to those that Run runs.
func (w *Watcher) run(informer cache.SharedIndexInformer, handled cache.InformerSynced) {
	w.informers = append(w.informers, informer)
	w.emitted = append(w.emitted, handled)
}

// handle is follow for an informer that is run elsewhere. Changed also learns whether the object was there at the
// start. It returns the function that says that all objects of the start were handed on.
func handle(
	what string, informer cache.SharedIndexInformer, trim cache.TransformFunc,
	changed func(obj any, first bool), deleted func(key string),
) (cache.InformerSynced, error) {
	if err := informer.SetTransform(trim); err != nil {
		return nil, fmt.Errorf("watch %s: %w", what, err)
	}
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: changed,
		UpdateFunc: func(old, obj any) {
			// Most of what changes of a pod is nothing to us; of a slice it is annotations.
			if o, ok := obj.(interface{ sameAs(old any) bool }); !ok || !o.sameAs(old) {
				changed(obj, false)
			}
		},
		DeleteFunc: func(obj any) {
			if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
				deleted(key)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", what, err)
	}
	return registration.HasSynced, nil
}

// Run runs the informers until the context ends.
func (w *Watcher) Run(ctx context.Context) {
	var running sync.WaitGroup
	w.gate.start = func(f func(context.Context)) { running.Go(func() { f(ctx) }) }
	running.Go(func() { w.cidrs.run(ctx) })
	running.Go(func() { w.cluster.run(ctx) })
	for _, informer := range w.informers {
		running.Go(func() { informer.Run(ctx.Done()) })
	}
	running.Wait()
}

// syncPoll is how often WaitSynced looks; client-go's own pause is as long as all that a node with few objects needs to
// start.
const syncPoll = 10 * time.Millisecond

// WaitSynced returns when every object that existed at the start was emitted.
func (w *Watcher) WaitSynced(ctx context.Context) error {
	ticker := time.NewTicker(syncPoll)
	defer ticker.Stop()
	for _, synced := range w.emitted {
		for !synced() {
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for the API server's objects: %w", context.Cause(ctx))
			case <-ticker.C:
			}
		}
	}
	return nil
}

// take hands on what an object means, and says what of it cannot be used.
func (w *Watcher) take(obj any) error {
	e := EffectOf(w.node, obj)
	for _, c := range e.Set {
		w.emit(c)
	}
	return e.Problem
}

// hand is take for objects whose changes carry what cannot be used.
func (w *Watcher) hand(obj any) { _ = w.take(obj) }

func (w *Watcher) nodeChanged(obj any) {
	object, ok := obj.(*corev1.Node)
	if !ok {
		return
	}
	if err := w.take(object); err != nil {
		w.log.Warn("part of a Node cannot be used", "node", object.Name, "err", err)
	}
	if object.Name == w.node {
		if w.Draining != nil {
			w.Draining(draining(object))
		}
		if w.Unavailable != nil {
			w.Unavailable(!slices.ContainsFunc(object.Status.Conditions, func(c corev1.NodeCondition) bool {
				return isNetworkUnavailable(c) && c.Status == corev1.ConditionFalse
			}))
		}
	}
}

// Node is what the model holds of a Node: its first InternalIP and its first pod CIDR of each family. The error lists
// the values that could not be read; the rest is still good.
func Node(object *corev1.Node) (model.Node, error) {
	n := model.Node{Name: object.Name}
	n.Created = seconds(object.CreationTimestamp)
	var bad []error
	families := map[bool]bool{}
	for _, a := range object.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		addr = addr.Unmap()
		if err == nil && addr.Zone() != "" {
			err = fmt.Errorf("%q has a zone", a.Address)
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("status.addresses: %w", err))
			continue
		}
		if !families[addr.Is4()] {
			families[addr.Is4()] = true
			n.Addrs = append(n.Addrs, addr)
		}
	}
	clear(families)
	for _, c := range object.Spec.PodCIDRs {
		cidr, err := netip.ParsePrefix(c)
		if err != nil {
			bad = append(bad, fmt.Errorf("spec.podCIDRs: %w", err))
			continue
		}
		if !families[cidr.Addr().Is4()] {
			families[cidr.Addr().Is4()] = true
			n.PodCIDRs = append(n.PodCIDRs, cidr.Masked())
		}
	}
	bad = append(bad, readPublished(&n, object.Annotations)...)
	return n, errors.Join(bad...)
}

// PeerNode is what policies see of a Node, without the names among its addresses.
func PeerNode(object *corev1.Node) policy.Node {
	n := policy.Node{Name: object.Name, Labels: object.Labels}
	for _, a := range object.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil && addr.Zone() == "" {
			n.Addrs = append(n.Addrs, addr.Unmap())
		}
	}
	return n
}

// toBeDeletedTaint is what the cluster autoscaler puts on a node that it is about to delete (KEP-3836).
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// draining says whether a node is about to be deleted, as kube-proxy does.
func draining(n *corev1.Node) bool {
	return !n.DeletionTimestamp.IsZero() || slices.ContainsFunc(n.Spec.Taints, toBeDeleted)
}

func isNetworkUnavailable(c corev1.NodeCondition) bool {
	return c.Type == corev1.NodeNetworkUnavailable
}

func toBeDeleted(t corev1.Taint) bool { return t.Key == toBeDeletedTaint }

// trimNode keeps what Node, PeerNode, draining, the condition NetworkUnavailable and the zone of endpoints are read
// from.
func trimNode(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	trimmed := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels,
			CreationTimestamp: n.CreationTimestamp, DeletionTimestamp: n.DeletionTimestamp,
			Annotations: trimAnnotations(n.Annotations),
		},
		Spec:   corev1.NodeSpec{PodCIDRs: n.Spec.PodCIDRs},
		Status: corev1.NodeStatus{Addresses: n.Status.Addresses},
	}
	for _, t := range n.Spec.Taints {
		if toBeDeleted(t) {
			trimmed.Spec.Taints = append(trimmed.Spec.Taints, t)
		}
	}
	if i := slices.IndexFunc(n.Status.Conditions, isNetworkUnavailable); i >= 0 {
		trimmed.Status.Conditions = []corev1.NodeCondition{{Type: n.Status.Conditions[i].Type,
			Status: n.Status.Conditions[i].Status}}
	}
	return trimmed, nil
}

// SetNetworkAvailable sets the node's NetworkUnavailable condition to False: the scheduler may place pods there.
func SetNetworkAvailable(ctx context.Context, client kubernetes.Interface, node string) error {
	now := metav1.NewTime(time.Now())
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
		Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse,
		Reason: "WeftReady", Message: "Weft has programmed the node's flows",
		LastHeartbeatTime: now, LastTransitionTime: now,
	}}}})
	if err != nil {
		return err
	}
	if _, err := client.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, patch, metav1.PatchOptions{},
		"status"); err != nil {
		return fmt.Errorf("set condition NetworkUnavailable of node %s: %w", node, err)
	}
	return nil
}
