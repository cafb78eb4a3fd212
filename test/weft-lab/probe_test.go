package main

import (
	"bytes"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/podns"
)

func matrix() lab.Report {
	target := func(kind, name string, proto podns.Proto, port uint16, addr string) lab.Target {
		return lab.Target{Kind: kind, Name: name, Addr: netip.MustParseAddr(addr), Port: podns.Port{Proto: proto,
			Number: port}}
	}
	return lab.Report{
		Lab: "lab", Seconds: 0.25, From: []string{"shop/a-0", "shop/b-0"},
		Targets: []lab.Target{target("pod", "shop/a-0", podns.TCP, 80, "10.244.0.2"), target("pod", "shop/b-0", podns.SCTP,
			5432, "10.244.0.3"), target("service", "shop/a", podns.TCP, 80, "10.96.0.10")},
		Probes: []lab.Probe{
			{From: "shop/a-0", To: 0, Expected: lab.Allow, State: lab.AsExpected, Outcome: podns.Answered, Reached: "shop/a-0"},
			{From: "shop/a-0", To: 1, Expected: lab.Allow, State: lab.NoProtocol},
			{From: "shop/a-0", To: 2, Expected: lab.Either, State: lab.AsExpected, Outcome: podns.Silent},
			{From: "shop/b-0", To: 0, Expected: lab.Deny, State: lab.Differs, Outcome: podns.Answered, Reached: "shop/a-0",
				Why: "Ingress: closed by shop/wall", Trace: "on node1:\n 0 Classifier: in_port=16"},
			{From: "shop/b-0", To: 1, Expected: lab.Allow, State: lab.Differs, Outcome: podns.Silent, Detail: "no answer",
				Why: "Ingress: no policy"},
			{From: "shop/b-0", To: 2, Expected: lab.Reject, State: lab.AsExpected, Outcome: podns.Refused,
				Detail: "connection refused"},
		},
		Counts: map[lab.State]int{lab.AsExpected: 3, lab.Differs: 2, lab.NoProtocol: 1},
	}
}

// wantText compares line by line; tabwriter leaves blanks at the ends of lines, which are not seen.
func wantText(t *testing.T, got, want string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(got) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), strings.Join(lines, "\n")+"\n"); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestMatrix(t *testing.T) {
	var out bytes.Buffer
	if err := showMatrix(&out, matrix()); err != nil {
		t.Fatal(err)
	}
	wantText(t, out.String(), `
   1  pod shop/a-0 80/TCP     10.244.0.2
   2  pod shop/b-0 5432/SCTP  10.244.0.3
   3  service shop/a 80/TCP   10.96.0.10

FROM \ TO   1   2   3
shop/a-0   ✓✓  ✓k  ?✗
shop/b-0   ✗✓  ✓✗  ⊘⊘

First the expected result, then the observed one: ✓ reached, ✗ not reached, ⊘ refused at once, ? depends on the endpoint, k this kernel has no such protocol.

shop/b-0 to pod shop/a-0 80/TCP: expected deny, answered by shop/a-0
  Ingress: closed by shop/wall
    on node1:
     0 Classifier: in_port=16

shop/b-0 to pod shop/b-0 5432/SCTP: expected allow, silent: no answer
  Ingress: no policy

6 pairs in 0.2 s: 3 as expected, 2 differ, 1 of a protocol that this kernel does not have
`)
	if strings.Contains(out.String(), "\x1b") {
		t.Error("colours where there is no terminal")
	}
}

// Only what differs makes the probe fail: a protocol that is not there does not.
func TestProbeVerdict(t *testing.T) {
	r := matrix()
	if err := verdict(r); err == nil || !strings.Contains(err.Error(), "in 2 of 6 pairs") {
		t.Errorf("verdict %v", err)
	}
	delete(r.Counts, lab.Differs)
	if err := verdict(r); err != nil {
		t.Errorf("verdict without a difference: %v", err)
	}
	r.Problem = "f.yaml:1: not YAML"
	if err := verdict(r); err == nil || !strings.Contains(err.Error(), r.Problem) {
		t.Errorf("verdict with manifests that were not applied: %v", err)
	}
}

