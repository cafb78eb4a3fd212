package kube_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/pkg/kube"
)

// BenchmarkInitialServices loads 10,000 Services with two endpoints each and reports what they take: B/service is what
// the watcher holds, model-B/service what the store has beside it.
func BenchmarkInitialServices(b *testing.B) {
	const count = 10000
	client := fakekube.New()
	for i := range count {
		name := fmt.Sprintf("service-%d", i)
		s := service(name, fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255))
		s.Labels, s.Spec.Selector = map[string]string{"app": name}, map[string]string{"app": name}
		e := slice(name+"-abcde", name, fmt.Sprintf("10.244.%d.%d", i>>8&255, i&255), fmt.Sprintf("10.245.%d.%d", i>>8&255,
			i&255))
		for j := range e.Endpoints {
			e.Endpoints[j].TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: "ns",
				Name: fmt.Sprintf("%s-7d4b9c6f5-x%d", name, j)}
		}
		for _, o := range []k8sruntime.Object{s, e} {
			if err := client.Tracker().Add(o); err != nil {
				b.Fatal(err)
			}
		}
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var watcher, snapshot int64
	for b.Loop() {
		b.StopTimer()
		before := heap()
		b.StartTimer()
		v := newView()
		w, err := kube.NewWatcher(client, "n1", v.emit, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		ctx, stop := context.WithCancel(b.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); w.Run(ctx) }()
		if err := w.WaitSynced(ctx); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if got := len(v.services()); got != count {
			b.Fatalf("%d of %d Services", got, count)
		}
		both := heap()
		v.store = nil
		without := heap()
		watcher, snapshot = int64(without)-int64(before), int64(both)-int64(without)
		stop()
		<-ended
		runtime.KeepAlive(w)
		b.StartTimer()
	}
	b.ReportMetric(float64(watcher)/count, "B/service")
	b.ReportMetric(float64(snapshot)/count, "model-B/service")
}
