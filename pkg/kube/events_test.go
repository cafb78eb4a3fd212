package kube_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// TestWarn: an Event names the object that flows exist for, with the UID by which kubectl describe looks for it.
func TestWarn(t *testing.T) {
	t.Parallel()
	client := fakekube.New(
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "pod-uid"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "service-uid"}},
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "policy-uid"}},
	)
	r := kube.NewReporter(client, "n1")
	defer r.Close()
	want := map[string]model.Owner{
		"Pod shop/web pod-uid": model.PodOwner(model.Attachment{Pod: model.PodRef{Namespace: "shop",
			Name: "web"}}),
		"Service shop/web service-uid":      model.ServiceOwner("shop/web"),
		"NetworkPolicy shop/web policy-uid": model.NetworkPolicy("shop", "web").Owner(),
		"NetworkPolicy shop/gone ":          model.NetworkPolicy("shop", "gone").Owner(),
		"Node /n2 n2":                       model.NodeOwner("n2"),
		"Node /n1 n1":                       model.PipelineOwner,
	}
	for _, o := range want {
		r.Warn(o, "Reason", "what is wrong with "+o.String())
	}
	testenv.Eventually(t, 10*time.Second, func() error {
		list, err := client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		got := map[string]bool{}
		for _, e := range list.Items {
			o := e.InvolvedObject
			got[o.Kind+" "+o.Namespace+"/"+o.Name+" "+string(o.UID)] = e.Type == corev1.EventTypeWarning && e.Reason == "Reason"
		}
		missing := ""
		for text := range want {
			if !got[text] {
				missing = text
			}
		}
		if missing != "" {
			return fmt.Errorf("no Event about %q, only %v", missing, got)
		}
		return nil
	})
}

// TestOneSpeaker: of the agents that see the same fault of an object one writes the Event, whatever the order in which
// they know the nodes; objects are spread over the nodes, and a node that goes moves no other's objects.
func TestOneSpeaker(t *testing.T) {
	t.Parallel()
	client := fakekube.New(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u"}})
	nodes := []string{"n1", "n2", "n3", "n4"}
	service := model.ServiceOwner("shop/web")
	for _, n := range nodes {
		r := kube.NewReporter(client, n)
		t.Cleanup(r.Close)
		order := append(slices.DeleteFunc(slices.Clone(nodes), func(m string) bool { return m == n }), n)
		r.WarnIf(func() bool { return kube.Speaker(service, order) == n }, service, "PartIgnored", "what is wrong")
		r.Warn(service, "HealthCheckFailed", "port taken on "+n) // what only this node sees
	}
	count := func(reason string) (n int) {
		list, err := client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range list.Items {
			if list.Items[i].Reason == reason {
				n++
			}
		}
		return n
	}
	testenv.Until(t, "every node's own Event", func() bool { return count("HealthCheckFailed") == len(nodes) })
	if n := count("PartIgnored"); n != 1 {
		t.Errorf("%d Events about one fault", n)
	}
	share := map[string]int{}
	for i := range 1000 {
		o := model.ServiceOwner(fmt.Sprint("shop/", i))
		speaker := kube.Speaker(o, nodes)
		share[speaker]++
		if after := kube.Speaker(o, nodes[:3]); speaker != "n4" && after != speaker {
			t.Fatalf("without n4, %s speaks about %s instead of %s", after, o, speaker)
		}
	}
	for _, n := range nodes {
		if share[n] < 180 || share[n] > 320 {
			t.Errorf("of 1000 objects the nodes have %v", share)
		}
	}
}

// TestPolicyNodes: the nodes whose agents see what is wrong with a policy.
func TestPolicyNodes(t *testing.T) {
	labelled := func(namespace, node, name, label string) *corev1.Pod {
		p := podOn(node, name, "u")
		p.Namespace, p.Labels, p.Status.Phase = namespace, map[string]string{"app": label}, corev1.PodRunning
		return p
	}
	p := namedPolicy("web", "7")
	p.Spec.PodSelector.MatchLabels = map[string]string{"app": "web"}
	client := fakekube.New(p, labelled("ns", "n1", "a", "web"), labelled("ns", "n1", "b", "web"),
		labelled("ns", "n3", "c", "web"),
		labelled("ns", "n4", "d", "db"), labelled("else", "n5", "e", "web"), labelled("ns", "", "f", "web"))
	w := watch(t, client, func(state.Change) {})
	synced(t, w)
	testenv.Until(t, "the pods' nodes", func() bool {
		got := w.PolicyNodes(model.NetworkPolicy("ns", "web"))
		slices.Sort(got)
		return slices.Equal(got, []string{"n1", "n3"})
	})
	if got := w.PolicyNodes(model.NetworkPolicy("ns", "none")); len(got) > 0 {
		t.Errorf("nodes of a policy that is not there: %v", got)
	}
}
