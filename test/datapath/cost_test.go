//go:build integration

package datapath

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/lab/labtest"
	"github.com/weft-cni/weft/pkg/lab/podns"
	"github.com/weft-cni/weft/test/datapath/burst"
	"github.com/weft-cni/weft/test/datapath/cache"
	"github.com/weft-cni/weft/test/testenv"
)

const (
	burstPort = 7100
	// mostEntries bounds the entries of a node's datapath cache, however many connections there were.
	mostEntries = 200
	// fewEntries may come later by themselves: neighbor discovery, the agents' own connections.
	fewEntries = 10
	// costPolicies is how many policies select each of the two pods.
	costPolicies = 100
)

// costCase is a way that connections take.
type costCase struct {
	name  string
	from  *client
	proto podns.Proto
	to    netip.AddrPort
	// first keeps the source ports apart of cases that have the client and an endpoint in common.
	first uint16
	// recirculations is what an established packet may cost, on the node where it costs most.
	recirculations int
}

// costBursts is after how many connections of a case the entries are counted. The emulated machine makes some
// hundreds a second.
func costBursts() []int {
	if labtest.Datapath() == config.DatapathSystem {
		return []int{200, 2000}
	}
	return []int{1000, 10000}
}

// The number of datapath-cache entries depends on pods, Services and policies, never on the number of connections;
// and an established packet is recirculated once. (Twice on a node that a client from outside came to for an endpoint
// of another: its source address and its destination are translated in a zone each.)
func TestConnectionCost(t *testing.T) {
	const ns, pol = "cost", "costpol"
	manifests := walledPod(ns, "client", "node1", "app: client") + walledPod(ns, "server", "node2", "app: server") +
		walledPod(ns, "web-1", "node1", "app: web") + walledPod(ns, "web-2", "node2", "app: web") + walledPod(ns, "web-3", "node2", "app: web") +
		costService(ns, "web", "NodePort", "") + costService(ns, "sticky", "ClusterIP", "sessionAffinity: ClientIP, ") +
		walledPod(pol, "client", "node1", "app: client") + walledPod(pol, "server", "node2", "app: server") + manyPolicies(pol)
	w := upWalled(t, "cost", map[string]string{"f.yaml": manifests})
	nodes := []string{"node1", "node2"}
	for _, node := range nodes {
		// An entry is forgotten after 10 seconds without a packet, unless told otherwise.
		w.Run("node/"+node, "ovs-vsctl", "set", "Open_vSwitch", ".", "other_config:max-idle=600000")
	}
	s := w.Status()
	from, walledFrom, server, walledServer := w.pod(t, ns+"/client"), w.pod(t, pol+"/client"), w.pod(t, ns+"/server"), w.pod(t, pol+"/server")
	outside := openClient(t, s, "outside", "", "outside")
	for _, c := range []*client{server, walledServer, w.pod(t, "web-1"), w.pod(t, "web-2"), w.pod(t, "web-3"), outside} {
		answerer, err := burst.Serve(c.ns, burstPort)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { answerer.Close() })
	}
	web, sticky, nodePort := w.serviceIPs(t, ns, "web"), w.serviceIPs(t, ns, "sticky"), w.nodePort(t, ns, "web")
	for _, v4 := range []bool{true, false} {
		at := func(addrs []netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(of(addrs, v4), port) }
		cases := []costCase{
			{"direct", from, podns.TCP, at(server.ips, burstPort), 10000, 1},
			{"through a Service", from, podns.TCP, at(web, 80), 10000, 1},
			{"with affinity", from, podns.TCP, at(sticky, 80), 25000, 1},
			{fmt.Sprintf("%d policies on both ends", costPolicies), walledFrom, podns.TCP, at(walledServer.ips, burstPort), 10000, 1},
			{"node port", outside, podns.TCP, at(w.node(t, "node1").Addrs, nodePort), 10000, 2},
			{"egress", from, podns.TCP, at(outside.ips, burstPort), 10000, 1},
		}
		if v4 {
			cases = append(cases, costCase{"through a Service, UDP", from, podns.UDP, at(web, 80), 10000, 1})
		}
		for _, c := range cases {
			t.Run(fmt.Sprintf("%s/%s", familyName(v4), c.name), func(t *testing.T) { w.costs(t, c, nodes) })
		}
	}
}

