package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

const states = `
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {topology.kubernetes.io/zone: east}}
---
apiVersion: v1
kind: Node
metadata: {name: node2}
---
apiVersion: v1
kind: Pod
metadata: {name: good, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: sick, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 80}]}]}
status: {conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: leaving, deletionTimestamp: "2026-01-02T03:04:05Z", labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host, labels: {app: web}}
spec: {nodeName: node2, hostNetwork: true, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, trafficDistribution: PreferSameNode, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: all}
spec: {selector: {app: web}, publishNotReadyAddresses: true, internalTrafficPolicy: Local, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: balanced}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, clusterIP: 10.96.0.77, externalIPs: [192.0.2.7], ports: [{name: a, port: 80, nodePort: 30080}, {name: b, port: 81}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {ip: 192.0.2.2, ipMode: Proxy}, {hostname: x}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: balanced-x, labels: {kubernetes.io/service-name: balanced}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.99], nodeName: node1, conditions: {ready: false}}, {addresses: [10.244.0.98], conditions: {ready: false, serving: true, terminating: true}}]
ports: [{name: a, port: 8080}]
`

// What a manifest says of a pod's state is in its endpoint as the endpoint slice controller puts it there.
func TestEndpointConditions(t *testing.T) {
	l := standing(t, IPv4, states)
	l.nodes[0].zone = "east"
	l.pods["default/host"].ips = addrsOf(l.nodes[1].underlay)
	got := map[string]string{}
	for _, s := range l.services() {
		for _, slice := range endpointSlices(s, l.sortedPods()) {
			for _, e := range slice.Endpoints {
				text := fmt.Sprintf("ready %t serving %t terminating %t", *e.Conditions.Ready, *e.Conditions.Serving,
					*e.Conditions.Terminating)
				if e.Hints != nil {
					text += fmt.Sprintf(" zones %v nodes %v", e.Hints.ForZones, e.Hints.ForNodes)
				}
				got[s.Name+" "+e.TargetRef.Name+" "+e.Addresses[0]] = text
			}
		}
	}
	want := map[string]string{
		"web good 10.244.0.10":    "ready true serving true terminating false zones [{east}] nodes [{node1}]",
		"web sick 10.244.0.11":    "ready false serving false terminating false zones [{east}] nodes [{node1}]",
		"web leaving 10.244.1.12": "ready false serving true terminating true zones [] nodes [{node2}]",
		"web host 172.31.0.12":    "ready true serving true terminating false zones [] nodes [{node2}]",
		"all good 10.244.0.10":    "ready true serving true terminating false",
		"all sick 10.244.0.11":    "ready true serving false terminating false",
		"all leaving 10.244.1.12": "ready true serving true terminating true",
		"all host 172.31.0.12":    "ready true serving true terminating false",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
}

// Services are completed as an API server does it: what the manifest says stays.
func TestServicesAreCompleted(t *testing.T) {
	l := standing(t, IPv4, states)
	services := map[string]*corev1.Service{}
	for _, s := range l.services() {
		services[s.Name] = s
	}
	b := services["balanced"]
	if b.Spec.ClusterIP != "10.96.0.77" || len(b.Spec.ClusterIPs) != 1 || b.Spec.Ports[0].NodePort != 30080 {
		t.Errorf("what the manifest says is changed: %+v", b.Spec)
	}
	if p := b.Spec.Ports[1].NodePort; p < 30000 || p > 32767 || p == 30080 || b.Spec.HealthCheckNodePort < 30000 ||
		b.Spec.HealthCheckNodePort == p {
		t.Errorf("node port %d, health check %d", p, b.Spec.HealthCheckNodePort)
	}
	if got := fmt.Sprint(externalAddrs(b)); got != "[192.0.2.7 192.0.2.1]" {
		t.Errorf("external addresses %s", got)
	}
	if w := services["web"]; w.Spec.Ports[0].NodePort != 0 || *w.Spec.InternalTrafficPolicy != "Cluster" ||
		w.Spec.SessionAffinity != "None" {
		t.Errorf("a Service of the default type: %+v", w.Spec)
	}
	if got := l.slicesOf(b, l.sortedPods()); len(got) != 1 || got[0].AddressType != discoveryv1.AddressTypeIPv4 ||
		len(got[0].Endpoints) != 2 {
		t.Errorf("slices of a Service without a selector: %+v", got)
	}
}

// Who may answer for a Service depends on the endpoints' state and on where the question comes from.
func TestServiceExpectations(t *testing.T) {
	l := standing(t, IPv4, states)
	l.pods["default/host"].ips = addrsOf(l.nodes[1].underlay)
	v, err := l.view()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, target := range v.targets {
		if target.Kind != "service" {
			continue
		}
		for _, from := range []string{"default/good", "default/leaving"} {
			var names []string
			for _, b := range target.usable(l.pods[from].node.name) {
				names = append(names, b.name)
			}
			slices.Sort(names)
			expected, _ := v.expected(l.pods[from], target)
			got[fmt.Sprintf("%s %s:%d from %s", target.Name, target.Addr, target.Number, from[len("default/"):])] = fmt.Sprint(
				expected, names)
		}
	}
	ip := func(name string) netip.Addr {
		for _, s := range l.services() {
			if s.Name == name {
				return netip.MustParseAddr(s.Spec.ClusterIP)
			}
		}
		return netip.Addr{}
	}
	want := map[string]string{}
	for _, from := range []string{"good", "leaving"} {
		want[fmt.Sprintf("default/web %s:80 from %s", ip("web"), from)] = "allow[default/good default/host]"
		for _, addr := range []string{"10.96.0.77", "192.0.2.1", "192.0.2.7"} {
			want[fmt.Sprintf("default/balanced %s:80 from %s", addr, from)] = "allow[10.244.0.98]"
			want[fmt.Sprintf("default/balanced %s:81 from %s", addr, from)] = "reject[]"
		}
	}
	want[fmt.Sprintf("default/all %s:80 from good", ip("all"))] = "allow[default/good default/sick]"
	want[fmt.Sprintf("default/all %s:80 from leaving", ip("all"))] = "allow[default/host default/leaving]"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("expected results (-want +got):\n%s", diff)
	}
}

// Of a program that crashed, the reason is shown and not the end of a long list.
func TestTail(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	for text, want := range map[string]string{
		"one\ntwo\n": "    one\n    two",
		strings.Repeat("line\n", 50) + "panic: why\n" + strings.Repeat("frame\n", 20): "    panic: why" + strings.Repeat(
			"\n    frame", 20),
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := tail(file); got != want {
			t.Errorf("the tail of %q is\n%s", text, got)
		}
	}
}
