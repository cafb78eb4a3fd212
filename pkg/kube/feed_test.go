package kube

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// TestWatchThatEndsAtOnce: a watch whose connection closes without an answer is an error of the resource; one that the
// informer stops, or that has told something, is none.
func TestWatchThatEndsAtOnce(t *testing.T) {
	told := watch.NewFakeWithChanSize(1, false)
	told.Add(&corev1.Pod{})
	stopped := watch.NewFake()
	for name, tc := range map[string]struct {
		w    watch.Interface
		stop bool
		want error
	}{
		"closed":  {watch.NewEmptyWatch(), false, errEnded},
		"told":    {told, false, nil},
		"stopped": {stopped, true, nil},
	} {
		f := &feed{resource: "pods", silence: time.Hour}
		s := source(f, "", func(context.Context, metav1.ListOptions) (*corev1.PodList, error) {
			return &corev1.PodList{}, nil
		},
			func(context.Context, metav1.ListOptions) (watch.Interface, error) { return tc.w, nil })
		w, err := s.WatchFuncWithContext(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if tc.stop {
			w.Stop()
		}
		if name == "told" {
			<-w.ResultChan()
			told.Stop()
		}
		for range w.ResultChan() {
			t.Errorf("%s: an event", name)
		}
		if got := f.status(time.Now()).Err; !errors.Is(got, tc.want) {
			t.Errorf("%s: error %v, want %v", name, got, tc.want)
		}
	}
}
