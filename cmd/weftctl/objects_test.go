package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
)

func TestPolicy(t *testing.T) {
	many := []string{"a", "b", "c", "d", "e"}
	web := report.Policy{Policy: "shop/web", Tier: "NetworkPolicy", Log: true, Rules: []report.Rule{
		{Direction: model.Ingress, Rule: "0", Verdict: "allowed", Pods: []string{"web"}, Stats: openflow.Stats{Packets: 12, Bytes: 1200}},
		{Direction: model.Ingress, Rule: report.RuleDenied, Verdict: "denied", Pods: many, Stats: openflow.Stats{Packets: 3, Bytes: 222}},
	}}
	broken := report.Policy{Policy: "shop/broken", Tier: "NetworkPolicy", Problem: "no such port", Rules: []report.Rule{{Direction: model.Egress,
		Rule: report.RuleDenied, Verdict: "denied", Pods: many[:4], Warning: "hidden"}}}
	socket := serve(t, map[string]any{"/v1/policies": []report.Policy{broken, web},
		"/v1/policies?object=shop%2Fweb": []report.Policy{web}, "/v1/policies?object=none": []report.Policy{}})
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"policy"}, `
POLICY       TIER           DIRECTION  RULE    VERDICT  PACKETS  BYTES  PODS      STATE
shop/broken  NetworkPolicy  Egress     denied  denied   0        0      a,b,c,d   no such port
shop/web     NetworkPolicy  Ingress    0       allowed  12       1200   web       programmed, logged
shop/web     NetworkPolicy  Ingress    denied  denied   3        222    a,b,c,+2  programmed, logged
`},
		{[]string{"policy", "shop/web"}, `
POLICY    TIER           DIRECTION  RULE    VERDICT  PACKETS  BYTES  PODS       STATE
shop/web  NetworkPolicy  Ingress    0       allowed  12       1200   web        programmed, logged
shop/web  NetworkPolicy  Ingress    denied  denied   3        222    a,b,c,d,e  programmed, logged
`},
	} {
		out, err := weftctl(socket, tc.args...)
		if err != nil {
			t.Fatal(err)
		}
		wantText(t, out, tc.want)
	}
	if _, err := weftctl(socket, "policy", "none"); err == nil || !strings.Contains(err.Error(), "no policy none") {
		t.Errorf("a policy that is not there gave %v", err)
	}
	out, err := weftctl(serve(t, map[string]any{"/v1/policies": []report.Policy{}}), "policy")
	if err != nil || !strings.Contains(out, "No policy selects") {
		t.Errorf("without policies: %q, %v", out, err)
	}
}

func TestService(t *testing.T) {
	endpoint := func(text string, local bool, weight uint16) report.Endpoint {
		return report.Endpoint{Address: netip.MustParseAddrPort(text), Local: local, Weight: weight}
	}
	web := report.Service{Service: "shop/web", Affinity: "3h0m0s", HealthCheckNodePort: 32000, HealthyEndpoints: 1,
		Frontends: []report.Frontend{
			{Kind: "ClusterIP", Address: "10.96.0.80:80", Protocol: "TCP", Policy: "Cluster", Stats: openflow.Stats{Packets: 7},
				Endpoints: []report.Endpoint{endpoint("10.244.0.2:8080", true, 1), endpoint("10.244.1.5:8080", false, 3),
					endpoint("10.244.1.6:8080", false, 1), endpoint("10.244.1.7:8080", false, 1), endpoint("10.244.1.8:8080", false,
						1)}},
			{Kind: "LoadBalancer", Address: "192.0.2.80:80", Protocol: "TCP", Policy: "Local", Sources: cidrs("198.51.100.0/24"),
				Endpoints: []report.Endpoint{endpoint("10.244.0.2:8080", true, 1)}},
		}}
	empty := report.Service{Service: "shop/api", Frontends: []report.Frontend{{Kind: "ClusterIP", Address: "[fd96::1]:80",
		Protocol: "UDP", Policy: "Cluster", Without: "rejected: there is no endpoint"}}}
	broken := report.Service{Service: "shop/broken", Problem: "spec.clusterIPs: bad"}
	socket := serve(t, map[string]any{"/v1/services": []report.Service{empty, broken, web},
		"/v1/services?object=web": []report.Service{web}, "/v1/services?object=none": []report.Service{}})
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"service"}, `
SERVICE      KIND          ADDRESS        PROTO  TRAFFIC                     AFFINITY  NEW  ENDPOINTS                                                      STATE
shop/api     ClusterIP     [fd96::1]:80   UDP    Cluster                     -         0    -                                                              rejected: there is no endpoint
shop/broken  -             -              -      -                           -         -    -                                                              spec.clusterIPs: bad
shop/web     ClusterIP     10.96.0.80:80  TCP    Cluster                     3h0m0s    7    10.244.0.2:8080*,10.244.1.5:8080(weight 3),10.244.1.6:8080,+2  programmed
shop/web     LoadBalancer  192.0.2.80:80  TCP    Local from 198.51.100.0/24  3h0m0s    0    10.244.0.2:8080*                                               programmed

shop/web tells load balancers at port 32000 of this node that it has 1 endpoint here.
`},
	} {
		out, err := weftctl(socket, tc.args...)
		if err != nil {
			t.Fatal(err)
		}
		wantText(t, out, tc.want)
	}
	if out, err := weftctl(socket, "service", "web"); err != nil || !strings.Contains(out, "10.244.1.8:8080") {
		t.Errorf("a Service by its name shows not all its endpoints: %q, %v", out, err)
	}
	if _, err := weftctl(socket, "service", "none"); err == nil || !strings.Contains(err.Error(), "no Service none of this node") {
		t.Errorf("a Service that is not there gave %v", err)
	}
}

// With an object, the groups behind its flows are shown, each once.
func TestFlowsShowGroups(t *testing.T) {
	group := report.Group{ID: 1073741825, By: "hash of nw_src", Buckets: []report.Bucket{
		{ID: 5, Weight: 1, To: "10.244.0.2:8080", Remembered: true}, {ID: 6, Weight: 2, To: "10.244.1.5:8080"}}}
	list := []report.Flow{
		{Table: "ServiceLB", TableID: 40, Priority: 100, Match: "tcp,nw_dst=10.96.0.80,tp_dst=80",
			Actions: "group:1073741825", Owner: "service/shop/web", Groups: []report.Group{group}},
		{Table: "ServiceLB", TableID: 40, Priority: 100, Match: "tcp,nw_dst=192.0.2.80,tp_dst=80",
			Actions: "group:1073741825", Owner: "service/shop/web", Groups: []report.Group{group}},
	}
	socket := serve(t, map[string]any{"/v1/flows": list, "/v1/flows?object=web": list})
	out, err := weftctl(socket, "flows", "web")
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, out, `
TABLE      PRIO  PACKETS  OWNER             MATCH                            ACTIONS
ServiceLB  100   0        service/shop/web  tcp,nw_dst=10.96.0.80,tp_dst=80  group:1073741825
ServiceLB  100   0        service/shop/web  tcp,nw_dst=192.0.2.80,tp_dst=80  group:1073741825

GROUP       BY              BUCKET  WEIGHT  TO
1073741825  hash of nw_src  5       1       10.244.0.2:8080 (remembered for the client)
1073741825  hash of nw_src  6       2       10.244.1.5:8080
`)
	if out, err := weftctl(socket, "flows"); err != nil || strings.Contains(out, "GROUP") {
		t.Errorf("all flows: %v\n%s", err, out)
	}
}
