package monitoring

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"sigs.k8s.io/yaml"
)

const dir = "../../../deploy/monitoring/"

// ruleFile is what alerts.yaml has.
type ruleFile struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	} `json:"groups"`
}

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// unitTests are those of promtool test rules, as far as alerts_test.yaml uses them.
type unitTests struct {
	RuleFiles          []string `json:"rule_files"`
	EvaluationInterval string   `json:"evaluation_interval"`
	Tests              []struct {
		Interval    string `json:"interval"`
		Name        string `json:"name"`
		InputSeries []struct {
			Series string `json:"series"`
			Values string `json:"values"`
		} `json:"input_series"`
		AlertRuleTest []struct {
			EvalTime  string  `json:"eval_time"`
			Alertname string  `json:"alertname"`
			ExpAlerts []alert `json:"exp_alerts"`
		} `json:"alert_rule_test"`
	} `json:"tests"`
}

type alert struct {
	Labels      map[string]string `json:"exp_labels"`
	Annotations map[string]string `json:"exp_annotations"`
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// load decodes a file, and fails at a field that the type lacks.
func load[T any](t *testing.T, file string) (v T) {
	t.Helper()
	if err := yaml.UnmarshalStrict(read(t, dir+file), &v); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return v
}

func duration(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := model.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(d)
}

// metric is a row of docs/metrics.md, which a test of pkg/agent compares with what an agent serves.
type metric struct {
	kind   string
	labels []string
}

func metrics(t *testing.T) map[string]metric {
	t.Helper()
	known := map[string]metric{}
	quoted := regexp.MustCompile("`([^`]+)`")
	for _, m := range regexp.MustCompile("(?m)^\\| `(weft_\\w+)` \\| (\\w+) \\| ([^|]*) \\|").FindAllStringSubmatch(
		string(read(t, "../../../docs/metrics.md")), -1) {
		row := metric{kind: m[2]}
		for _, l := range quoted.FindAllStringSubmatch(m[3], -1) {
			row.labels = append(row.labels, l[1])
		}
		known[m[1]] = row
	}
	if len(known) < 30 {
		t.Fatalf("docs/metrics.md has %d metrics", len(known))
	}
	return known
}

// alerts are all rules of alerts.yaml.
func alerts(t *testing.T) []rule {
	t.Helper()
	var list []rule
	for _, g := range load[ruleFile](t, "alerts.yaml").Groups {
		list = append(list, g.Rules...)
	}
	return list
}

// dashboardExpressions are those of all panels, by panel and number, with the dashboard's variables replaced as Grafana
// replaces them.
func dashboardExpressions(t *testing.T) map[string]string {
	t.Helper()
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(read(t, dir+"dashboard.json"), &board); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, p := range board.Panels {
		for i, target := range p.Targets {
			found[fmt.Sprintf("panel %q, %d", p.Title, i)] = strings.NewReplacer("$__rate_interval", "1m", "$node", ".*").
				Replace(target.Expr)
		}
	}
	return found
}

// TestExpressions: each expression of the dashboard and of the alerts parses, and every metric and label that it names
// is one that agents serve, or that Prometheus and the scrape configurations add. Every metric is on the dashboard.
func TestExpressions(t *testing.T) {
	known := metrics(t)
	expressions := dashboardExpressions(t)
	for _, a := range alerts(t) {
		expressions["alert "+a.Alert] = a.Expr
	}
	always := []string{"node", "job", "instance", labels.MetricName}
	used := map[string]bool{}
	for where, text := range expressions {
		expr, err := parser.ParseExpr(text)
		if err != nil {
			t.Errorf("%s: %s: %v", where, text, err)
			continue
		}
		available := slices.Clone(always)
		parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
			selector, ok := n.(*parser.VectorSelector)
			if !ok {
				return nil
			}
			name := selector.Name
			m, ok := known[name]
			if base, bucket := strings.CutSuffix(name, "_bucket"); !ok && bucket && known[base].kind == "histogram" {
				name, m, ok = base, known[base], true
				m.labels = append(slices.Clone(m.labels), labels.BucketLabel)
			}
			own := strings.HasPrefix(name, "process_") || name == "up"
			if !ok && !own {
				t.Errorf("%s names the metric %s, which no agent serves", where, name)
			}
			used[name] = true
			available = append(available, m.labels...)
			for _, l := range selector.LabelMatchers {
				if !slices.Contains(slices.Concat(m.labels, always), l.Name) {
					t.Errorf("%s: %s has no label %s", where, name, l.Name)
				}
			}
			return nil
		})
		parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
			if by, ok := n.(*parser.AggregateExpr); ok {
				for _, l := range by.Grouping {
					if !slices.Contains(available, l) {
						t.Errorf("%s groups by %s, which no metric in it has", where, l)
					}
				}
			}
			return nil
		})
	}
	for name := range known {
		if !used[name] && name != "weft_problems" && name != "weft_build_info" {
			t.Errorf("%s is neither on the dashboard nor in an alert", name)
		}
	}
}

