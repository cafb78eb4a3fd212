package agent

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weft-cni/weft/internal/version"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
)

// counted is a switch that holds what a snapshot asks for and has counted.
type counted struct {
	t     *testing.T
	view  *model.Snapshot
	tally tally
}

// after reads the switch whose flows of these texts have counted so many packets of 100 bytes; the others have counted
// none.
func (c *counted) after(packets map[string]uint64) report.Counts {
	c.t.Helper()
	desired, err := flows.Compile(c.view)
	if err != nil {
		c.t.Fatal(err)
	}
	var entries []openflow.Entry
	seen := map[string]bool{}
	for _, f := range desired.Flows {
		e := openflow.Entry{Flow: f.Flow}
		for text, n := range packets {
			if strings.Contains(f.String(), text) {
				if seen[text] {
					c.t.Fatalf("two flows have %q", text)
				}
				seen[text] = true
				e.Stats = openflow.Stats{Packets: n, Bytes: 100 * n}
			}
		}
		entries = append(entries, e)
	}
	if len(seen) != len(packets) {
		c.t.Fatalf("flows with %v, only %v are there", packets, seen)
	}
	now, err := c.tally.add(entries, desired, c.view.Policies)
	if err != nil {
		c.t.Fatal(err)
	}
	return now
}

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// isolated is a policy about pods that allows TCP port 80, as its only rule, number 3, and UDP port 53 only to
// 192.0.2.1, 5.
func isolated(name string, pods ...netip.Addr) model.Policy {
	return model.Policy{ID: policyID(name), Ingress: &model.PolicySide{Pods: pods, Rules: []model.PolicyRule{
		{Index: 3, ID: 7, Pods: pods, AnyPeer: true, Ports: []model.PortMatch{{Protocol: model.TCP, Port: 80, Mask: 0xffff}}},
		{Index: 5, ID: 8, Pods: pods, Peers: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}, Ports: []model.PortMatch{
			{Protocol: model.UDP, Port: 53, Mask: 0xffff}}},
	}}}
}

// policyID is the identity of the NetworkPolicy namespace/name.
func policyID(name string) model.PolicyID {
	namespace, name, _ := strings.Cut(name, "/")
	return model.NetworkPolicy(namespace, name)
}

func policies(list ...model.Policy) map[model.PolicyID]model.Policy {
	byName := map[model.PolicyID]model.Policy{}
	for _, p := range list {
		byName[p.ID] = p
	}
	return byName
}

// TestCountersOnlyGrow: flows come, go and start again; the totals never fall.
func TestCountersOnlyGrow(t *testing.T) {
	a, b := addr("10.244.1.2"), addr("10.244.1.3")
	c := &counted{t: t, view: &model.Snapshot{Self: model.Node{Name: "n1"}}}
	both, one := policies(isolated("ns/p", a, b)), policies(isolated("ns/p", b))
	const deniedA, deniedB = "ip,nw_dst=10.244.1.2 actions=goto_table:59", "ip,nw_dst=10.244.1.3 actions=goto_table:59"
	denied := report.RuleID{Policy: policyID("ns/p"),
		Rule: flows.Rule{Direction: model.Ingress, Index: flows.Isolation, Verdict: model.Deny}}
	for i, step := range []struct {
		policies map[model.PolicyID]model.Policy
		packets  map[string]uint64
		want     uint64
	}{
		{both, map[string]uint64{deniedA: 10, deniedB: 1}, 11},
		{both, map[string]uint64{deniedA: 12, deniedB: 1}, 13},
		{one, map[string]uint64{deniedB: 2}, 14},              // a has gone
		{one, map[string]uint64{deniedB: 1}, 15},              // b's flow was replaced and has counted 1
		{both, map[string]uint64{deniedA: 3, deniedB: 1}, 18}, // a is back
	} {
		c.view.Policies = step.policies
		now := c.after(step.packets)
		if got := now.Drops[flows.PolicyIngress]; got.Packets != step.want {
			t.Errorf("step %d: %d packets were dropped, want %d", i, got.Packets, step.want)
		}
		if got := now.Rules[denied]; got != (openflow.Stats{Packets: step.want, Bytes: 100 * step.want}) {
			t.Errorf("step %d: the policy denied %+v, want %d packets", i, got, step.want)
		}
	}
	// Once there is no such policy there is no such counter; the drops stay.
	c.view.Policies = nil
	if now := c.after(nil); len(now.Rules) > 0 || now.Drops[flows.PolicyIngress].Packets != 18 {
		t.Errorf("without policies: %+v", now)
	}
}

