package apiserver_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

func serve(t *testing.T) (*apiserver.Store, kubernetes.Interface) {
	t.Helper()
	store := apiserver.NewStore()
	server := httptest.NewServer(store.Handler())
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return store, client
}

func node(name, cidr string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{cidr}}}
}

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{NodeName: node}}
}

func apply(t *testing.T, store *apiserver.Store, resource string, objects ...apiserver.Object) {
	t.Helper()
	if err := store.Apply(resource, objects); err != nil {
		t.Fatal(err)
	}
}

// The agent's own watcher follows every change, and sees only its node's pods.
func TestAgentsWatcher(t *testing.T) {
	store, client := serve(t)
	apply(t, store, apiserver.Nodes, node("n1", "10.0.0.0/24"), node("n2", "10.0.1.0/24"))
	apply(t, store, apiserver.Pods, pod("mine", "n1"), pod("other", "n2"))
	var mu sync.Mutex
	seen := map[string]model.Node{}
	w, err := kube.NewWatcher(client, "n1", func(c state.Change) {
		mu.Lock()
		defer mu.Unlock()
		switch c := c.(type) {
		case state.SetNode:
			seen[c.Node.Name] = c.Node
		case state.DeleteNode:
			delete(seen, c.Name)
		}
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); w.Run(ctx) }()
	defer func() { stop(); <-ended }()
	if err := w.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
	want := func(nodes map[string]string, pods ...string) {
		t.Helper()
		testenv.Eventually(t, 10*time.Second, func() error {
			mu.Lock()
			defer mu.Unlock()
			have := map[string]string{}
			for name, n := range seen {
				have[name] = n.PodCIDRs[0].String()
			}
			var havePods []string
			for _, p := range w.Pods() {
				havePods = append(havePods, p.Name)
			}
			slices.Sort(havePods)
			if fmt.Sprint(have) != fmt.Sprint(nodes) || !slices.Equal(havePods, pods) {
				return fmt.Errorf("the watcher has nodes %v and pods %v, want %v and %v", have, havePods, nodes, pods)
			}
			return nil
		})
	}
	want(map[string]string{"n1": "10.0.0.0/24", "n2": "10.0.1.0/24"}, "mine")
	apply(t, store, apiserver.Nodes, node("n1", "10.0.0.0/24"), node("n3", "10.0.3.0/24"))
	apply(t, store, apiserver.Pods, pod("other", "n2"), pod("new", "n1"))
	want(map[string]string{"n1": "10.0.0.0/24", "n3": "10.0.3.0/24"}, "new")
	apply(t, store, apiserver.Pods, pod("other", "n1"), pod("new", "n2"))
	want(map[string]string{"n1": "10.0.0.0/24", "n3": "10.0.3.0/24"}, "other")
	if err := kube.SetNetworkAvailable(ctx, client, "n1"); err != nil {
		t.Fatal(err)
	}
	got, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
	if err != nil || len(got.Status.Conditions) != 1 || got.Status.Conditions[0].Status != corev1.ConditionFalse {
		t.Errorf("node after the agent's patch: %+v, %v", got.Status, err)
	}
	// What the agent patched stays when the same object is applied again.
	apply(t, store, apiserver.Nodes, node("n1", "10.0.0.0/24"), node("n3", "10.0.3.0/24"))
	if got, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{}); err != nil ||
		len(got.Status.Conditions) != 1 {
		t.Errorf("node after it was applied again: %+v, %v", got.Status, err)
	}
	if err := kube.SetNetworkAvailable(ctx, client, "n9"); err == nil {
		t.Error("the status of a node that does not exist could be set")
	}
}

func TestEvents(t *testing.T) {
	store, client := serve(t)
	reporter := kube.NewReporter(client, "n1")
	defer reporter.Close()
	for range 3 {
		reporter.Warn(model.NodeOwner("n2"), "FlowsRefused", "because")
	}
	testenv.Eventually(t, 10*time.Second, func() error {
		events := store.Events()
		if len(events) != 1 || events[0].InvolvedObject.Name != "n2" || events[0].Reason != "FlowsRefused" ||
			events[0].Count != 3 {
			return fmt.Errorf("events %+v, want one that counts 3", events)
		}
		return nil
	})
}

