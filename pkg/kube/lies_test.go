package kube_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/state"
)

// silence is longer than the second that the informers call a very short watch, and list again after.
const silence = 1500 * time.Millisecond

// liar is an API server that may lie, and the watcher that believes it or not.
type liar struct {
	t      *testing.T
	store  *apiserver.Store
	server *apiserver.Server
	w      *kube.Watcher

	mu sync.Mutex
	// known are the objects that were emitted; changed are the differences, each once, since the last look.
	known   map[string]bool
	changed []string
}

func (l *liar) emit(c state.Change) {
	switch c := c.(type) {
	case state.SetPod:
		l.note("pod "+c.Pod.Name, true)
	case state.DeletePod:
		l.note("pod "+c.Name, false)
	case state.SetPolicy:
		l.note("policy "+c.Policy.Name, true)
	case state.DeletePolicy:
		l.note("policy "+c.ID.Name, false)
	case state.SetNode:
		l.note("node "+c.Node.Name, true)
	case state.DeleteNode:
		l.note("node "+c.Name, false)
	case state.SetNamespace:
		l.note("namespace "+c.Namespace.Name, true)
	case state.DeleteNamespace:
		l.note("namespace "+c.Name, false)
	}
}

func (l *liar) note(object string, there bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known[object] == there {
		return
	}
	l.known[object] = there
	if !there {
		object = "no " + object
	}
	l.changed = append(l.changed, object)
}

// changes are those since the last call, in order of their names.
func (l *liar) changes() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.Join(slices.Sorted(slices.Values(l.changed)), ", ")
	l.changed = nil
	return text
}

// eventually waits until exactly these changes have come. Informers pause for up to a minute between their attempts.
func (l *liar) eventually(what, want string) {
	l.t.Helper()
	var all []string
	testenv.Eventually(l.t, time.Minute, func() error {
		if text := l.changes(); text != "" {
			all = append(all, strings.Split(text, ", ")...)
			slices.Sort(all)
		}
		if got := strings.Join(all, ", "); got != want {
			return fmt.Errorf("%s: %q, want %q; %+v", what, got, want, l.w.Feeds())
		}
		return nil
	})
}

// startLiar starts them with an object of each resource that policies need.
func startLiar(t *testing.T, silence time.Duration) *liar {
	t.Helper()
	l := &liar{t: t, store: apiserver.NewStore(), known: map[string]bool{}}
	l.server = apiserver.NewServer(l.store)
	web := podOn("n1", "web", "u")
	web.Status.Phase = corev1.PodRunning
	l.apply(apiserver.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	l.apply(apiserver.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}})
	l.apply(apiserver.Pods, web)
	l.policies("p")
	served := httptest.NewServer(l.server)
	t.Cleanup(func() { served.CloseClientConnections(); served.Close() })
	client, err := kubernetes.NewForConfig(&rest.Config{Host: served.URL, QPS: 1000, Burst: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if l.w, err = kube.NewWatcher(client, "n1", l.emit, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	l.w.SetSilence(silence)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); l.w.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	synced(t, l.w)
	l.eventually("at the start", "namespace ns, node n1, pod web, policy p")
	return l
}

func (l *liar) apply(resource string, objects ...apiserver.Object) {
	l.t.Helper()
	if err := l.store.Apply(resource, objects); err != nil {
		l.t.Fatal(err)
	}
}

// policies makes the API server's policies these.
func (l *liar) policies(names ...string) {
	l.t.Helper()
	var list []apiserver.Object
	for _, name := range names {
		list = append(list, &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}})
	}
	l.apply(apiserver.NetworkPolicies, list...)
}

func (l *liar) lie(lie apiserver.Lie) {
	l.t.Helper()
	if err := l.server.Lie(lie); err != nil {
		l.t.Fatal(err)
	}
}

// all are the resources as the watcher's problems name them.
const all = "nodes, services, services of other proxies, endpointslices, pods, namespaces, networkpolicies, " +
	"servicecidrs, clusternetworkpolicies"

func everywhere(f apiserver.Fault) apiserver.Lie {
	l := apiserver.Lie{Resources: map[string]apiserver.Fault{}}
	for _, resource := range []string{
		apiserver.Nodes, apiserver.Namespaces, apiserver.Pods, apiserver.Services, apiserver.EndpointSlices,
		apiserver.NetworkPolicies, apiserver.ServiceCIDRs, apiserver.ClusterNetworkPolicies,
	} {
		l.Resources[resource] = f
	}
	return l
}

