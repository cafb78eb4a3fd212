package agent

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weft-cni/weft/internal/version"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/report"
)

// cniSeconds and the others here are the process's: what they count counts from its start.
var cniSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
	Name:    "weft_cni_phase_seconds",
	Help:    "How long each phase of a CNI command took.",
	Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
}, []string{"command", "phase"})

var cniRequests = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "weft_cni_requests_total",
	Help: "CNI requests by command and by the error code of the response, 0 for success (docs/cni.md).",
}, []string{"command", "code"})

var programmingSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
	Name: "weft_programming_seconds",
	Help: "How long the oldest of the changes that one round takes waited, from its arrival at the agent until the " +
		"switch held its flows.",
	Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
})

var bundleSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
	Name:    "weft_bundle_seconds",
	Help:    "How long the switch took to answer each bundle.",
	Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
})

var bundleFailures = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "weft_bundle_failures_total",
	Help: "Bundles that failed: the switch rejected a part (rejected), or could not be reached or did not answer in " +
		"time (unreachable).",
}, []string{"cause"})

func observeCNI(command, phase string, d time.Duration) {
	cniSeconds.WithLabelValues(command, phase).Observe(d.Seconds())
}

// buildInfo is always 1; its labels say what the agent was built from.
func buildInfo(v version.Info) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "weft_build_info", Help: "What the agent was built from; always 1.",
		ConstLabels: prometheus.Labels{"version": v.Version, "commit": v.Commit, "goversion": v.Go},
	}, func() float64 { return 1 })
}

func observeCNIResult(command string, code uint) {
	cniRequests.WithLabelValues(command, strconv.FormatUint(uint64(code), 10)).Inc()
}

func observeProgramming(d time.Duration) { programmingSeconds.Observe(d.Seconds()) }

func observeBundle(d time.Duration, err error) {
	bundleSeconds.Observe(d.Seconds())
	switch {
	case err == nil:
	case errors.As(err, new(*ofswitch.RejectedError)):
		bundleFailures.WithLabelValues("rejected").Inc()
	default:
		bundleFailures.WithLabelValues("unreachable").Inc()
	}
}

// metrics is what Prometheus can ask of the agent. Values are read when they are asked for, those of the switch at most
// every readingAge.
func (a *Agent) metrics() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		cniSeconds, cniRequests, programmingSeconds, bundleSeconds, bundleFailures, endedConnections, dnsAnswers,
		buildInfo(a.opt.Version))
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
			"nothing.", func(s report.Programming) float64 { return float64(s.CountPolicies()) })
	gauge("weft_revision_desired", "Revision of the newest snapshot.", func(s report.Programming) float64 {
		return float64(s.Desired)
	})
	gauge("weft_revision_programmed", "Revision of the newest snapshot that is programmed.",
		func(s report.Programming) float64 {
			return float64(s.Programmed)
		})
	gauge("weft_quarantined", "Objects that are quarantined: the switch or the compiler rejected their flows.",
		func(s report.Programming) float64 {
			return float64(len(s.Quarantined))
		})
	gauge("weft_conflicts", "Matches that several objects claim; one of them has the flow.",
		func(s report.Programming) float64 {
			return float64(len(s.Conflicts))
		})
	gauge("weft_foreign_flows", "Flows on the bridge that Weft did not make.", func(s report.Programming) float64 {
		return float64(s.ForeignFlows)
	})
	counter("weft_bundles_total", "Bundles sent to the switch, rejected ones too.", func(s report.Programming) float64 {
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
	viewed("weft_policies_staged", "Those of weft_policies that are staged: they have no effect.",
		func(s *model.Snapshot) float64 {
			n := 0
			for _, p := range s.Policies {
				if p.Staged {
					n++
				}
			}
			return float64(n)
		})
	viewed("weft_policies", "Policies that select pods of this node.", func(s *model.Snapshot) float64 {
		return float64(len(s.Policies))
	})
	viewed("weft_domain_names", "Domain names of policies' peers of which DNS answers have taught addresses.",
		func(s *model.Snapshot) float64 { return float64(len(s.Names)) })
	viewed("weft_domain_name_addresses", "Addresses of weft_domain_names whose TTL runs.",
		func(s *model.Snapshot) float64 {
			n := 0
			for _, learned := range s.Names {
				n += len(learned.Addrs)
			}
			return float64(n)
		})
	registry.MustRegister(partStates{a}, podAddresses{a}, switchCounters{a}, occupancy{a}, kernelConnections{a},
		feedAges{a.watcher}, peerStates{a})
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
type switchCounters struct{ agent *Agent }

var (
	dropLabels = []string{"reason", "harmless"}
	dropped    = prometheus.NewDesc("weft_dropped_packets_total",
		"Packets dropped, by the reason that docs/pipeline.md explains. Those with harmless=\"true\" occur on every healthy "+
			"node.", dropLabels, nil)
	droppedBytes = prometheus.NewDesc("weft_dropped_bytes_total", "The bytes of weft_dropped_packets_total.", dropLabels,
		nil)
	policyLabels  = []string{"namespace", "policy", "tier", "direction", "rule", "verdict"}
	policyPackets = prometheus.NewDesc("weft_policy_packets_total",
		"Packets that a policy's rule allowed, denied or passed on, or that no rule of a policy that isolates their pod "+
			"allowed.",
		policyLabels, nil)
	policyBytes = prometheus.NewDesc("weft_policy_bytes_total", "The bytes of weft_policy_packets_total.", policyLabels,
		nil)
)

// Describe implements prometheus.Collector.
func (switchCounters) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{dropped, droppedBytes, policyPackets, policyBytes} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. While the switch cannot be read, the counters stand still.
func (c switchCounters) Collect(ch chan<- prometheus.Metric) {
	if !c.agent.isReady() {
		return
	}
	now, err := c.agent.counts.get()
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
		harmless := strconv.FormatBool(reason.Harmless())
		counter(dropped, s.Packets, string(reason), harmless)
		counter(droppedBytes, s.Bytes, string(reason), harmless)
	}
	for id, s := range c.Rules {
		rule := strconv.Itoa(id.Index)
		if id.Index == flows.Isolation {
			rule = ""
		}
		labels := []string{id.Policy.Namespace, id.Policy.Name, id.Tier.String(), string(id.Direction), rule,
			report.VerdictName(id.Rule)}
		counter(policyPackets, s.Packets, labels...)
		counter(policyBytes, s.Bytes, labels...)
	}
}

// occupancy is how full the switch's tables are, as of the last reading. While the switch cannot be asked there are no
// values.
type occupancy struct{ agent *Agent }

var (
	ovsInfo = prometheus.NewDesc("weft_ovs_info", "The version of the ovs-vswitchd that runs; always 1.",
		[]string{"version"}, nil)
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
	for _, d := range []*prometheus.Desc{ovsInfo, cacheEntries, cacheLimit, tracked, trackedLimit} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (o occupancy) Collect(ch chan<- prometheus.Metric) {
	if !o.agent.isReady() {
		return
	}
	now, err := o.agent.occupied.get()
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
	if o.Version != "" {
		ch <- prometheus.MustNewConstMetric(ovsInfo, prometheus.GaugeValue, 1, o.Version)
	}
	gauge(cacheEntries, o.CacheEntries)
	gauge(cacheLimit, o.CacheLimit)
	if o.ConnectionLimit > 0 {
		gauge(tracked, o.Connections)
		gauge(trackedLimit, o.ConnectionLimit)
	}
}
