package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weft-cni/weft/pkg/flows"
)

var cniSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
	Name:    "weft_cni_phase_seconds",
	Help:    "How long each phase of a CNI command took.",
	Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
}, []string{"command", "phase"})

func observeCNI(command, phase string, d time.Duration) {
	cniSeconds.WithLabelValues(command, phase).Observe(d.Seconds())
}

// metrics is what Prometheus can ask of the agent. Values are read when they are asked for.
func (a *Agent) metrics() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), cniSeconds)
	status := func(read func(Status) float64) func() float64 {
		return func() float64 {
			a.mu.Lock()
			loop := a.loop
			a.mu.Unlock()
			if loop == nil {
				return 0
			}
			return read(loop.Status())
		}
	}
	gauge := func(name, help string, read func(Status) float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, status(read)))
	}
	counter := func(name, help string, read func(Status) float64) {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, status(read)))
	}
	gauge("weft_flows", "Flows that the switch shall hold.", func(s Status) float64 { return float64(s.Flows) })
	gauge("weft_revision_desired", "Revision of the newest view of the cluster.", func(s Status) float64 { return float64(s.Desired) })
	gauge("weft_revision_realised", "Revision that is wholly in the switch.", func(s Status) float64 { return float64(s.Realised) })
	gauge("weft_quarantined", "Objects whose flows are refused.", func(s Status) float64 { return float64(len(s.Quarantined)) })
	gauge("weft_conflicts", "Match fields that several objects claim.", func(s Status) float64 { return float64(len(s.Conflicts)) })
	counter("weft_bundles_total", "Changes sent to the switch.", func(s Status) float64 { return float64(s.Bundles) })
	counter("weft_repairs_total", "Flows that somebody else had changed.", func(s Status) float64 { return float64(s.Repairs) })
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_problems", Help: "Parts of the agent that have a problem now."}, func() float64 {
		a.mu.Lock()
		defer a.mu.Unlock()
		return float64(len(a.problems))
	}))
	registry.MustRegister(&drops{agent: a, totals: map[flows.Reason]uint64{}})
	return registry
}

// drops counts dropped packets by reason. It reads the switch when Prometheus asks and adds what each flow has counted
// since, because a sum over flows would fall when one of them goes. What a flow counts between the last question and its
// end is lost.
type drops struct {
	agent *Agent

	mu     sync.Mutex
	last   map[string]uint64 // by flow
	totals map[flows.Reason]uint64
}

var dropped = prometheus.NewDesc("weft_dropped_packets_total", "Packets dropped, by the reason that docs/pipeline.md explains.", []string{"reason"}, nil)

// Describe implements prometheus.Collector.
func (*drops) Describe(ch chan<- *prometheus.Desc) { ch <- dropped }

// Collect implements prometheus.Collector. While the switch cannot be read, the counters stand still.
func (d *drops) Collect(ch chan<- prometheus.Metric) {
	d.agent.mu.Lock()
	ready := d.agent.ready
	d.agent.mu.Unlock()
	if !ready {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	all, err := d.agent.flowReports(ctx)
	if err != nil {
		d.agent.log.Warn("metrics: the switch cannot be read", "err", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.count(all)
	}
	for reason, packets := range d.totals {
		ch <- prometheus.MustNewConstMetric(dropped, prometheus.CounterValue, float64(packets), string(reason))
	}
}

// count adds what the flows have counted since the last time.
func (d *drops) count(all []FlowReport) {
	now := map[string]uint64{}
	for _, f := range all {
		if f.Reason == "" {
			continue
		}
		flow := fmt.Sprint(f.Cookie, f.TableID, f.Priority, f.Match)
		now[flow] = f.Packets
		since := f.Packets
		if last := d.last[flow]; last <= f.Packets {
			since -= last
		}
		d.totals[f.Reason] += since
	}
	d.last = now
}