// TestErrorsAreNotNone: an API server that answers with errors takes nothing away, and within a minute the resources
// that lag are named.
func TestErrorsAreNotNone(t *testing.T) {
	if testing.Short() {
		t.Skip("the client's pauses are long: left to make unit")
	}
	t.Parallel()
	for _, fault := range []apiserver.Fault{apiserver.Forbidden, apiserver.Cut, apiserver.Closed, apiserver.Expired} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			l := startLiar(t, time.Hour)
			l.lie(everywhere(fault))
			failing := func() []string {
				errs := map[string]bool{}
				for _, f := range l.w.Feeds() {
					if f.Err != nil {
						errs[f.Resource] = true
					}
				}
				return slices.Sorted(maps.Keys(errs))
			}
			// The client repeats a request that ends without an answer ten times, a second apart.
			testenv.Eventually(t, time.Minute, func() error {
				if list := failing(); len(list) < len(strings.Split(all, ", ")) {
					return fmt.Errorf("only these fail: %v", list)
				}
				return nil
			})
			time.Sleep(2 * time.Second) // several lists and watches
			if got := l.changes(); got != "" {
				t.Errorf("changes %q", got)
			}
			if err := early(l.w); err != nil {
				t.Error(err)
			}
			err := l.w.LagAt(time.Now().Add(time.Minute))
			for _, resource := range strings.Split(all, ", ") {
				if err == nil || !strings.Contains(err.Error(), resource) {
					t.Fatalf("a minute later, without %s: %v", resource, err)
				}
			}
			if len(failing()) != len(strings.Split(all, ", ")) {
				t.Errorf("the faults last, and only these count: %v", failing())
			}
			l.lie(apiserver.Lie{})
			l.policies("p", "q")
			l.eventually("the truth", "policy q")
			testenv.Eventually(t, time.Minute, func() error {
				if list := failing(); len(list) > 0 {
					return fmt.Errorf("with the truth these fail: %v", list)
				}
				return nil
			})
		})
	}
}

// early is what the watcher says 29 s after the first error, which is too early for a problem. On a busy machine it may
// take longer than that until a test looks.
func early(w *kube.Watcher) error {
	now, longest := time.Now(), time.Duration(0)
	for _, f := range w.Feeds() {
		longest = max(longest, f.Failing)
	}
	if err := w.LagAt(now.Add(29*time.Second - longest)); err != nil {
		return fmt.Errorf("29 s after the first error: %w", err)
	}
	return nil
}

// TestSilentWatches: watches that are open and send nothing change nothing and are named, until something comes.
func TestSilentWatches(t *testing.T) {
	t.Parallel()
	l := startLiar(t, silence)
	l.lie(everywhere(apiserver.Stalled))
	l.policies("p", "q")
	heard := func() (last time.Time) {
		for _, f := range l.w.Feeds() {
			if f.Heard.After(last) {
				last = f.Heard
			}
		}
		return last
	}
	testenv.Until(t, "each watch is found silent", func() bool {
		return !slices.ContainsFunc(l.w.Feeds(), func(f kube.FeedStatus) bool { return f.Err == nil })
	})
	before := heard()
	time.Sleep(2 * time.Second) // several watches
	if got := l.changes(); got != "" || heard() != before {
		t.Errorf("changes %q; news from %s, before %s", got, heard(), before)
	}
	const named = "no news of " + all + " for more than 2m30s, although the API server sends a bookmark every minute"
	if err := l.w.LagAt(time.Now().Add(3 * time.Minute)); err == nil || err.Error() != named {
		t.Errorf("named as %v", err)
	}
	l.lie(apiserver.Lie{})
	l.eventually("the truth", "policy q")
}

// TestVersionsGoBack: an API server that comes back with an older state, from a backup, is followed as soon as its
// silence is noticed, and so is the newer state when that comes back. What is in both is not touched.
func TestVersionsGoBack(t *testing.T) {
	t.Parallel()
	l := startLiar(t, silence)
	l.policies("p", "old")
	l.eventually("another policy", "policy old")
	l.server.Keep()
	l.policies("p", "new")
	l.eventually("the newer state", "no policy old, policy new")
	l.lie(apiserver.Lie{Older: true})
	l.eventually("the older state", "no policy new, policy old")
	l.lie(apiserver.Lie{})
	l.eventually("the newer state again", "no policy old, policy new")
	time.Sleep(time.Second)
	if got := l.changes(); got != "" {
		t.Errorf("then %s", got)
	}
}

// TestEmptyLists: none is an answer: the objects are gone until the API server has them again.
func TestEmptyLists(t *testing.T) {
	t.Parallel()
	for resource, object := range map[string]string{
		apiserver.Nodes: "node n1", apiserver.Namespaces: "namespace ns", apiserver.Pods: "pod web",
		apiserver.NetworkPolicies: "policy p",
	} {
		t.Run(resource, func(t *testing.T) {
			t.Parallel()
			l := startLiar(t, time.Hour)
			l.lie(apiserver.Lie{Resources: map[string]apiserver.Fault{resource: apiserver.Empty}})
			l.eventually("an empty list", "no "+object)
			l.lie(apiserver.Lie{})
			l.eventually("the truth", object)
		})
	}
}
