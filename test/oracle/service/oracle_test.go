package service_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/features"
	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/service"
)

// checks is how many cases a run tries unless -rapid.checks says otherwise.
const checks = 3000

func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", fmt.Sprint(checks)); err != nil { // before the command line is read
		panic(err)
	}
	klog.SetLogger(klog.Logger{}) // the reference has much to say about bad ports
	os.Exit(m.Run())
}

// The reference must have everything that is on in Kubernetes 1.34.
func TestFeatures(t *testing.T) {
	if !utilfeature.DefaultFeatureGate.Enabled(features.PreferSameTrafficDistribution) ||
		!utilfeature.DefaultFeatureGate.Enabled(features.LoadBalancerIPMode) {
		t.Error("a feature gate of the reference is off")
	}
}

func TestAgainstKubeProxy(t *testing.T) {
	var cases, ports, verdicts, drops, rejects, near int
	rapid.Check(t, func(t *rapid.T) {
		s := serviceGen.Draw(t, "service")
		endpoints := slicesGen(s).Draw(t, "slices")
		zone := rapid.SampledFrom(zones).Draw(t, "our zone")
		want, got := reference(s, endpoints, nodes[0], zone), ours(s, endpoints, nodes[0], zone)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("kube-proxy and Weft differ (-kube-proxy +weft):\n%s", diff)
		}
		shuffled := rapid.Permutation(endpoints).Draw(t, "other order")
		if diff := cmp.Diff(got, ours(s, shuffled, nodes[0], zone)); diff != "" {
			t.Fatalf("the order of the slices makes a difference:\n%s", diff)
		}
		cases++
		if cmp.Diff(got, ours(s, endpoints, nodes[0], "nowhere")) != "" {
			near++
		}
		for _, p := range want.Ports {
			ports++
			for _, v := range p.Verdicts {
				verdicts++
				switch v {
				case "drop":
					drops++
				case "reject":
					rejects++
				}
			}
		}
	})
	t.Logf("%d cases with %d ports; of %d verdicts %d were drop, %d reject; in %d cases the zone made a difference", cases,
		ports, verdicts, drops, rejects, near)
	for what, n := range map[string]int{"ports": ports, "drops": drops, "rejects": rejects, "zones that matter": near} {
		if n < cases/100 {
			t.Errorf("hardly any %s among the cases: %d of %d", what, n, cases)
		}
	}
}

// ours asks Weft.
func ours(s *corev1.Service, endpoints []*discoveryv1.EndpointSlice, node, zone string) view {
	v := view{Ports: map[string]port{}}
	in, _ := kube.Service(s) // what is reported is not used
	var from []*service.Slice
	for _, e := range endpoints {
		slice, _ := kube.EndpointSlice(e)
		from = append(from, &slice)
	}
	built, ok := service.Build(&in, from, service.Locality{Node: node, Zone: zone})
	if !ok {
		return v
	}
	v.HealthCheckPort, v.Healthy = int(built.HealthCheckNodePort), built.HealthyEndpoints
	for _, sp := range built.Ports {
		p := port{
			ClusterIP: sp.ClusterIP.String(), Name: sp.Name, Protocol: string(sp.Protocol), Port: int(sp.Port), NodePort: int(
				sp.NodePort),
			ExternalIPs: stringsOf(sp.ExternalIPs), VIPs: stringsOf(sp.LoadBalancerIPs), Sources: stringsOf(
				sp.LoadBalancerSources),
			AffinitySeconds: int(built.Affinity.Seconds()), Verdicts: map[string]string{},
		}
		accessible := p.NodePort != 0 || len(p.ExternalIPs) > 0 || len(p.VIPs) > 0
		p.normalize()
		for _, c := range clients {
			if c.external && !accessible {
				continue
			}
			chosen, isLocal := sp.Cluster, false
			if !c.external && sp.InternalLocal || c.external && c.outside && sp.ExternalLocal {
				chosen, isLocal = sp.Local, true
			}
			p.Verdicts[c.name] = judge(ourAddresses(chosen), isLocal, sp.Elsewhere).String()
		}
		v.Ports[key(p.Name, p.Protocol, sp.ClusterIP.Is4())] = p
	}
	return v
}

func ourAddresses(endpoints []model.Endpoint) (out []string) {
	for _, e := range endpoints {
		out = append(out, joined(e.Addr, e.Port))
	}
	slices.Sort(out)
	return out
}
