package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/internal/testing/golden"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/ovsdb"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/report"
)

const metricsDoc = "../../docs/metrics.md"

const metricsPreamble = `<!-- Made from pkg/agent by: go test ./pkg/agent -run TestMetricsPage -update -->
# Metrics

Every agent serves these metrics to Prometheus: at ` + "`healthAddr`" + ` for the node's own processes, and at
` + "`metricsAddr`" + ` for others, if that is set ([configuration.md](configuration.md)). [monitoring.md](monitoring.md) says how
to scrape them, and what the alerts and the dashboard show. The metrics of the Go runtime (` + "`go_…`" + `) and of the process
(` + "`process_…`" + `) come with them.

Values of the switch are read at most once in ten seconds, whatever asks. Those of the switch and of pods' addresses are
absent until the agent is ready.

| Metric | Type | Labels | Meaning |
|---|---|---|---|
`

// fullAgent is an agent of which every metric has a value.
func fullAgent(t *testing.T) *Agent {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "net/netfilter"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"nf_conntrack_count": "1234\n", "nf_conntrack_max": "262144\n"} {
		if err := os.WriteFile(filepath.Join(dir, "net/netfilter", name), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a := &Agent{
		log: log, cfg: config.Default(), opt: Options{ProcSys: dir}, ready: true, ovs: &ovsdb.Client{},
		problems: map[string]string{"bridge": "because"},
		sw:       ofswitch.New(dir, dir, model.BridgeName, ofswitch.Userspace),
		loop: programmer.New(programmer.Options{Node: "n1", Switch: ofswitch.NewFake(flows.Check),
			Log: log}),
		counts: newReading(func(context.Context) (report.Counts, error) {
			one := openflow.Stats{Packets: 1, Bytes: 100}
			return report.Counts{
				Drops: map[flows.Reason]openflow.Stats{flows.Multicast: one, flows.SpoofedIP: one},
				Rules: map[report.RuleID]openflow.Stats{{Policy: policyID("ns/p"),
					Rule: flows.Rule{Direction: model.Ingress}}: one},
			}, nil
		}),
		occupied: newReading(func(context.Context) (ofswitch.Occupancy, error) {
			return ofswitch.Occupancy{CacheEntries: 1, CacheLimit: 2, Connections: 3, ConnectionLimit: 4,
				Version: "3.1.0"}, nil
		}),
		addresses: func() []cni.Range {
			return []cni.Range{{CIDR: netip.MustParsePrefix("10.244.1.0/24"), Used: 1, Limit: 253}}
		},
	}
	var err error
	if a.kube, err = kube.NewWatcher(fakekube.New(), "n1", a.loop.Submit, log); err != nil {
		t.Fatal(err)
	}
	observeCNI("ADD", "total", time.Second)
	observeCNIResult("ADD", 0)
	observeProgramming(time.Second)
	observeBundle(time.Second, errors.New("away"))
	observeBundle(time.Second, &ofswitch.RejectedError{})
	endedConnections.WithLabelValues("policy").Inc()
	return a
}

// TestMetricsPage: docs/metrics.md lists the metrics that the agent serves.
func TestMetricsPage(t *testing.T) {
	registry := fullAgent(t).metrics()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	page.WriteString(metricsPreamble)
	seen := map[string]bool{}
	for _, f := range families {
		seen[f.GetName()] = true
		if !strings.HasPrefix(f.GetName(), "weft_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		fmt.Fprintf(&page, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()),
			strings.Join(labels, ", "), strings.ReplaceAll(f.GetHelp(), "|", `\|`))
	}
	for _, name := range described(registry) {
		if strings.HasPrefix(name, "weft_") && !seen[name] {
			t.Errorf("%s has no value in this test, so the page lacks it", name)
		}
	}
	golden.File(t, metricsDoc, page.String())
}

var fqName = regexp.MustCompile(`fqName: "([^"]+)"`)

// described are the names of the metrics that a registry's collectors announce.
func described(r *prometheus.Registry) []string {
	names := map[string]bool{}
	ch := make(chan *prometheus.Desc)
	go func() { defer close(ch); r.Describe(ch) }()
	for d := range ch {
		names[fqName.FindStringSubmatch(d.String())[1]] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// TestMetricValues: harmless drops are told from others, the part that has a problem is named, and failures are told
// apart by cause.
func TestMetricValues(t *testing.T) {
	a := fullAgent(t)
	status, text := ask(a, "/metrics")
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	for _, want := range []string{
		`weft_dropped_packets_total{harmless="true",reason="multicast"} 1`,
		`weft_dropped_packets_total{harmless="false",reason="spoofed-ip"} 1`,
		`weft_dropped_bytes_total{harmless="false",reason="spoofed-ip"} 100`,
		`weft_part_problem{part="bridge"} 1`,
		`weft_problems 1`,
		`weft_agent_ready 0`, // OVSDB does not answer
		`weft_pod_addresses{cidr="10.244.1.0/24"} 1`,
		`weft_pod_addresses_limit{cidr="10.244.1.0/24"} 253`,
		`weft_ovs_info{version="3.1.0"} 1`,
		`weft_bundle_failures_total{cause="rejected"} `,
		`weft_bundle_failures_total{cause="unreachable"} `,
		`weft_cni_requests_total{code="0",command="ADD"} `,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	a.ready = false
	if _, text := ask(a, "/metrics"); strings.Contains(text, "weft_pod_addresses{") || !strings.Contains(text,
		"weft_agent_ready 0") {
		t.Errorf("an agent that is not ready:\n%s", text)
	}
}

// TestMetricsAddr: metrics are served at an address of their own, which has nothing else; without one, nothing
// listens.
func TestMetricsAddr(t *testing.T) {
	a := fullAgent(t)
	a.serveMetrics(t.Context()) // returns at once
	a.cfg.MetricsAddr = netip.MustParseAddrPort(freeAddr(t))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.serveMetrics(ctx) }()
	get := func(path string) int {
		r, err := http.Get(fmt.Sprintf("http://%s%s", a.cfg.MetricsAddr, path))
		if err != nil {
			return 0
		}
		r.Body.Close()
		return r.StatusCode
	}
	testenv.Until(t, "metrics are served", func() bool { return get("/metrics") == http.StatusOK })
	if got := get("/livez"); got != http.StatusNotFound {
		t.Errorf("/livez: %d", got)
	}
	cancel()
	<-done
}

// TestProfiles: profiles are served beside reports at the operator's socket, and not at healthAddr.
func TestProfiles(t *testing.T) {
	a := fullAgent(t)
	answer := httptest.NewRecorder()
	operatorHandler(reporter{a}).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/debug/pprof/goroutine?debug=1",
		http.NoBody))
	if answer.Code != http.StatusOK || !strings.Contains(answer.Body.String(), "TestProfiles") {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
	answer = httptest.NewRecorder()
	operatorHandler(reporter{a}).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/v1/status", http.NoBody))
	if answer.Code != http.StatusOK {
		t.Errorf("status: %d %s", answer.Code, answer.Body)
	}
	for _, handler := range []http.Handler{a.healthHandler(), a.metricsHandler()} {
		answer = httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/debug/pprof/", http.NoBody))
		if answer.Code != http.StatusNotFound {
			t.Errorf("profiles at an address: %d", answer.Code)
		}
	}
}

// freeAddr is an address of the loopback device that nothing listened at a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	return server.Listener.Addr().String()
}
