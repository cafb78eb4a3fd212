package kube_test

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/state"
)

// heldWatch delivers the events of the policies' watch only when it is released.
type heldWatch struct {
	apiwatch.Interface
	events chan apiwatch.Event
}

func (h heldWatch) ResultChan() <-chan apiwatch.Event { return h.events }

// holdPolicies makes the client's watch of NetworkPolicies wait for the channel to be closed.
func holdPolicies(client *fake.Clientset, released <-chan struct{}) {
	client.PrependWatchReactor("networkpolicies", func(a clienttesting.Action) (bool, apiwatch.Interface, error) {
		w, err := client.Tracker().Watch(a.GetResource(), a.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		h := heldWatch{w, make(chan apiwatch.Event)}
		go func() {
			defer close(h.events)
			<-released
			for e := range w.ResultChan() {
				h.events <- e
			}
		}()
		return true, h, nil
	})
}

func podOn(node, name string, uid types.UID) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: uid},
		Spec:   corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: corev1.PodPending}}
}

func namedPolicy(name, version string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name,
		ResourceVersion: version}}
}

// recorded are the changes of pods and policies that a watcher has emitted.
type recorded struct {
	mu   sync.Mutex
	list []string
}

func (r *recorded) emit(c state.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch c := c.(type) {
	case state.SetPod:
		r.list = append(r.list, "pod "+c.Pod.Name+" "+c.Pod.UID+" "+c.Pod.Labels["app"])
	case state.DeletePod:
		r.list = append(r.list, "no pod "+c.Name)
	case state.SetPolicy:
		r.list = append(r.list, "policy "+c.Policy.Name)
	}
}

func (r *recorded) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.list, ", ")
}

func (r *recorded) has(text string) bool { return strings.Contains(r.String()+",", text+",") }

