package kube

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-cni/weft/pkg/state"
)

// serviceCIDRs follows the ranges that ClusterIPs come from. API servers before Kubernetes 1.33 do not have the kind;
// then nothing is known of them.
type serviceCIDRs struct {
	client   kubernetes.Interface
	emit     func(state.Change)
	log      *slog.Logger
	informer cache.SharedIndexInformer
	handled  cache.InformerSynced
	absent   atomic.Bool
	feed     *feed

	mu     sync.Mutex // holds off the next change until this one is emitted
	byName map[string][]netip.Prefix
}

// retry is how long to wait before the API server is asked again what it has.
const retry = time.Second

// run finds out whether the API server has the kind, and then runs the informer until the context ends.
func (c *serviceCIDRs) run(ctx context.Context) {
	asked := ""
	for {
		_, err := c.client.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil {
			break
		}
		if apierrors.IsNotFound(err) {
			c.absent.Store(true)
			c.log.Info("the API server has no ServiceCIDRs (they came with Kubernetes 1.33): the node itself knows no way to " +
				"ClusterIPs from them")
			return
		}
		c.feed.begin()
		c.feed.fail(err)
		if text := err.Error(); text != asked {
			asked = text
			c.log.Warn("cannot list ServiceCIDRs; asking again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
	c.informer.Run(ctx.Done())
}

// synced says that what existed at the start was emitted, or that there is no such thing.
func (c *serviceCIDRs) synced() bool { return c.absent.Load() || c.handled() }

func (c *serviceCIDRs) set(obj any) {
	o, ok := obj.(*networkingv1.ServiceCIDR)
	if !ok {
		return
	}
	var cidrs []netip.Prefix
	for _, text := range o.Spec.CIDRs {
		cidr, err := parsePrefix(text)
		if err == nil && cidr.Bits() == 0 {
			err = fmt.Errorf("%s would be every address", text)
		}
		if err != nil {
			c.log.Warn("a range of a ServiceCIDR cannot be used", "servicecidr", o.Name, "err", err)
			continue
		}
		cidrs = append(cidrs, cidr)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byName[o.Name] = cidrs
	c.changed()
}

func (c *serviceCIDRs) delete(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byName, name)
	c.changed()
}

func (c *serviceCIDRs) changed() { c.emit(c.allLocked()) }

// all are the ranges of all ServiceCIDRs.
func (c *serviceCIDRs) all() state.SetServiceCIDRs {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.allLocked()
}

// allLocked: their order and duplicates mean nothing to the store.
func (c *serviceCIDRs) allLocked() state.SetServiceCIDRs {
	return state.SetServiceCIDRs{CIDRs: slices.Concat(slices.Collect(maps.Values(c.byName))...)}
}

func trimServiceCIDR(obj any) (any, error) {
	o, ok := obj.(*networkingv1.ServiceCIDR)
	if !ok {
		return obj, nil
	}
	return &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: o.Name, ResourceVersion: o.ResourceVersion},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: o.Spec.CIDRs},
	}, nil
}

// followServiceCIDRs prepares for ServiceCIDRs, which not every API server has.
func (w *Watcher) followServiceCIDRs() (err error) {
	cidrs := w.client.NetworkingV1().ServiceCIDRs()
	made := informer(w, "servicecidrs", &networkingv1.ServiceCIDR{}, "", cidrs.List, cidrs.Watch)
	w.cidrs = &serviceCIDRs{
		client: w.client, emit: w.emit, log: w.log, informer: made, feed: w.feeds[len(w.feeds)-1],
		byName: map[string][]netip.Prefix{},
	}
	w.cidrs.handled, err = handle("servicecidrs", made, trimServiceCIDR, func(obj any, _ bool) {
		w.cidrs.set(obj)
	}, w.cidrs.delete)
	w.emitted = append(w.emitted, w.cidrs.synced)
	return err
}
