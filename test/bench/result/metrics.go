package result

import (
	"fmt"
	"slices"
	"strings"
)

// The systems that are measured.
const (
	Weft        = "weft"
	OVS         = "ovs-normal"
	OVSCt       = "ovs-normal-ct"
	Linux       = "linux-vxlan"
	Bridge      = "bridge+host-local"
	Raw         = "raw-bundle"
	WeftAgainst = "weft-against" // another build of Weft
)

// The paths that traffic takes. The peers do not have the last two: Weft's are compared with the peers' AcrossNodes.
const (
	SameNode    = "same-node"
	AcrossNodes = "across-nodes"
	Service     = "service"
	Policies    = "policies"
)

// Metric is something that is measured.
type Metric struct {
	Name, Title, Unit string
	Higher            bool // higher values are better
}

// metrics are in the order in which they are shown.
var metrics = []Metric{
	{"throughput", "TCP throughput of one stream", "Mbit/s", true},
	{"packets", "UDP datagrams of 64 bytes that arrive", "1/s", true},
	{"latency-p50", "Round trip of one byte over TCP, median", "µs", false},
	{"latency-p99", "Round trip of one byte over TCP, 99th percentile", "µs", false},
	{"requests", "Requests of one byte, 16 connections at once", "1/s", true},
	{"connections", "New TCP connections, 16 at once", "1/s", true},
	{"switch-cpu", "Processor time of both nodes' ovs-vswitchd for 1,000 connections", "ms", false},
	{"add-p50", "CNI ADD, median", "ms", false},
	{"add-p99", "CNI ADD, 99th percentile", "ms", false},
	{"del-p50", "CNI DEL, median", "ms", false},
	{"del-p99", "CNI DEL, 99th percentile", "ms", false},
	{"programmed", "Flows and groups programmed", "1/s", true},
}

func metricNamed(name string) (Metric, bool) {
	i := slices.IndexFunc(metrics, func(m Metric) bool { return m.Name == name })
	if i < 0 {
		return Metric{}, false
	}
	return metrics[i], true
}

// comparison is a ratio that is of interest.
type comparison struct {
	metric, kase, system     string
	againstCase, againstName string
	atLeast, atMost          float64 // the aim; 0 is none
	// kernelOnly aims are for the kernel's datapath; the userspace datapath shows the ratio without one.
	kernelOnly bool
}

// comparisons are the ratios in the order in which they are shown. A case without another to compare with is compared
// with itself.
var comparisons = []comparison{
	{metric: "connections", kase: "connections/" + AcrossNodes, system: Weft, againstName: OVSCt, atLeast: 0.9},
	{metric: "connections", kase: "connections/" + Service, system: Weft, againstCase: "connections/" + AcrossNodes,
		againstName: OVSCt, atLeast: 0.9},
	{metric: "connections", kase: "connections/" + Policies, system: Weft, againstCase: "connections/" + AcrossNodes,
		againstName: OVSCt, atLeast: 0.9},
	{metric: "throughput", kase: "throughput/" + AcrossNodes, system: Weft, againstName: OVS, atLeast: 0.95,
		kernelOnly: true},
	{metric: "throughput", kase: "throughput/" + AcrossNodes, system: Weft, againstName: OVSCt},
	{metric: "throughput", kase: "throughput/" + AcrossNodes, system: Weft, againstName: Linux},
	{metric: "requests", kase: "requests/" + AcrossNodes, system: Weft, againstName: OVS, atLeast: 0.95, kernelOnly: true},
	{metric: "requests", kase: "requests/" + AcrossNodes, system: Weft, againstName: OVSCt},
	{metric: "requests", kase: "requests/" + Service, system: Weft, againstCase: "requests/" + AcrossNodes,
		againstName: OVSCt},
	{metric: "latency-p50", kase: "latency/" + AcrossNodes, system: Weft, againstName: OVSCt},
	{metric: "packets", kase: "packets/" + AcrossNodes, system: Weft, againstName: OVSCt},
	{metric: "add-p50", kase: "attach/single", system: Weft, againstName: Bridge, atMost: 0.8},
	{metric: "add-p50", kase: "attach/16-at-once", system: Weft, againstName: Bridge, atMost: 0.8},
	{metric: "del-p50", kase: "attach/single", system: Weft, againstName: Bridge},
	{metric: "programmed", kase: "program/services", system: Weft, againstName: Raw, atLeast: 0.8},
	{metric: "programmed", kase: "program/policies", system: Weft, againstName: Raw, atLeast: 0.8},
	{metric: "connections", kase: "connections/" + AcrossNodes, system: Weft, againstName: WeftAgainst},
	{metric: "connections", kase: "connections/" + Service, system: Weft, againstName: WeftAgainst},
}

// Verdict is whether an aim is met.
type Verdict string

// The verdicts.
const (
	NoAim  Verdict = ""
	Met    Verdict = "met"
	Missed Verdict = "missed"
)

// Ratio is a comparison as a run has it.
type Ratio struct {
	Metric              Metric
	Case, System        string
	AgainstCase, Versus string
	Summary             Summary // of the rounds' ratios
	Aim                 string  // "≥ 0.90"; empty when there is none
	Verdict             Verdict
}

// Name tells a ratio from the others.
func (r Ratio) Name() string {
	against := r.Versus
	if r.AgainstCase != r.Case {
		_, path, _ := strings.Cut(r.AgainstCase, "/")
		against += " " + path
	}
	return fmt.Sprintf("%s %s: %s / %s", r.Case, r.Metric.Name, r.System, against)
}

// Ratios are the comparisons that a run has values for.
func (r *Run) Ratios() []Ratio {
	var found []Ratio
	for _, c := range comparisons {
		if c.againstCase == "" {
			c.againstCase = c.kase
		}
		own, ok1 := r.Find(c.kase, c.metric, c.system)
		other, ok2 := r.Find(c.againstCase, c.metric, c.againstName)
		ratios := own.Ratios(other)
		if !ok1 || !ok2 || len(ratios) == 0 {
			continue
		}
		m, _ := metricNamed(c.metric)
		ratio := Ratio{Metric: m, Case: c.kase, System: c.system, AgainstCase: c.againstCase, Versus: c.againstName,
			Summary: Summarize(ratios)}
		if !c.kernelOnly || r.Options.Datapath == "system" {
			ratio.Aim, ratio.Verdict = c.evaluate(ratio.Summary.Median)
		}
		found = append(found, ratio)
	}
	return found
}

func (c comparison) evaluate(ratio float64) (string, Verdict) {
	var aim string
	var met bool
	switch {
	case c.atLeast > 0:
		aim, met = fmt.Sprintf("≥ %.2f", c.atLeast), ratio >= c.atLeast
	case c.atMost > 0:
		aim, met = fmt.Sprintf("≤ %.2f", c.atMost), ratio <= c.atMost
	default:
		return "", NoAim
	}
	if met {
		return aim, Met
	}
	return aim, Missed
}

// Missed are the aims that a run misses.
func (r *Run) Missed() []Ratio {
	return slices.DeleteFunc(r.Ratios(), func(ratio Ratio) bool { return ratio.Verdict != Missed })
}