// TestRulesAreCounted: what a rule allows is counted for it, what several policies deny for all of them.
func TestRulesAreCounted(t *testing.T) {
	a := addr("10.244.1.2")
	logs := isolated("ns/logs", a)
	logs.Log = true
	for i := range logs.Ingress.Rules { // else its rules are those of ns/p, and count there
		logs.Ingress.Rules[i].Ports = []model.PortMatch{{Protocol: model.SCTP, Port: uint16(i), Mask: 0xffff}}
	}
	c := &counted{t: t, view: &model.Snapshot{Self: model.Node{Name: "n1"}, Policies: policies(isolated("ns/p", a), logs)}}
	now := c.after(map[string]uint64{
		"tcp,nw_dst=10.244.1.2,tp_dst=80 ": 20, "nw_src=192.0.2.1,nw_dst=10.244.1.2,tp_dst=53 ": 2,
		"ip,nw_dst=10.244.1.2 actions=controller": 7,
		"+trk,sctp,nw_dst=10.244.1.2":             1, "140,sctp,nw_dst=10.244.1.2": 4,
	})
	type rule struct {
		policy string
		index  int
	}
	for r, want := range map[rule]uint64{
		{"ns/p", 3}: 20, {"ns/p", 5}: 2, {"ns/p", flows.Isolation}: 7, {"ns/logs", 3}: 5, {"ns/logs", 5}: 0, {"ns/logs",
			flows.Isolation}: 7,
	} {
		id := report.RuleID{Policy: policyID(r.policy), Rule: flows.Rule{Direction: model.Ingress, Index: r.index}}
		if r.index == flows.Isolation {
			id.Verdict = model.Deny
		}
		if got, ok := now.Rules[id]; !ok || got.Packets != want {
			t.Errorf("%+v counted %+v, want %d packets", id, got, want)
		}
	}
	if got := now.Drops[flows.PolicyIngress].Packets; got != 7 {
		t.Errorf("%d packets were dropped, want 7", got)
	}
}

// TestPolicyMetrics: names and labels are an interface.
func TestPolicyMetrics(t *testing.T) {
	c := &counted{t: t, view: &model.Snapshot{Self: model.Node{Name: "n1"},
		Policies: policies(isolated("ns/p", addr("10.244.1.2")))}}
	now := c.after(map[string]uint64{"tcp,nw_dst=10.244.1.2,tp_dst=80 ": 20,
		"ip,nw_dst=10.244.1.2 actions=goto_table:59": 3})
	want := `
# HELP weft_policy_bytes_total The bytes of weft_policy_packets_total.
# TYPE weft_policy_bytes_total counter
weft_policy_bytes_total{direction="Ingress",namespace="ns",policy="p",rule="",tier="NetworkPolicy",verdict="denied"} 300
weft_policy_bytes_total{direction="Ingress",namespace="ns",policy="p",rule="3",tier="NetworkPolicy",verdict="allowed"} 2000
weft_policy_bytes_total{direction="Ingress",namespace="ns",policy="p",rule="5",tier="NetworkPolicy",verdict="allowed"} 0
# HELP weft_policy_packets_total Packets that a policy's rule allowed, denied or passed on, or that no rule of a policy that isolates their pod allowed.
# TYPE weft_policy_packets_total counter
weft_policy_packets_total{direction="Ingress",namespace="ns",policy="p",rule="",tier="NetworkPolicy",verdict="denied"} 3
weft_policy_packets_total{direction="Ingress",namespace="ns",policy="p",rule="3",tier="NetworkPolicy",verdict="allowed"} 20
weft_policy_packets_total{direction="Ingress",namespace="ns",policy="p",rule="5",tier="NetworkPolicy",verdict="allowed"} 0
`
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collected{now})
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).ServeHTTP(answer,
		httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	if got := answer.Body.String(); !strings.Contains(got, strings.TrimPrefix(want, "\n")) {
		t.Errorf("metrics are\n%swant\n%s", got, want)
	}
}

