package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	k8stesting "k8s.io/client-go/testing"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/state"
)

func service(name, clusterIP string, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func slice(name, service string, addresses ...string) *discoveryv1.EndpointSlice {
	port, protocol, portName, node := int32(8080), corev1.ProtocolTCP, "http", "n1"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{
			discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Protocol: &protocol, Port: &port}},
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, NodeName: &node})
	}
	return s
}

// view takes changes in as the agent's loop does.
type view struct {
	mu      sync.Mutex
	store   *state.Store
	changes int
}

func newView() *view { return &view{store: state.New("n1")} }

func (v *view) emit(c state.Change) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changes++
	v.store.Apply(c)
}

// services are the endpoints of each Service's first port.
func (v *view) services() map[string]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	snapshot, _ := v.store.Take()
	out := map[string]string{}
	for name, s := range snapshot.Services {
		var eps []string
		for _, e := range s.Ports[0].Cluster {
			eps = append(eps, netip.AddrPortFrom(e.Addr, e.Port).String())
		}
		out[name] = fmt.Sprint(eps)
	}
	return out
}

func (v *view) cidrs() []netip.Prefix {
	v.mu.Lock()
	defer v.mu.Unlock()
	snapshot, _ := v.store.Take()
	return snapshot.ServiceCIDRs
}

// watch runs a watcher until the test ends.
func watch(t *testing.T, client kube.Client, emit func(state.Change), prepare ...func(*kube.Watcher)) *kube.Watcher {
	t.Helper()
	w, err := kube.NewWatcher(client, "n1", emit, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range prepare {
		f(w)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); w.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return w
}

func synced(t *testing.T, w *kube.Watcher) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience(time.Minute))
	defer cancel()
	if err := w.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestServicesOfACluster follows Services from the API: those that are there at the start are emitted when WaitSynced
// returns, those of other proxies never.
func TestServicesOfACluster(t *testing.T) {
	labelled := func(label string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Labels = map[string]string{label: "x"} }
	}
	hinted := func(name, service, zone, address string) *discoveryv1.EndpointSlice {
		s := slice(name, service, address)
		s.Endpoints[0].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
		return s
	}
	orphan := slice("no-label", "", "10.244.0.9")
	orphan.Labels = nil
	node := object("n1", nil)
	node.Labels = map[string]string{corev1.LabelTopologyZone: "z1"}
	client := fakekube.New(node,
		service("a", "10.96.0.1"), hinted("a-1", "a", "z1", "10.244.0.1"), hinted("a-2", "a", "z2", "10.244.0.2"),
		service("other-proxy", "10.96.0.2", labelled("service.kubernetes.io/service-proxy-name")),
		service("headless-by-label", "10.96.0.3", labelled("service.kubernetes.io/headless")),
		service("headless", corev1.ClusterIPNone), slice("headless-1", "headless", "10.244.0.3"), orphan,
		service("bad", "10.96.0.4", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"x"} }))
	v := newView()
	w := watch(t, client, v.emit)
	synced(t, w)
	if diff := cmp.Diff(map[string]string{"ns/a": "[10.244.0.1:8080]", "ns/bad": "[]"}, v.services()); diff != "" {
		t.Errorf("after the start (-want +got):\n%s", diff)
	}
	v.mu.Lock()
	if diff := cmp.Diff(map[string]string{"ns/bad": `spec.externalIPs: invalid address "x"`},
		v.store.Snapshot().ServiceProblems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	before := v.changes
	v.mu.Unlock()
	ctx := t.Context()
	// Only annotations, and what nodes do not read: nothing is emitted, and the change after it is one.
	hint := hinted("a-2", "a", "z2", "10.244.0.2")
	hint.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: "now"}
	if _, err := client.DiscoveryV1().EndpointSlices("ns").Update(ctx, hint, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	hint.Endpoints[0].Addresses[0] = "10.244.0.3"
	if _, err := client.DiscoveryV1().EndpointSlices("ns").Update(ctx, hint.DeepCopy(),
		metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "another endpoint", func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.changes > before
	})
	v.mu.Lock()
	if v.changes != before+1 {
		t.Errorf("%d changes are emitted, want 1", v.changes-before)
	}
	v.mu.Unlock()
	node = node.DeepCopy()
	node.Labels[corev1.LabelTopologyZone] = "z2"
	if _, err := client.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "the endpoints of the node's new zone", func() bool {
		return v.services()["ns/a"] == "[10.244.0.3:8080]"
	})
	if err := client.DiscoveryV1().EndpointSlices("ns").Delete(ctx, "a-2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "the endpoints without a slice", func() bool {
		return v.services()["ns/a"] == "[10.244.0.1:8080]"
	})
	if err := client.CoreV1().Services("ns").Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "a Service that is gone", func() bool { _, ok := v.services()["ns/a"]; return !ok })
}

