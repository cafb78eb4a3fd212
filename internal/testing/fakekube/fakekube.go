// Package fakekube is client-go's fake API server without its gap: an API server's watch continues from the list before
// it, the fake one begins with what comes after the watch. What changed in between, an informer would never learn.
package fakekube

import (
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// New makes a client of an API server that has these objects. A watch continues from the last list of its resource and
// namespace; it may repeat what is in the list.
func New(objects ...runtime.Object) *fake.Clientset {
	type list struct {
		resource  schema.GroupVersionResource
		namespace string
	}
	var mu sync.Mutex
	begun := map[list]watch.Interface{} // by lists, for the watches that follow
	client := fake.NewClientset(objects...)
	client.PrependReactor("list", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		w, err := client.Tracker().Watch(a.GetResource(), a.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		at := list{a.GetResource(), a.GetNamespace()}
		if old := begun[at]; old != nil {
			old.Stop()
		}
		begun[at] = w
		return false, nil, nil // the list itself is the tracker's
	})
	client.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		mu.Lock()
		defer mu.Unlock()
		at := list{a.GetResource(), a.GetNamespace()}
		if w := begun[at]; w != nil {
			delete(begun, at)
			return true, w, nil
		}
		w, err := client.Tracker().Watch(a.GetResource(), a.GetNamespace())
		return true, w, err
	})
	return client
}