// collected are counts as a collector.
type collected struct{ report.Counts }

func (c collected) Describe(ch chan<- *prometheus.Desc) { switchCounters{}.Describe(ch) }
func (c collected) Collect(ch chan<- prometheus.Metric) { collectCounts(ch, c.Counts) }

// TestOccupancyMetrics: the kernel's datapath has no connections of its own, so it has no such metrics.
func TestOccupancyMetrics(t *testing.T) {
	for _, tc := range []struct {
		of   ofswitch.Occupancy
		want []string
	}{
		{ofswitch.Occupancy{CacheEntries: 7, CacheLimit: 200000}, []string{"weft_datapath_flows 7",
			"weft_datapath_flows_limit 200000"}},
		{ofswitch.Occupancy{CacheEntries: 7, CacheLimit: 200000, Connections: 0, ConnectionLimit: 3000000}, []string{
			"weft_datapath_flows 7", "weft_datapath_flows_limit 200000", "weft_switch_connections 0",
			"weft_switch_connections_limit 3e+06"}},
	} {
		registry := prometheus.NewRegistry()
		registry.MustRegister(fixed(tc.of))
		recorder := httptest.NewRecorder()
		promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(recorder, httptest.NewRequest(http.MethodGet,
			"/metrics", http.NoBody))
		var got []string
		for line := range strings.Lines(recorder.Body.String()) {
			if !strings.HasPrefix(line, "#") {
				got = append(got, strings.TrimSpace(line))
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%+v: %q, want %q", tc.of, got, tc.want)
		}
	}
}

// fixed is an occupancy that does not ask a switch.
type fixed ofswitch.Occupancy

func (fixed) Describe(ch chan<- *prometheus.Desc) { occupancy{}.Describe(ch) }

func (f fixed) Collect(ch chan<- prometheus.Metric) { collectOccupancy(ch, ofswitch.Occupancy(f)) }

// TestConnectionMetrics: how full the kernel's table is, where there is one.
func TestConnectionMetrics(t *testing.T) {
	a := &Agent{opt: Options{ProcSys: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(kernelConnections{a})
	read := func() string {
		answer := httptest.NewRecorder()
		promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).ServeHTTP(answer,
			httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
		return answer.Body.String()
	}
	if got := read(); got != "" {
		t.Errorf("without connection tracking: %s", got)
	}
	dir := filepath.Join(a.opt.ProcSys, "net/netfilter")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"nf_conntrack_count": "1234\n", "nf_conntrack_max": "262144\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"\nweft_kernel_connections 1234\n", "\nweft_kernel_connections_limit 262144\n"} {
		if got := read(); !strings.Contains(got, want) {
			t.Errorf("metrics are\n%swant%s", got, want)
		}
	}
}

// TestBuildInfo: monitoring sees which agent runs where.
func TestBuildInfo(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(buildInfo(version.Info{Version: "v1.2.3", Commit: "feed", Go: "go1"}))
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(answer,
		httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	if want := `weft_build_info{commit="feed",goversion="go1",version="v1.2.3"} 1`; !strings.Contains(answer.Body.String(),
		want) {
		t.Errorf("%s\nwant %s", answer.Body, want)
	}
}