// TestServicesSyncedMeansEmitted is TestSyncedMeansEmitted for Services: with a slow receiver all of them have their
// endpoints when WaitSynced returns.
func TestServicesSyncedMeansEmitted(t *testing.T) {
	const count = 300
	client := fakekube.New()
	for i := range count {
		for _, o := range []k8sruntime.Object{service(fmt.Sprint("s", i), fmt.Sprintf("10.96.%d.%d", i/200, i%200+1)),
			slice(fmt.Sprint("s", i), fmt.Sprint("s", i), "10.244.0.1")} {
			if err := client.Tracker().Add(o); err != nil {
				t.Fatal(err)
			}
		}
	}
	v := newView()
	synced(t, watch(t, client, func(c state.Change) {
		time.Sleep(100 * time.Microsecond) // a busy machine
		v.emit(c)
	}))
	complete := 0
	for _, endpoints := range v.services() {
		if endpoints == "[10.244.0.1:8080]" {
			complete++
		}
	}
	if complete != count {
		t.Errorf("synced with %d of %d Services complete", complete, count)
	}
}

func TestServiceCIDRs(t *testing.T) {
	cidr := func(name string, cidrs ...string) *networkingv1.ServiceCIDR {
		return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{
			CIDRs: cidrs}}
	}
	client := fakekube.New(cidr("kubernetes", "10.96.0.0/12", "fd10:96::/108"))
	v := newView()
	synced(t, watch(t, client, v.emit))
	if got, want := v.cidrs(), cidrs("10.96.0.0/12", "fd10:96::/108"); !slices.Equal(got, want) {
		t.Errorf("ranges %v, want %v", got, want)
	}
	ctx := t.Context()
	if _, err := client.NetworkingV1().ServiceCIDRs().Create(ctx, cidr("more", "10.12.0.0/16", "10.96.0.0/12", "0.0.0.0/0",
		"?"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "one more range", func() bool {
		return slices.Equal(v.cidrs(), cidrs("10.12.0.0/16", "10.96.0.0/12", "fd10:96::/108"))
	})
	if err := client.NetworkingV1().ServiceCIDRs().Delete(ctx, "kubernetes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "one less", func() bool {
		return slices.Equal(v.cidrs(), cidrs("10.12.0.0/16", "10.96.0.0/12"))
	})
}

// TestNoServiceCIDRs: an API server without the kind does not hold up the start, and says so once. One that cannot be
// asked does.
func TestNoServiceCIDRs(t *testing.T) {
	client := fakekube.New(service("a", "10.96.0.1"))
	var broken atomic.Bool
	broken.Store(true)
	var asked atomic.Int32
	client.PrependReactor("list", "servicecidrs", func(k8stesting.Action) (bool, k8sruntime.Object, error) {
		asked.Add(1)
		if broken.Load() {
			return true, nil, errors.New("the API server is busy")
		}
		return true, nil, apierrors.NewNotFound(schema.GroupResource{Group: "networking.k8s.io", Resource: "servicecidrs"},
			"")
	})
	v := newView()
	w := watch(t, client, v.emit)
	testenv.Until(t, "the question for the kind", func() bool { return asked.Load() > 0 })
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := w.WaitSynced(short); err == nil {
		t.Error("synced without an answer")
	}
	broken.Store(false)
	synced(t, w)
	if got := v.cidrs(); got != nil {
		t.Errorf("ranges %v out of nothing", got)
	}
	if _, ok := v.services()["ns/a"]; !ok {
		t.Error("the Service is missing")
	}
	before := asked.Load()
	if _, err := client.CoreV1().Services("ns").Create(t.Context(), service("b", "10.96.0.2"),
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "another Service", func() bool { _, ok := v.services()["ns/b"]; return ok })
	if asked.Load() != before {
		t.Error("the API server is asked again for what it does not have")
	}
}
