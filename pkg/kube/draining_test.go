package kube

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestDraining: what the informer keeps of a Node says whether the node is about to be deleted.
func TestDraining(t *testing.T) {
	now := metav1.NewTime(time.Now())
	for what, tt := range map[string]struct {
		node corev1.Node
		want bool
	}{
		"deleted": {corev1.Node{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}}, true},
		"by the autoscaler": {corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "other"},
			{Key: toBeDeletedTaint}}}}, true},
		"cordoned": {corev1.Node{Spec: corev1.NodeSpec{Unschedulable: true, Taints: []corev1.Taint{
			{Key: corev1.TaintNodeUnschedulable}}}}, false},
		"as any other": {corev1.Node{}, false},
	} {
		obj, err := trimNode(&tt.node)
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := obj.(*corev1.Node); !ok || draining(n) != tt.want {
			t.Errorf("a node that is %s: draining %t, want %t", what, !tt.want, tt.want)
		}
	}
}
