package agent

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/report"
)

var cniSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
	Name:    "weft_cni_phase_seconds",
	Help:    "How long each phase of a CNI command took.",
	Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
}, []string{"command", "phase"})

func observeCNI(command, phase string, d time.Duration) {
	cniSeconds.WithLabelValues(command, phase).Observe(d.Seconds())
}

// metrics is what Prometheus can ask of the agent. Values are read when they are asked for, those of the switch at most
// every readingAge.
func (a *Agent) metrics() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		cniSeconds, endedConnections)
	// ofLoop is 0 until there is a loop.
	ofLoop := func(read func(*programmer.Loop) float64) func() float64 {
		return func() float64 {
			a.mu.Lock()
			loop := a.loop
			a.mu.Unlock()
			if loop == nil {
				return 0
			}
			return read(loop)
		}
	}
	status := func(read func(report.Programming) float64) func() float64 {
		return ofLoop(func(l *programmer.Loop) float64 { return read(l.Status()) })
	}
	gauge := func(name, help string, read func(report.Programming) float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, status(read)))
	}
	counter := func(name, help string, read func(report.Programming) float64) {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, status(read)))
	}
	gauge("weft_flows", "Number of desired flows.", func(s report.Programming) float64 { return float64(s.Flows) })
	gauge("weft_groups", "Number of desired groups.", func(s report.Programming) float64 { return float64(s.Groups) })
	gauge("weft_policy_errors",
		"Policies about pods of this node that are invalid, over budget or rejected by the switch: they isolate and allow "+
			"nothing.", func(s report.Programming) float64 { return float64(s.CountQuarantined(model.KindPolicy)) })
	gauge("weft_revision_desired", "Revision of the newest view of the cluster.", func(s report.Programming) float64 {
		return float64(s.Desired)
	})
	gauge("weft_revision_programmed", "Revision that is wholly in the switch.", func(s report.Programming) float64 {
		return float64(s.Programmed)
	})
	gauge("weft_quarantined", "Objects whose flows are refused.", func(s report.Programming) float64 {
		return float64(len(s.Quarantined))
	})
	gauge("weft_conflicts", "Match fields that several objects claim.", func(s report.Programming) float64 {
		return float64(len(s.Conflicts))
	})
	gauge("weft_foreign_flows", "Flows on the bridge that Weft did not make.", func(s report.Programming) float64 {
		return float64(s.ForeignFlows)
	})
	counter("weft_bundles_total", "Changes sent to the switch.", func(s report.Programming) float64 {
		return float64(s.Bundles)
	})
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "weft_datapath_cache_purges_total",
		Help: "Times that the agent emptied the userspace datapath's cache after a bundle, as some versions of Open " +
			"vSwitch need it.",
	}, ofLoop(func(*programmer.Loop) float64 { return float64(a.sw.Purges()) })))
	counter("weft_repairs_total", "Flows and groups that another program had changed and the agent repaired.",
		func(s report.Programming) float64 { return float64(s.Repairs) })
	viewed := func(name, help string, read func(*model.Snapshot) float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			ofLoop(func(l *programmer.Loop) float64 { return read(l.View()) })))
	}
	viewed("weft_services", "Services that this node serves.", func(s *model.Snapshot) float64 {
		return float64(len(s.Services))
	})
	viewed("weft_policies", "Policies that select pods of this node.", func(s *model.Snapshot) float64 {
		return float64(len(s.Policies))
	})
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_problems",
		Help: "Parts of the agent that have a problem now."}, func() float64 {
		a.mu.Lock()
		defer a.mu.Unlock()
		return float64(len(a.problems))
	}))
	registry.MustRegister(newSwitchCounters(a), newOccupancy(a), kernelConnections{a}, feedAges{a.watcher})
	return registry
}

// kernelConnections is how full the kernel's table of connections is. There is none before something on the node
// tracks connections.
type kernelConnections struct{ agent *Agent }

var (
	kernelTracked = prometheus.NewDesc("weft_kernel_connections", "Connections that the node's kernel tracks.", nil,
		nil)
	kernelTrackedLimit = prometheus.NewDesc("weft_kernel_connections_limit",
		"Connections that the node's kernel tracks at most (nf_conntrack_max); it drops what would begin another.", nil, nil)
)

// Describe implements prometheus.Collector.
func (kernelConnections) Describe(ch chan<- *prometheus.Desc) {
	ch <- kernelTracked
	ch <- kernelTrackedLimit
}

