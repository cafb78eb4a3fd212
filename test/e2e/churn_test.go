//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/weft-cni/weft/test/e2e/internal/dump"
)

const (
	churnPods   = 60
	churnRounds = 2
)

// Sixty pods at once, created and deleted twice: nothing is left over on any node, and no address ever belongs to
// two at a time, neither in the API nor on the switches.
func TestChurn(t *testing.T) {
	meshPods(t) // so that they do not appear in between
	before := map[string][]string{}
	for _, n := range env.nodes {
		lines, err := n.inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		before[n.name] = lines
	}
	duplicates := watchAddresses(t)
	for round := range churnRounds {
		var specs []*corev1.Pod
		var names []string
		for i := range churnPods {
			name := fmt.Sprintf("churn-%d-%02d", round, i)
			specs = append(specs, spec(name, env.nodes[i%len(env.nodes)].name))
			names = append(names, name)
		}
		t.Cleanup(func() { deletePods(t, names...) }) // nothing to do unless the round fails
		start := time.Now()
		createPods(t, specs...)
		ready := time.Since(start)
		if clashes := switchClashes(t); len(clashes) > 0 {
			t.Errorf("round %d: addresses on more than one port:\n  %s", round+1, strings.Join(clashes, "\n  "))
		}
		start = time.Now()
		deletePods(t, names...)
		deleted := time.Since(start)
		start = time.Now()
		must(t, 30*time.Second, func(ctx context.Context) error { return sameInventory(ctx, before) })
		t.Logf("round %d: %d pods Ready after %.1f s, deleted after %.1f s, last trace gone %.1f s later",
			round+1, churnPods, ready.Seconds(), deleted.Seconds(), time.Since(start).Seconds())
	}
	if found := duplicates(); len(found) > 0 {
		t.Errorf("addresses given twice:\n  %s", strings.Join(found, "\n  "))
	}
}

func sameInventory(ctx context.Context, before map[string][]string) error {
	for _, n := range env.nodes {
		now, err := n.inventory(ctx)
		if err != nil {
			return err
		}
		if diff := dump.Difference(before[n.name], now); len(diff) > 0 {
			return fmt.Errorf("node %s differs from before:\n  %s", n.name, strings.Join(diff, "\n  "))
		}
	}
	return nil
}

// switchClashes names the addresses that two ports of any switches have.
func switchClashes(t *testing.T) []string {
	t.Helper()
	owner := map[string]string{}
	var clashes []string
	for _, n := range env.nodes {
		interfaces, err := n.interfaces(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for name, ids := range interfaces {
			if ids[idIPs] == "" {
				continue
			}
			for _, ip := range strings.Split(ids[idIPs], ",") {
				port := n.name + ":" + name + " of " + ids[idPod]
				if other, taken := owner[ip]; taken {
					clashes = append(clashes, fmt.Sprintf("%s: %s and %s", ip, other, port))
				}
				owner[ip] = port
			}
		}
	}
	return clashes
}

// watchAddresses watches the pods of the namespace, and returns a function that ends the watch and tells which address
// a pod got while another pod, that was not being deleted, had it.
func watchAddresses(t *testing.T) (found func() []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	list, err := env.client.CoreV1().Pods(env.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// It resumes where it was when the API server ends a watch, as it may at any time.
	w, err := watchtools.NewRetryWatcherWithContext(ctx, list.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return env.client.CoreV1().Pods(env.namespace).Watch(ctx, options)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	addresses := addressBook{holder: map[string]string{}}
	for i := range list.Items {
		addresses.see(watch.Event{Type: watch.Added, Object: &list.Items[i]})
	}
	var wg sync.WaitGroup
	ended := false
	wg.Go(func() {
		for event := range w.ResultChan() {
			addresses.see(event)
		}
		ended = ctx.Err() == nil
	})
	stop := sync.OnceValue(func() []string {
		cancel()
		w.Stop()
		wg.Wait()
		if ended {
			t.Error("the watch of the pods ended before the test did, so some may have been missed")
		}
		return addresses.clashes
	})
	t.Cleanup(func() { stop() })
	return stop
}

// addressBook belongs to the goroutine that reads the watch.
type addressBook struct {
	holder  map[string]string // the live pod that has an address
	clashes []string
}

func (b *addressBook) see(event watch.Event) {
	p, ok := event.Object.(*corev1.Pod)
	if !ok || p.Spec.HostNetwork {
		return
	}
	live := event.Type != watch.Deleted && p.DeletionTimestamp == nil
	for _, ip := range p.Status.PodIPs {
		other := b.holder[ip.IP]
		switch {
		case live && other != "" && other != p.Name:
			b.clashes = append(b.clashes, fmt.Sprintf("%s: %s and %s", ip.IP, other, p.Name))
		case live:
			b.holder[ip.IP] = p.Name
		case other == p.Name:
			delete(b.holder, ip.IP)
		}
	}
}