// costs makes connections of one case, and counts each node's entries after the few and after the many.
func (w *walled) costs(t *testing.T, c costCase, nodes []string) {
	for _, node := range nodes {
		w.Run("node/"+node, "ovs-appctl", "revalidator/purge")
	}
	counts, recirculations := map[string][]int{}, map[string]int{}
	made, took := 0, time.Duration(0)
	for _, total := range costBursts() {
		begin := time.Now()
		b := burst.Burst{From: c.from.ns, Proto: c.proto, To: c.to, FirstPort: c.first + uint16(made), Count: total - made, Workers: 16, Timeout: testenv.Patience(5 * time.Second), Terse: true}
		if err := b.Run(); err != nil {
			t.Error(err)
		}
		made, took = total, took+time.Since(begin)
		for _, node := range nodes {
			entries := cache.Parse(w.Run("node/"+node, "ovs-appctl", "dpctl/dump-flows"))
			counts[node] = append(counts[node], len(entries))
			n := counts[node]
			few := n[0]
			if len(entries) > mostEntries || len(entries)-few > max(fewEntries, few/10) {
				t.Errorf("%s: %v entries after %v connections, want at most %d, and as many after the last as after the first:\n%s",
					node, n, costBursts()[:len(n)], mostEntries, shorten(cache.Masks(entries)))
			}
			recirculations[node] = cache.Recirculations(entries)
			if recirculations[node] > c.recirculations {
				t.Errorf("%s: a packet of an established connection is recirculated %d times, want at most %d:\n%s",
					node, recirculations[node], c.recirculations, cache.Chain(entries))
			}
		}
		if t.Failed() {
			break // more of the same takes long
		}
	}
	if recirculations["node1"] == 0 {
		t.Error("node1 recirculates nothing: the test looks for the wrong thing")
	}
	t.Logf("entries after %v connections: %v; recirculations of an established packet: %v; %.0f connections/s",
		costBursts(), counts, recirculations, float64(made)/took.Seconds())
}

// shorten keeps the first lines, which tell of the most entries.
func shorten(text string) string {
	const most = 12
	lines := strings.SplitAfter(text, "\n")
	if len(lines) > most {
		lines = append(lines[:most], fmt.Sprintf("and %d more", len(lines)-most))
	}
	return strings.Join(lines, "")
}

// costService is a Service in front of the pods web-….
func costService(namespace, name, kind, more string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: %s}
spec: {type: %s, ipFamilyPolicy: RequireDualStack, %sselector: {app: web}, ports: [{name: tcp, port: 80, targetPort: %[5]d}, {name: udp, port: 80, targetPort: %[5]d, protocol: UDP}]}
`, namespace, name, kind, more, burstPort)
}

// manyPolicies are about the two pods of a namespace, both ways: of ports, of peers, of ranges of ports and of
// addresses. One of each kind allows what the test sends.
func manyPolicies(namespace string) string {
	var text strings.Builder
	for i := range costPolicies {
		peer := fmt.Sprintf("{podSelector: {matchLabels: {friend: f%d}}}", i)
		ports := fmt.Sprintf("ports: [{port: %d}]", 20000+i)
		switch {
		case i == 50:
			peer, ports = "{podSelector: {}}", fmt.Sprintf("ports: [{port: %d}]", burstPort)
		case i%4 == 1:
			ports = fmt.Sprintf("ports: [{port: %d, endPort: %d}]", 1000+100*i, 1000+100*i+50)
		case i%4 == 2:
			peer = fmt.Sprintf("{ipBlock: {cidr: 10.%d.0.0/16, except: [10.%d.7.0/24]}}, {ipBlock: {cidr: \"fd10:%x::/32\"}}", i, i, i)
		case i%4 == 3:
			peer, ports = fmt.Sprintf("{namespaceSelector: {matchLabels: {team: t%d}}}", i), "ports: [{protocol: TCP}]"
		}
		text.WriteString(policyManifest(namespace, fmt.Sprintf("p%d", i),
			fmt.Sprintf("podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [%[1]s], %[2]s}], egress: [{to: [%[1]s], %[2]s}]", peer, ports)))
	}
	return text.String()
}

// nodePort is the port of a Service's first port at nodes.
func (w *walled) nodePort(t *testing.T, namespace, name string) uint16 {
	t.Helper()
	for _, s := range w.Status().Services {
		if s.Namespace == namespace && s.Name == name {
			var port, at uint16
			if _, err := fmt.Sscanf(s.Ports[0], "%d:%d", &port, &at); err != nil {
				t.Fatal(err)
			}
			return at
		}
	}
	t.Fatalf("no Service %s/%s", namespace, name)
	return 0
}
