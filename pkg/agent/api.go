package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/kube"
)

// apiProblem is the part that follows the API server's objects.
const apiProblem = "API server"

// apiCheckEvery is how often the age of the API server's news is looked at.
const apiCheckEvery = 2 * time.Second

// watchAPI keeps the problem of the API server until the context ends.
func (a *Agent) watchAPI(ctx context.Context) {
	for ctx.Err() == nil {
		a.setProblem(apiProblem, a.apiError())
		sleep(ctx, apiCheckEvery)
	}
}

// dropLostConnections closes the connections to the API server from addresses that the node no longer has.
func (a *Agent) dropLostConnections() {
	lost := a.peers.CloseFrom(func(local netip.Addr) bool { return !host.IsLocal(local) })
	if len(lost) > 0 {
		a.log.Warn("the node has lost the address of the agent's connection to the API server; connecting again",
			"addresses", lost)
	}
}

// apiError says what of the API server's objects is missing or not current.
func (a *Agent) apiError() error {
	if a.synced.Load() {
		_, held := a.kube.Held()
		return errors.Join(a.kube.Lag(), held)
	}
	a.mu.Lock()
	from := a.copyTime
	a.mu.Unlock()
	missing := "not all objects were received yet"
	if !from.IsZero() {
		missing += ", the agent works from a copy of " + from.UTC().Format(time.DateTime) +
			" UTC, and pods that are not in it stay closed"
	}
	for _, f := range a.kube.Feeds() {
		if f.Err != nil {
			err := fmt.Errorf("%s: %s: %w", missing, f.Resource, f.Err)
			if advice := kube.Advice(f.Err, a.config().APIServer); advice != "" {
				err = fmt.Errorf("%w; %s", err, advice)
			}
			return err
		}
	}
	return errors.New(missing)
}

// feedAges are the ages of the API server's news, and the pods that wait for some.
type feedAges struct{ kube func() *kube.Watcher }

var (
	feedAge = prometheus.NewDesc("weft_api_news_age_seconds",
		"How long ago the API server last told anything of a resource: "+
			"an event, a bookmark (about one a minute) or a list.", []string{"resource"}, nil)
	podsHeld = prometheus.NewDesc("weft_pods_held",
		"Pods of this node that stay closed until all policies of their namespace are known.",
		nil, nil)
)

// Describe implements prometheus.Collector.
func (feedAges) Describe(ch chan<- *prometheus.Desc) {
	ch <- feedAge
	ch <- podsHeld
}

// Collect implements prometheus.Collector.
func (f feedAges) Collect(ch chan<- prometheus.Metric) {
	w := f.kube()
	if w == nil {
		return
	}
	for _, s := range w.Feeds() {
		ch <- prometheus.MustNewConstMetric(feedAge, prometheus.GaugeValue, s.Waiting.Seconds(), s.Resource)
	}
	held, _ := w.Held()
	ch <- prometheus.MustNewConstMetric(podsHeld, prometheus.GaugeValue, float64(held))
}

// watcher is the watcher, once there is one.
func (a *Agent) watcher() *kube.Watcher {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.kube
}
