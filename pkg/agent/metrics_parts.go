package agent

import (
	"maps"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-cni/weft/pkg/cni"
)

// partStates are the agent's own state: whether it is ready, and which of its parts have a problem.
type partStates struct{ agent *Agent }

var (
	agentReady = prometheus.NewDesc("weft_agent_ready",
		"1 while the node can attach pods, as /readyz says; 0 otherwise.", nil, nil)
	problemCount = prometheus.NewDesc("weft_problems", "Parts of the agent that have a problem now.", nil, nil)
	partProblem  = prometheus.NewDesc("weft_part_problem",
		"1 for each part of the agent that has a problem now; weftctl status says which. Absent for the others.",
		[]string{"part"}, nil)
)

// Describe implements prometheus.Collector.
func (partStates) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{agentReady, problemCount, partProblem} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p partStates) Collect(ch chan<- prometheus.Metric) {
	ready := 0.0
	if p.agent.unready() == "" {
		ready = 1
	}
	p.agent.mu.Lock()
	problems := maps.Clone(p.agent.problems)
	p.agent.mu.Unlock()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(agentReady, ready)
	gauge(problemCount, float64(len(problems)))
	for part := range problems {
		gauge(partProblem, 1, part)
	}
}

// podAddresses are the addresses that pods of this node have and can have. There are none before the agent is ready.
type podAddresses struct{ agent *Agent }

var (
	addressesUsed = prometheus.NewDesc("weft_pod_addresses",
		"Addresses of one of the node's pod CIDRs that pods have.", []string{"cidr"}, nil)
	addressesLimit = prometheus.NewDesc("weft_pod_addresses_limit",
		"Addresses of one of the node's pod CIDRs that pods can have. At the limit the agent attaches no more pods.",
		[]string{"cidr"}, nil)
)

// Describe implements prometheus.Collector.
func (podAddresses) Describe(ch chan<- *prometheus.Desc) {
	ch <- addressesUsed
	ch <- addressesLimit
}

// Collect implements prometheus.Collector.
func (p podAddresses) Collect(ch chan<- prometheus.Metric) {
	if p.agent.isReady() {
		collectAddresses(ch, p.agent.addresses())
	}
}

func collectAddresses(ch chan<- prometheus.Metric, ranges []cni.Range) {
	for _, r := range ranges {
		cidr := r.CIDR.String()
		ch <- prometheus.MustNewConstMetric(addressesUsed, prometheus.GaugeValue, float64(r.Used), cidr)
		ch <- prometheus.MustNewConstMetric(addressesLimit, prometheus.GaugeValue, r.Limit, cidr)
	}
}
