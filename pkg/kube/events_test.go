package kube_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
)

// TestWarn: an Event names the object that flows exist for, with the UID by which kubectl describe looks for it.
func TestWarn(t *testing.T) {
	client := fake.NewClientset(
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "pod-uid"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "service-uid"}},
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "policy-uid"}},
	)
	r := kube.NewReporter(client, "n1")
	defer r.Close()
	want := map[string]model.Owner{
		"Pod shop/web pod-uid":              model.PodOwner(model.Attachment{Pod: model.PodRef{Namespace: "shop", Name: "web"}}),
		"Service shop/web service-uid":      model.ServiceOwner("shop/web"),
		"NetworkPolicy shop/web policy-uid": model.PolicyOwner("shop/web"),
		"NetworkPolicy shop/gone ":          model.PolicyOwner("shop/gone"),
		"Node /n2 n2":                       model.NodeOwner("n2"),
		"Node /n1 n1":                       model.PipelineOwner,
	}
	for _, o := range want {
		r.Warn(o, "Reason", "what is wrong with "+o.String())
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		list, err := client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
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
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no Event about %q, only %v", missing, got)
		}
	}
}
