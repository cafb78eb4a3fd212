package programmer_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/programmer"
)

// lateWatch delivers nothing before it is released.
type lateWatch struct {
	watch.Interface
	events chan watch.Event
}

func (w lateWatch) ResultChan() <-chan watch.Event { return w.events }

// TestPodIsClosedUntilItsPoliciesAreIn: a pod and the policy that isolates it are made at once, and the watch of the
// policies is behind. The pod's interface has no flows that forward, and CNI ADD waits. When the policy comes, both end
// within a second.
func TestPodIsClosedUntilItsPoliciesAreIn(t *testing.T) {
	client := fakekube.New(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.30.0.1"}}}},
	)
	released := make(chan struct{})
	client.PrependWatchReactor("networkpolicies", func(a clienttesting.Action) (bool, watch.Interface, error) {
		w, err := client.Tracker().Watch(a.GetResource(), a.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		late := lateWatch{w, make(chan watch.Event)}
		go func() {
			defer close(late.events)
			<-released
			for e := range w.ResultChan() {
				late.events <- e
			}
		}()
		return true, late, nil
	})
	b := &bench{t: t, sw: ofswitch.NewFake(flows.Check)}
	log := slog.New(slog.DiscardHandler)
	b.Loop = programmer.New(programmer.Options{Node: "n1", Switch: b.sw, Log: log})
	w, err := kube.NewWatcher(client, "n1", b.Submit, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{}, 2)
	go func() { w.Run(ctx); ended <- struct{}{} }()
	t.Cleanup(func() { stop(); <-ended; <-ended })
	if err := w.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
	go func() { _ = b.Run(ctx); ended <- struct{}{} }()

	isolated := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "isolated"}}
	if _, err := client.NetworkingV1().NetworkPolicies("ns").Create(ctx, isolated, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	web := pod("web", 2)
	web.Pod.UID = "u"
	object := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u"}, Spec: corev1.PodSpec{
		NodeName: "n1"},
		Status: corev1.PodStatus{Phase: corev1.PodPending}}
	if _, err := client.CoreV1().Pods("ns").Create(ctx, object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	added := make(chan error, 1)
	go func() { added <- b.Loop.Attach(ctx, web) }()
	eventually(t, "the pod is attached and unknown", func() bool { return b.View().Unknown[web.Key()] })
	select {
	case err := <-added:
		t.Fatalf("ADD returned %v before the policy was known", err)
	case <-time.After(500 * time.Millisecond):
	}
	if b.has("nw_dst=10.244.1.2") {
		t.Error("the pod has flows that forward before its policy is known")
	}
	if err := b.Check(ctx, web.Key()); err == nil || !strings.Contains(err.Error(), "is closed") {
		t.Errorf("programmed: %v", err)
	}
	close(released)
	if err := <-added; err != nil {
		t.Fatal(err)
	}
	if view := b.View(); len(view.Policies) != 1 || view.Unknown[web.Key()] {
		t.Errorf("policies %v, unknown %v", view.Policies, view.Unknown)
	}
}