// Collect implements prometheus.Collector.
func (k kernelConnections) Collect(ch chan<- prometheus.Metric) {
	count, limit, err := host.Connections(k.agent.opt.ProcSys)
	if err != nil {
		k.agent.log.Debug("metrics", "err", err)
		return
	}
	ch <- prometheus.MustNewConstMetric(kernelTracked, prometheus.GaugeValue, float64(count))
	ch <- prometheus.MustNewConstMetric(kernelTrackedLimit, prometheus.GaugeValue, float64(limit))
}

// switchCounters is what the switch counts, as of the last reading.
type switchCounters struct {
	agent *Agent
	last  *reading[report.Counts]
}

func newSwitchCounters(a *Agent) switchCounters { return switchCounters{a, newReading(a.count)} }

var (
	dropped = prometheus.NewDesc("weft_dropped_packets_total",
		"Packets dropped, by the reason that docs/pipeline.md explains.", []string{"reason"}, nil)
	policyLabels  = []string{"namespace", "policy", "direction", "rule", "verdict"}
	policyPackets = prometheus.NewDesc("weft_policy_packets_total",
		"Packets that a policy's rule allowed, or that no rule of a policy that isolates their pod allowed.", policyLabels,
		nil)
	policyBytes = prometheus.NewDesc("weft_policy_bytes_total", "The bytes of weft_policy_packets_total.", policyLabels,
		nil)
)

// Describe implements prometheus.Collector.
func (switchCounters) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{dropped, policyPackets, policyBytes} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. While the switch cannot be read, the counters stand still.
func (c switchCounters) Collect(ch chan<- prometheus.Metric) {
	if !c.agent.isReady() {
		return
	}
	now, err := c.last.get()
	if err != nil {
		c.agent.log.Warn("metrics: the switch cannot be read", "err", err)
		now = c.agent.tally.latest()
	}
	collectCounts(ch, now)
}

func collectCounts(ch chan<- prometheus.Metric, c report.Counts) {
	counter := func(d *prometheus.Desc, value uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	for reason, s := range c.Drops {
		counter(dropped, s.Packets, string(reason))
	}
	for id, s := range c.Rules {
		namespace, name, _ := strings.Cut(id.Policy, "/")
		rule, verdict := strconv.Itoa(id.Rule), "allowed"
		if id.Rule == flows.Denied {
			rule, verdict = "", "denied"
		}
		counter(policyPackets, s.Packets, namespace, name, string(id.Direction), rule, verdict)
		counter(policyBytes, s.Bytes, namespace, name, string(id.Direction), rule, verdict)
	}
}

// occupancy is how full the switch's tables are, as of the last reading. While the switch cannot be asked there are no
// values.
type occupancy struct {
	agent *Agent
	last  *reading[ofswitch.Occupancy]
}

func newOccupancy(a *Agent) occupancy {
	return occupancy{a, newReading(func(ctx context.Context) (ofswitch.Occupancy, error) { return a.sw.Occupancy(ctx) })}
}

var (
	cacheEntries = prometheus.NewDesc("weft_datapath_flows",
		"Entries of the datapath's cache of decisions, of all bridges.", nil, nil)
	cacheLimit = prometheus.NewDesc("weft_datapath_flows_limit", "Cache entries that ovs-vswitchd makes at most now.",
		nil, nil)
	tracked = prometheus.NewDesc("weft_switch_connections",
		"Connections that the userspace datapath tracks, in all zones. Absent on the kernel's datapath.", nil, nil)
	trackedLimit = prometheus.NewDesc("weft_switch_connections_limit",
		"Connections that the userspace datapath tracks at most; it drops new ones beyond that.", nil, nil)
)

// Describe implements prometheus.Collector.
func (occupancy) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{cacheEntries, cacheLimit, tracked, trackedLimit} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (o occupancy) Collect(ch chan<- prometheus.Metric) {
	if !o.agent.isReady() {
		return
	}
	now, err := o.last.get()
	if err != nil {
		o.agent.log.Warn("metrics: cannot read how full the switch's tables are", "err", err)
		return
	}
	collectOccupancy(ch, now)
}

func collectOccupancy(ch chan<- prometheus.Metric, o ofswitch.Occupancy) {
	gauge := func(d *prometheus.Desc, value uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value))
	}
	gauge(cacheEntries, o.CacheEntries)
	gauge(cacheLimit, o.CacheLimit)
	if o.ConnectionLimit > 0 {
		gauge(tracked, o.Connections)
		gauge(trackedLimit, o.ConnectionLimit)
	}
}
