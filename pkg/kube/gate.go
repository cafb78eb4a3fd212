package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

const (
	// confirmTimeout bounds one question to the API server.
	confirmTimeout = 5 * time.Second
	// confirmPause is the pause before the question is asked again, and grows to maxConfirmPause.
	confirmPause    = 100 * time.Millisecond
	maxConfirmPause = 5 * time.Second
	// heldAfter is how long a pod may be held back before that is a problem.
	heldAfter = 5 * time.Second
)

// gate holds back the pods of this node that start: to the rest of the agent they are not known, so they stay closed,
// until the NetworkPolicies of their namespace, and the ClusterNetworkPolicies, that the API server has by then were
// handed on. Pods and policies come by separate watches, and that of the policies may be behind or dead.
//
// The API server is asked for the policies, once for all pods that wait in a namespace. Versions of one
// resource can be compared (KEP-5504), those of pods and policies cannot. An error keeps the pods closed. Pods that ran
// when the agent started are not held back: their flows are in the switch.
//
// Any goroutine may use it. What it emits it emits under its lock, so that an old state of a pod never comes after a
// newer one.
type gate struct {
	node   string
	client kubernetes.Interface
	emit   func(state.Change)
	log    *slog.Logger
	// start runs a function on a goroutine that ends with the watcher. It is set before the informers run.
	start func(func(context.Context))
	// cluster returns the versions of the ClusterNetworkPolicies that the API server has now. It is set like start.
	cluster func(ctx context.Context) (map[model.PolicyID]string, error)

	mu         sync.Mutex
	policies   map[model.PolicyID]string // versions of those handed on
	namespaces map[string]bool           // handed on
	passed     map[string]string         // UIDs of this node's pods that were let through, by namespace/name
	held       map[string]*heldPods
	changed    chan struct{} // closed with the next policy or namespace, while a namespace waits
}

// heldPods are the pods of one namespace that wait.
type heldPods struct {
	pods map[string]heldPod // by name
	err  error              // why they wait
}

type heldPod struct {
	*pod
	since time.Time
}

func newGate(node string, client kubernetes.Interface, emit func(state.Change), log *slog.Logger) *gate {
	return &gate{
		node: node, client: client, emit: emit, log: log, policies: map[model.PolicyID]string{},
		namespaces: map[string]bool{}, passed: map[string]string{}, held: map[string]*heldPods{},
		changed: make(chan struct{}),
	}
}

// setPod hands a pod on, or holds it back. First says that it was there when the agent started.
func (g *gate) setPod(p *pod, first bool) {
	if p.pod.Node == "" {
		return // it has neither an address nor an attachment
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	key := p.Namespace + "/" + p.Name
	runs := first && (p.phase != "Pending" || len(p.pod.Addrs) > 0)
	switch {
	case p.pod.Node != g.node || p.pod.HostNetwork:
	case runs || g.passed[key] == p.pod.UID:
		g.passed[key] = p.pod.UID
	default:
		g.hold(p)
		return
	}
	g.emit(state.SetPod{Pod: p.pod})
}

func (g *gate) hold(p *pod) {
	h := g.held[p.Namespace]
	if h == nil {
		h = &heldPods{pods: map[string]heldPod{}}
		g.held[p.Namespace] = h
		g.start(func(ctx context.Context) { g.confirm(ctx, p.Namespace) })
	}
	since := time.Now()
	if before, ok := h.pods[p.Name]; ok && before.pod.pod.UID == p.pod.UID {
		since = before.since
	}
	h.pods[p.Name] = heldPod{p, since}
}

func (g *gate) deletePod(namespace, name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.passed, namespace+"/"+name)
	if h := g.held[namespace]; h != nil {
		delete(h.pods, name)
	}
	g.emit(state.DeletePod{Namespace: namespace, Name: name})
}

// setPolicy notes that a policy was handed on.
func (g *gate) setPolicy(id model.PolicyID, version string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.policies[id] = version
	g.notify()
}

func (g *gate) deletePolicy(id model.PolicyID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.policies, id)
}

// setNamespace notes that a namespace was handed on, or is gone.
func (g *gate) setNamespace(name string, known bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if known {
		g.namespaces[name] = true
		g.notify()
	} else {
		delete(g.namespaces, name)
	}
}