// Every resource can be listed and watched, and an informer of each keeps up.
func TestEveryResource(t *testing.T) {
	store, client := serve(t)
	factory := informers.NewSharedInformerFactory(client, 0)
	indexers := map[string]cache.SharedIndexInformer{
		apiserver.Nodes:           factory.Core().V1().Nodes().Informer(),
		apiserver.Namespaces:      factory.Core().V1().Namespaces().Informer(),
		apiserver.Pods:            factory.Core().V1().Pods().Informer(),
		apiserver.Services:        factory.Core().V1().Services().Informer(),
		apiserver.EndpointSlices:  factory.Discovery().V1().EndpointSlices().Informer(),
		apiserver.NetworkPolicies: factory.Networking().V1().NetworkPolicies().Informer(),
		apiserver.ServiceCIDRs:    factory.Networking().V1().ServiceCIDRs().Informer(),
	}
	factory.Start(t.Context().Done())
	for kind, ok := range factory.WaitForCacheSync(t.Context().Done()) {
		if !ok {
			t.Fatalf("%v does not sync", kind)
		}
	}
	count := func(want int) {
		t.Helper()
		testenv.Eventually(t, 10*time.Second, func() error {
			for name, informer := range indexers {
				if got := len(informer.GetStore().List()); got != want {
					return fmt.Errorf("the informer of %s has %d objects, want %d", name, got, want)
				}
			}
			return nil
		})
	}
	count(0)
	for name := range indexers {
		apply(t, store, name, apiserver.Smallest(name, "x"))
	}
	count(1)
	for name := range indexers {
		apply(t, store, name)
	}
	count(0)
	if err := store.Apply("gizmos", nil); err == nil {
		t.Error("an unknown resource could be applied")
	}
}

// A watch goes on from the version of a list without losing or repeating a change; one from before the history is told
// to list again.
func TestWatchFromVersion(t *testing.T) {
	store, client := serve(t)
	apply(t, store, apiserver.Pods, pod("a", "n1"))
	list, err := client.CoreV1().Pods("ns").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].UID == "" {
		t.Fatalf("list %+v, %v", list, err)
	}
	changed := pod("a", "n1")
	changed.Labels = map[string]string{"x": "y"}
	apply(t, store, apiserver.Pods, changed, pod("b", "n2"))
	apply(t, store, apiserver.Pods, pod("b", "n2"))
	w, err := client.CoreV1().Pods("ns").Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for _, want := range []string{"MODIFIED a", "ADDED b", "DELETED a"} {
		e := <-w.ResultChan()
		p, ok := e.Object.(*corev1.Pod)
		if !ok || fmt.Sprintf("%s %s", e.Type, p.Name) != want {
			t.Fatalf("event %s %+v, want %s", e.Type, e.Object, want)
		}
	}
	for i := range apiserver.History {
		apply(t, store, apiserver.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i)}})
	}
	old, err := client.CoreV1().Pods("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Stop()
	if e := <-old.ResultChan(); e.Type != watch.Error || !apierrors.IsResourceExpired(apierrors.FromObject(e.Object)) {
		t.Errorf("a watch from before the history got %s %+v, want that its version expired", e.Type, e.Object)
	}
}

// An empty list that was a lie has a version from which no watch goes on: its client would never hear the truth. The
// truth is of a later version.
func TestWatchFromEmptyList(t *testing.T) {
	store := apiserver.NewStore()
	server := apiserver.NewServer(store)
	served := httptest.NewServer(server)
	t.Cleanup(served.Close)
	client := kubernetes.NewForConfigOrDie(&rest.Config{Host: served.URL})
	apply(t, store, apiserver.Pods, pod("a", "n1"))
	lie := func(l apiserver.Lie) {
		if err := server.Lie(l); err != nil {
			t.Fatal(err)
		}
	}
	lie(apiserver.Lie{Resources: map[string]apiserver.Fault{apiserver.Pods: apiserver.Empty}})
	empty, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(empty.Items) != 0 {
		t.Fatalf("list %+v, %v", empty, err)
	}
	lie(apiserver.Lie{})
	whole, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(whole.Items) != 1 {
		t.Fatalf("list %+v, %v", whole, err)
	}
	apply(t, store, apiserver.Pods, pod("a", "n1"), pod("b", "n1"))
	for version, want := range map[string]watch.EventType{empty.ResourceVersion: watch.Error,
		whole.ResourceVersion: watch.Added} {
		w, err := client.CoreV1().Pods("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: version})
		if err != nil {
			t.Fatal(err)
		}
		if e := <-w.ResultChan(); e.Type != want {
			t.Errorf("a watch from version %s got %s %+v, want %s", version, e.Type, e.Object, want)
		}
		w.Stop()
	}
}

func TestRefusals(t *testing.T) {
	_, client := serve(t)
	ctx := t.Context()
	if _, err := client.CoreV1().Pods("ns").Get(ctx, "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a pod that does not exist: %v", err)
	}
	if _, err := client.CoreV1().Pods("").List(ctx,
		metav1.ListOptions{FieldSelector: "status.phase=Running"}); !apierrors.IsBadRequest(err) {
		t.Errorf("an unknown field selector: %v", err)
	}
	if _, err := client.CoreV1().Secrets("ns").List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a resource that the API does not have: %v", err)
	}
	var status *apierrors.StatusError
	if err := client.CoreV1().Pods("ns").Delete(ctx, "x", metav1.DeleteOptions{}); !errors.As(err, &status) {
		t.Errorf("deleting: %v", err)
	}
}