// TestPodWaitsForPolicies: a pod of this node that starts is not handed on before the policies of its namespace that
// exist by then, whatever the watch of the policies does. Pods of other nodes and those that run do not wait.
func TestPodWaitsForPolicies(t *testing.T) {
	running := podOn("n1", "running", "u")
	running.Status.Phase = corev1.PodRunning
	client := fakekube.New(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}, running)
	released := make(chan struct{})
	holdPolicies(client, released)
	var r recorded
	w := watch(t, client, r.emit)
	synced(t, w)
	testenv.Until(t, "the pod that runs", func() bool { return r.String() == "pod running u " })
	ctx := t.Context()
	create := func(p *corev1.Pod) {
		t.Helper()
		if _, err := client.CoreV1().Pods("ns").Create(ctx, p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.NetworkingV1().NetworkPolicies("ns").Create(ctx, namedPolicy("isolated", "7"),
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	create(podOn("", "web", "1")) // not scheduled yet
	create(podOn("n1", "gone", "2"))
	create(podOn("n2", "remote", "3"))
	bound := podOn("n1", "web", "1")
	bound.Labels = map[string]string{"app": "web"}
	if _, err := client.CoreV1().Pods("ns").Update(ctx, bound, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.CoreV1().Pods("ns").Delete(ctx, "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "the remote pod and the deletion", func() bool {
		return r.has("pod remote 3 ") && r.has("no pod gone")
	})
	testenv.Until(t, "the pod is held, and why is known", func() bool {
		n, _ := w.Held()
		return n == 1
	})
	time.Sleep(300 * time.Millisecond)
	if r.has("pod web 1 ") || r.has("pod web 1 web") || r.has("pod gone 2 ") || r.has("policy isolated") {
		t.Fatalf("while the policies' watch is held: %s", &r)
	}
	close(released)
	testenv.Until(t, "the pod is handed on", func() bool { return r.has("pod web 1 web") })
	if text := r.String(); strings.Index(text, "policy isolated") > strings.Index(text, "pod web") ||
		r.has("pod gone 2 ") {
		t.Errorf("changes %s", text)
	}
	if n, err := w.Held(); n != 0 || err != nil {
		t.Errorf("held are %d, %v", n, err)
	}
	// What passed once is not held again, and another pod of the name is.
	bound.Labels["app"] = "else"
	if _, err := client.CoreV1().Pods("ns").Update(ctx, bound, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "an update", func() bool { return r.has("pod web 1 else") })
	lists := func() (n int) {
		for _, a := range client.Actions() {
			if a.Matches("list", "networkpolicies") && a.GetNamespace() == "ns" {
				n++
			}
		}
		return n
	}
	before := lists()
	if _, err := client.CoreV1().Pods("ns").Update(ctx, podOn("n1", "web", "4"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "the next pod of the name", func() bool { return r.has("pod web 4 ") })
	if after := lists(); after != before+1 {
		t.Errorf("%d questions for one pod", after-before)
	}
}

// TestPodWaitsWhilePoliciesCannotBeRead: a permission that is withdrawn is named, and does not open pods.
func TestPodWaitsWhilePoliciesCannotBeRead(t *testing.T) {
	t.Parallel()
	client := fakekube.New(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}})
	var refused atomic.Bool
	refusal := apierrors.NewForbidden(schema.GroupResource{Group: "networking.k8s.io", Resource: "networkpolicies"}, "",
		errors.New("not allowed"))
	client.PrependReactor("list", "networkpolicies", func(clienttesting.Action) (bool, runtime.Object, error) {
		return refused.Load(), nil, refusal
	})
	watches := make(chan apiwatch.Interface, 100)
	client.PrependWatchReactor("networkpolicies", func(a clienttesting.Action) (bool, apiwatch.Interface, error) {
		if refused.Load() {
			return true, nil, refusal
		}
		w, err := client.Tracker().Watch(a.GetResource(), "")
		watches <- w
		return true, w, err
	})
	var r recorded
	w := watch(t, client, r.emit)
	synced(t, w)
	failing := func() string {
		var list []string
		for _, f := range w.Feeds() {
			if f.Err != nil {
				list = append(list, f.Resource)
			}
		}
		return strings.Join(list, " ")
	}
	refused.Store(true)
	(<-watches).Stop() // as the API server does every few minutes
	if _, err := client.CoreV1().Pods("ns").Create(t.Context(), podOn("n1", "web", "1"),
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const lag = "no news of networkpolicies for more than 30s: "
	testenv.Until(t, "the refusal is named a minute later", func() bool {
		err := w.LagAt(time.Now().Add(time.Minute))
		return failing() == "networkpolicies" && err != nil && strings.HasPrefix(err.Error(), lag) &&
			strings.HasSuffix(err.Error(), refusal.Error())
	})
	if err := early(w); err != nil {
		t.Error(err)
	}
	testenv.Until(t, "the pod is held", func() bool { n, _ := w.Held(); return n == 1 })
	time.Sleep(300 * time.Millisecond)
	const why = "pod ns/web and others that start there stay closed until the policies are known: list the " +
		"NetworkPolicies of namespace ns: " +
		"networkpolicies.networking.k8s.io is forbidden: not allowed"
	if n, err := w.HeldAt(time.Now().Add(10 * time.Second)); n != 1 || err == nil || err.Error() != why ||
		r.String() != "" {
		t.Errorf("held %d, %v; changes %q", n, err, &r)
	}
	refused.Store(false)
	testenv.Until(t, "with the permission", func() bool {
		n, err := w.Held()
		return n == 0 && err == nil && r.String() == "pod web 1 " && failing() == ""
	})
	later := time.Now().Add(silentAfter)
	const silent = "no news of nodes, services, services of other proxies, endpointslices, pods, namespaces, " +
		"networkpolicies, servicecidrs for more than 2m30s, although"
	if err := w.LagAt(later); err == nil || !strings.HasPrefix(err.Error(), silent) {
		t.Errorf("after minutes of silence: %v", err)
	}
}

const silentAfter = 3 * time.Minute

// TestBookmarksAreNews: an API server that has nothing to tell says so.
func TestBookmarksAreNews(t *testing.T) {
	client := fakekube.New()
	policies := apiwatch.NewFake()
	client.PrependWatchReactor("networkpolicies", clienttesting.DefaultWatchReactor(policies, nil))
	w := watch(t, client, func(state.Change) {})
	synced(t, w)
	heard := func() time.Time {
		for _, f := range w.Feeds() {
			if f.Resource == "networkpolicies" {
				return f.Heard
			}
		}
		return time.Time{}
	}
	time.Sleep(20 * time.Millisecond)
	before := heard()
	policies.Action(apiwatch.Bookmark, namedPolicy("", "9"))
	testenv.Until(t, "the bookmark", func() bool { return heard().After(before) })
}

// TestVersionsCompare: as KEP-5504 has it.
func TestVersionsCompare(t *testing.T) {
	for _, tc := range []struct {
		have, want string
		reached    bool
	}{
		{"", "", true}, {"7", "7", true}, {"8", "7", true}, {"7", "8", false}, {"10", "9", true}, {"9", "10", false},
		{"99999999999999999999999", "100000000000000000000000", false}, {"x", "x", true}, {"x", "1", false}, {"1", "x",
			false},
		{"", "1", false}, {"1", "", false}, {"07", "6", false},
	} {
		if got := kube.Reached(tc.have, tc.want); got != tc.reached {
			t.Errorf("%q has reached %q: %v", tc.have, tc.want, got)
		}
	}
}