func TestLabStatus(t *testing.T) {
	s := lab.Status{
		Name: "lab", Up: true, Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Manifests: []string{
			"/shop"}, Tunnel: "geneve", Datapath: "netdev", Family: lab.IPv4,
		Problem: "f.yaml:1: not YAML", Ignored: []string{"ConfigMap"}, Outside: lab.OutsideStatus{
			Addrs: []netip.Addr{netip.MustParseAddr("172.31.0.2")}}, Events: []string{"Warning Pod/a-0: FlowsRefused: because"},
		Nodes: []lab.NodeStatus{
			{Name: "node1", Addrs: []netip.Addr{netip.MustParseAddr("172.31.0.11")}, PodCIDRs: []netip.Prefix{
				netip.MustParsePrefix("10.244.0.0/24")}, Flows: 63},
			{Name: "node2", Problem: "not ready: starting"},
		},
		Pods: []lab.PodStatus{{Namespace: "shop", Name: "a-0", Node: "node1",
			IPs: []netip.Addr{netip.MustParseAddr("10.244.0.2")}, Ports: []podns.Port{{Proto: podns.TCP, Number: 80},
				{Proto: podns.UDP, Number: 53}}}},
		Services: []lab.ServiceStatus{{Namespace: "shop", Name: "a", Type: "NodePort", IPs: []string{"10.96.0.10"},
			Ports: []string{"80:30080/TCP"}, Endpoints: 1}},
	}
	var out bytes.Buffer
	if err := showLab(&out, s); err != nil {
		t.Fatal(err)
	}
	wantText(t, out.String(), `
Lab        lab, up since 2026-01-02 03:04:05
Manifests  /shop
Network    ipv4, geneve tunnels, netdev datapath
Ignored    ConfigMap, which mean nothing to a network
Problem    the manifests as they are now were not applied: f.yaml:1: not YAML
Outside    a host at 172.31.0.2, which is not a node

NODE   ADDRESSES    POD CIDRS      FLOWS  STATE
node1  172.31.0.11  10.244.0.0/24  63     ready
node2  -            -              0      not ready: starting

POD       NODE   IPS         PORTS
shop/a-0  node1  10.244.0.2  80/TCP,53/UDP

SERVICE  TYPE      IPS         EXTERNAL  PORTS         ENDPOINTS
shop/a   NodePort  10.96.0.10  -         80:30080/TCP  1

Event  Warning Pod/a-0: FlowsRefused: because
`)
}

func TestLabArguments(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"up"}, "-f must name a file"},
		{[]string{"up", "-f", "x", "--tunnel", "stt"}, `--tunnel "stt": want geneve or vxlan or gre`},
		{[]string{"up", "-f", "/nonexistent/x.yaml"}, "no such file"},
		{[]string{"up", "extra"}, "unknown command"},
		{[]string{"exec", "pod"}, "requires at least 2 arg"},
		{[]string{"probe", "-o", "xml"}, "-o xml is not known"},
		{[]string{"probe", "--timeout", "0s"}, "--timeout 0s: want more than 0"},
		{[]string{"status", "--name", "No!"}, `name "No!"`},
	} {
		root := newRoot()
		root.SetOut(io.Discard)
		root.SetArgs(tc.args)
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("weft-lab %v: %v, want %q", tc.args, err, tc.want)
		}
	}
}

// TestCheck: manifests are checked without a lab, from files and from the standard input.
func TestCheck(t *testing.T) {
	const input = "kind: List\napiVersion: v1\nitems:\n" +
		"- {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {affinity: {}, containers: [{name: c}]}}\n" +
		"- {apiVersion: v1, kind: Secret, metadata: {name: s}}\n"
	for _, tc := range []struct {
		args        []string
		input, want string
		wrong       string
	}{
		{[]string{"-f", "../../examples/shop"}, "", "2 nodes, 5 pods, 3 services, 0 policies\n", ""},
		{[]string{"-f", "-", "--nodes=1"}, input, "warning: standard input:4: Pod p spec.affinity: not supported: a lab has no scheduler; " +
			"nodeName and nodeSelector have an effect\nignored: Secret, which mean nothing to a network\n1 node, 1 pod, 0 services, 0 policies\n", ""},
		{[]string{"-f", "-"}, strings.ReplaceAll(input, "affinity", "affinities"), "", "standard input:4: Pod p spec.affinities: unknown field"},
		{[]string{"-f", "-", "--set", "mtoo=1"}, input, "", `unknown key "mtoo"`},
		{[]string{"-f", "-", "--set", "mtu"}, input, "", "want KEY=VALUE"},
		{[]string{"-f", "-", "--set", "tunnelType=vxlan"}, input, "", "use --tunnel"},
		{[]string{"-f", "-", "--set", "datapath=system"}, input, "", "use --datapath"},
		{[]string{"examples/shop"}, "", "", "did you mean -f examples/shop?"},
	} {
		root := newRoot()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetIn(strings.NewReader(tc.input))
		root.SetArgs(append([]string{"check"}, tc.args...))
		err := root.Execute()
		if (err != nil) != (tc.wrong != "") || err != nil && !strings.Contains(err.Error(), tc.wrong) {
			t.Errorf("check %v: %v, want %q", tc.args, err, tc.wrong)
		}
		if diff := cmp.Diff(tc.want, out.String()); diff != "" {
			t.Errorf("check %v (-want +got):\n%s", tc.args, diff)
		}
	}
}
