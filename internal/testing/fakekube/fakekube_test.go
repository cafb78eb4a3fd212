package fakekube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// TestWatchFollowsList: a watch tells what happened since the list, and the next one does not tell it again.
func TestWatchFollowsList(t *testing.T) {
	client := New(named("a"))
	nodes := client.CoreV1().Nodes()
	for range 2 { // a list that no watch follows is forgotten
		if list, err := nodes.List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 1 {
			t.Fatal(list, err)
		}
	}
	if _, err := nodes.Create(t.Context(), named("b"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	first, err := nodes.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := nodes.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := nodes.Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	next := func(events <-chan watch.Event) string {
		e := <-events
		node, ok := e.Object.(*corev1.Node)
		if !ok {
			t.Fatalf("the watch tells of a %T", e.Object)
		}
		return string(e.Type) + " " + node.Name
	}
	for _, want := range []string{"ADDED b", "DELETED a"} {
		if got := next(first.ResultChan()); got != want {
			t.Errorf("the watch after the list tells %q, want %q", got, want)
		}
	}
	if got := next(second.ResultChan()); got != "DELETED a" {
		t.Errorf("a watch without a list tells %q first", got)
	}
}

func named(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