// TestAlerts: the tests of alerts_test.yaml, as promtool runs them. Each alert fires in one of them with its labels and
// its text, and none fires on a healthy node.
func TestAlerts(t *testing.T) {
	suite := load[unitTests](t, "alerts_test.yaml")
	byName := map[string]rule{}
	for _, r := range alerts(t) {
		byName[r.Alert] = r
	}
	fired := map[string]bool{}
	for _, test := range suite.Tests {
		t.Run(test.Name, func(t *testing.T) {
			var series strings.Builder
			fmt.Fprintf(&series, "load %s\n", test.Interval)
			for _, s := range test.InputSeries {
				fmt.Fprintf(&series, "  %s %s\n", s.Series, s.Values)
			}
			storage := promqltest.LoadedStorage(t, series.String())
			defer storage.Close()
			engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
			query := rules.EngineQueryFunc(engine, storage)
			for _, want := range test.AlertRuleTest {
				r, ok := byName[want.Alertname]
				if !ok {
					t.Errorf("there is no alert %s", want.Alertname)
					continue
				}
				got := evaluate(t, r, query, duration(t, suite.EvaluationInterval), duration(t, want.EvalTime))
				if len(got) != len(want.ExpAlerts) || len(got) > 0 && !cmp.Equal(got, want.ExpAlerts) {
					t.Errorf("%s after %s (-want +got):\n%s", r.Alert, want.EvalTime, cmp.Diff(want.ExpAlerts, got))
				}
				fired[r.Alert] = fired[r.Alert] || len(got) > 0
			}
		})
	}
	for name := range byName {
		if !fired[name] {
			t.Errorf("no test fires %s", name)
		}
	}
	if quiet := suite.Tests[0].AlertRuleTest; len(quiet) != len(byName) {
		t.Errorf("the healthy node is tested for %d of %d alerts", len(quiet), len(byName))
	}
}

// evaluate evaluates a rule once in an interval until the time is up, and returns what fires then.
func evaluate(t *testing.T, r rule, query rules.QueryFunc, interval, until time.Duration) (firing []alert) {
	t.Helper()
	expr, err := parser.ParseExpr(r.Expr)
	if err != nil {
		t.Fatal(err)
	}
	alerting := rules.NewAlertingRule(r.Alert, expr, duration(t, r.For), 0, labels.FromMap(r.Labels),
		labels.FromMap(r.Annotations), labels.EmptyLabels(), "", true, slog.New(slog.DiscardHandler))
	for at := time.Duration(0); at <= until; at += interval {
		var vector promql.Vector
		if vector, err = alerting.Eval(t.Context(), 0, time.UnixMilli(at.Milliseconds()).UTC(), query, nil, 0); err != nil {
			t.Fatalf("%s: %v", r.Alert, err)
		}
		_ = vector // the series ALERTS; what fires is asked for below
	}
	for _, a := range alerting.ActiveAlerts() {
		if a.State != rules.StateFiring {
			continue
		}
		l := a.Labels.Map()
		delete(l, labels.AlertName)
		firing = append(firing, alert{Labels: l, Annotations: a.Annotations.Map()})
	}
	return firing
}

// TestOperatorRulesAreTheSame: prometheusrule.yaml has the groups of alerts.yaml.
func TestOperatorRulesAreTheSame(t *testing.T) {
	object := load[struct {
		APIVersion string         `json:"apiVersion"`
		Kind       string         `json:"kind"`
		Metadata   map[string]any `json:"metadata"`
		Spec       ruleFile       `json:"spec"`
	}](t, "prometheusrule.yaml")
	if d := cmp.Diff(load[ruleFile](t, "alerts.yaml"), object.Spec); d != "" {
		t.Errorf("(-alerts.yaml +prometheusrule.yaml):\n%s", d)
	}
}

// TestAlertTexts: each alert has a severity and a sentence that names the node.
func TestAlertTexts(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range alerts(t) {
		if seen[a.Alert] {
			t.Errorf("two alerts are named %s", a.Alert)
		}
		seen[a.Alert] = true
		if s := a.Labels["severity"]; s != "warning" && s != "critical" {
			t.Errorf("%s: severity %q", a.Alert, s)
		}
		if !strings.Contains(a.Annotations["summary"], "{{ $labels.node }}") {
			t.Errorf("%s does not name the node: %s", a.Alert, a.Annotations)
		}
		if extra := slices.Sorted(maps.Keys(a.Annotations)); len(extra) != 1 {
			t.Errorf("%s: annotations %s", a.Alert, extra)
		}
	}
}