func (g *gate) notify() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// confirm lets the held pods of a namespace through, until none is left.
func (g *gate) confirm(ctx context.Context, namespace string) {
	pause := confirmPause
	for {
		waiting := g.waiting(namespace)
		if len(waiting) == 0 || ctx.Err() != nil {
			return
		}
		wanted, err := g.ask(ctx, namespace)
		if err == nil {
			err = g.await(ctx, wanted, max(pause, time.Second))
		}
		if err == nil {
			g.release(namespace, waiting)
			pause = confirmPause
			continue
		}
		g.complain(namespace, err)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		pause = min(2*pause, maxConfirmPause)
	}
}

// waiting returns the UIDs of the pods that wait, by name. When none does, the namespace is forgotten.
func (g *gate) waiting(namespace string) map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	uids := map[string]string{}
	for name, p := range g.held[namespace].pods {
		uids[name] = p.pod.pod.UID
	}
	if len(uids) == 0 {
		delete(g.held, namespace)
	}
	return uids
}

// ask returns the versions of the policies that a namespace and the cluster have now, and fails for a namespace that
// exists and was not handed on.
func (g *gate) ask(ctx context.Context, namespace string) (map[model.PolicyID]string, error) {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	// Without a version the answer is the newest state, not that of a cache that may be behind.
	list, err := g.client.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the NetworkPolicies of namespace %s: %w", namespace, err)
	}
	wanted, err := g.cluster(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		wanted[model.NetworkPolicy(namespace, list.Items[i].Name)] = list.Items[i].ResourceVersion
	}
	g.mu.Lock()
	known := g.namespaces[namespace]
	g.mu.Unlock()
	if known {
		return wanted, nil
	}
	switch _, err := g.client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); {
	case apierrors.IsNotFound(err):
		return wanted, nil
	case err != nil:
		return nil, fmt.Errorf("get namespace %s: %w", namespace, err)
	}
	return wanted, g.awaitThat(ctx, func() string {
		if g.namespaces[namespace] {
			return ""
		}
		return "namespace " + namespace
	})
}

// await waits until policies were handed on in at least these versions. After a while it fails: they may be gone.
func (g *gate) await(ctx context.Context, wanted map[model.PolicyID]string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return g.awaitThat(ctx, func() string {
		var missing model.PolicyID
		for id, version := range wanted {
			if have, ok := g.policies[id]; (!ok || !reached(have, version)) &&
				(missing == model.PolicyID{} || id.Compare(missing) < 0) {
				missing = id
			}
		}
		switch missing.Kind {
		case model.KindPolicy:
			return fmt.Sprintf("NetworkPolicy %s of namespace %s", missing.Name, missing.Namespace)
		case model.KindClusterPolicy:
			return "ClusterNetworkPolicy " + missing.Name
		}
		return ""
	})
}

// awaitThat waits until nothing is missing, which it asks under the lock.
func (g *gate) awaitThat(ctx context.Context, missing func() string) error {
	for {
		g.mu.Lock()
		what, changed := missing(), g.changed
		g.mu.Unlock()
		if what == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the watch has not brought %s, which exists", what)
		case <-changed:
		}
	}
}

// release lets pods through, unless they are other pods by now.
func (g *gate) release(namespace string, uids map[string]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	h := g.held[namespace]
	h.err = nil
	for name, uid := range uids {
		if p, ok := h.pods[name]; ok && p.pod.pod.UID == uid {
			delete(h.pods, name)
			g.passed[namespace+"/"+name] = uid
			g.emit(state.SetPod{Pod: p.pod.pod})
		}
	}
}

func (g *gate) complain(namespace string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held[namespace].err = err
}

// Held returns how many pods of this node wait for the policies of their namespaces, and why those do that have waited
// for longer than a start takes.
func (w *Watcher) Held() (count int, err error) { return w.gate.heldAt(time.Now()) }

func (g *gate) heldAt(now time.Time) (count int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for namespace, h := range g.held {
		count += len(h.pods)
		late := ""
		for name, p := range h.pods {
			if now.Sub(p.since) > heldAfter && (late == "" || name < late) {
				late = name
			}
		}
		if late != "" {
			why := cmp.Or(h.err, errors.New("the API server has not answered"))
			errs = append(errs, fmt.Errorf("pod %s/%s and others that start there stay closed until the policies are known: %w",
				namespace, late, why))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return count, errors.Join(errs...)
}

// reached says whether a version is at least another one of the same resource (KEP-5504: decimal numbers of any
// length, without leading zeros). Those that are not numbers can only be equal.
func reached(have, want string) bool {
	if have == want {
		return true
	}
	number := func(s string) bool {
		return s != "" && s[0] != '0' && strings.Trim(s, "0123456789") == ""
	}
	if !number(have) || !number(want) {
		return false
	}
	return len(have) > len(want) || len(have) == len(want) && have > want
}
