package service_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/internal/testing/golden"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/service"
)

// TestGolden reads each testdata/*.txtar: "objects.yaml" is a Service and its EndpointSlices as in the API server, each
// "view from NODE" or "view from NODE in ZONE" the result there, and "problems" the reported problems.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("golden files: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in, from, problems := decode(t, section(archive, "objects.yaml"))
			views := 0
			for i := range archive.Files {
				f := &archive.Files[i]
				var got string
				switch name := f.Name; name {
				case "objects.yaml":
					continue
				case "problems":
					got = strings.Join(problems, "\n") + "\n"
				default:
					views++
					place, ok := strings.CutPrefix(name, "view from ")
					if !ok {
						t.Fatalf("section %q is of no kind", name)
					}
					node, zone, _ := strings.Cut(place, " in ")
					got = view(in, from, service.Locality{Node: node, Zone: zone})
					slices.Reverse(from)
					if again := view(in, from, service.Locality{Node: node, Zone: zone}); again != got {
						t.Errorf("%s depends on the order of the slices:\n%s", name, again)
					}
				}
				golden.Section(t, f, got)
			}
			if views == 0 {
				t.Error("no view")
			}
			if len(problems) > 0 && section(archive, "problems") == nil {
				t.Errorf("unexpected problems: %q", problems)
			}
			golden.Save(t, file, archive)
		})
	}
}

func section(archive *txtar.Archive, name string) []byte {
	for _, f := range archive.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

func decode(t *testing.T, text []byte) (in service.Service, from []*service.Slice, problems []string) {
	t.Helper()
	report := func(err error) {
		if err != nil {
			problems = append(problems, strings.Split(err.Error(), "\n")...)
		}
	}
	for i, document := range bytes.Split(text, []byte("\n---\n")) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			t.Fatal(err)
		}
		switch kind.Kind {
		case "Service":
			var object corev1.Service
			if err := yaml.UnmarshalStrict(document, &object); err != nil {
				t.Fatal(err)
			}
			var err error
			in, err = kube.Service(&object)
			report(err)
		case "EndpointSlice":
			var object discoveryv1.EndpointSlice
			if err := yaml.UnmarshalStrict(document, &object); err != nil {
				t.Fatal(err)
			}
			object.Namespace, object.Name = "shop", fmt.Sprintf("slice-%d", i)
			slice, err := kube.EndpointSlice(&object)
			report(err)
			from = append(from, &slice)
		default:
			t.Fatalf("document %d is a %q", i, kind.Kind)
		}
	}
	return in, from, problems
}

// view is a Service resolved for a locality, as text.
func view(in service.Service, from []*service.Slice, at service.Locality) string {
	s, ok := service.Build(&in, from, at)
	if !ok {
		return "not served\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s by %s", s.Name, s.Algorithm)
	if s.Affinity != 0 {
		fmt.Fprintf(&b, ", affinity %s", s.Affinity)
	}
	if s.HealthCheckNodePort != 0 {
		fmt.Fprintf(&b, ", health check at %d: %d endpoints", s.HealthCheckNodePort, s.HealthyEndpoints)
	}
	b.WriteString("\n")
	for _, p := range s.Ports {
		fmt.Fprintf(&b, "%s %s:%d/%s", p.Name, p.ClusterIP, p.Port, p.Protocol)
		if p.NodePort != 0 {
			fmt.Fprintf(&b, ", node port %d", p.NodePort)
		}
		if len(p.ExternalIPs) > 0 {
			fmt.Fprintf(&b, ", external IPs %v", p.ExternalIPs)
		}
		if len(p.LoadBalancerIPs) > 0 {
			fmt.Fprintf(&b, ", load balancer %v", p.LoadBalancerIPs)
		}
		if len(p.LoadBalancerSources) > 0 {
			fmt.Fprintf(&b, " from %v", p.LoadBalancerSources)
		}
		if p.LoadBalancerClosed {
			b.WriteString(" closed")
		}
		b.WriteString("\n")
		for _, l := range []struct {
			name      string
			asked     bool
			endpoints []model.Endpoint
		}{
			{"cluster", p.Cluster != nil || !p.InternalLocal, p.Cluster},
			{"local", p.InternalLocal || p.ExternalLocal, p.Local},
		} {
			if !l.asked {
				continue
			}
			fmt.Fprintf(&b, "  %s:", l.name)
			for _, e := range l.endpoints {
				fmt.Fprintf(&b, " %s:%d", e.Addr, e.Port)
				if e.Weight != 1 {
					fmt.Fprintf(&b, "*%d", e.Weight)
				}
			}
			b.WriteString("\n")
		}
		if len(p.Retained) > 0 {
			fmt.Fprintf(&b, "  retained: %s\n", strings.Trim(fmt.Sprint(p.Retained), "[]"))
		}
		switch {
		case p.InternalLocal && p.ExternalLocal:
			b.WriteString("  internal and external traffic is local\n")
		case p.InternalLocal:
			b.WriteString("  internal traffic is local\n")
		case p.ExternalLocal:
			b.WriteString("  external traffic is local\n")
		}
		if !p.Elsewhere {
			b.WriteString("  no usable endpoint anywhere\n")
		}
	}
	return b.String()
}

func TestParseWeights(t *testing.T) {
	for _, tc := range []struct {
		value string
		want  map[string]uint16
		bad   int
	}{
		{"", nil, 0},
		{" ", nil, 0},
		{"a=3,b=100, c = 1 ", map[string]uint16{"a": 3, "b": 100, "c": 1}, 0},
		{"a=0,b=101,c=-1,d=x,e=,f", map[string]uint16{}, 6},
		{"=3,,a=2", map[string]uint16{"a": 2}, 2},
		{"a=2,a=3", map[string]uint16{"a": 2}, 1},
	} {
		got, bad := service.ParseWeights(tc.value)
		if diff := cmp.Diff(tc.want, got); diff != "" || len(bad) != tc.bad {
			t.Errorf("%q: %v, errors %v\n%s", tc.value, got, bad, diff)
		}
	}
}
