//go:build integration

package datapath

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/test/datapath/burst"
	"github.com/weft-cni/weft/test/datapath/cache"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
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
	// most bounds the entries; 0 is mostEntries.
	most int
	// times is how many times as many connections as usual it takes to see all entries; 0 is 1.
	times int
}

// costBursts is after how many connections of a case the entries are counted. The emulated machine makes some
// hundreds a second.
func costBursts() []int {
	if labtest.Datapath() == config.DatapathSystem {
		return []int{500, 2000} // the first must meet all of a Service's 128 places already
	}
	return []int{1000, 10000}
}

// The number of datapath-cache entries depends on pods, Services and policies, never on the number of connections;
// and an established packet is recirculated once. (Twice on a node that a client from outside came to for an endpoint
// of another: its source address and its destination are translated in a zone each.)
func TestConnectionCost(t *testing.T) {
	const ns, pol = "cost", "costpol"
	manifests := walledPod(ns, "client", "node1", "app: client") + walledPod(ns, "server", "node2", "app: server") +
		walledPod(ns, "web-1", "node1", "app: web") + walledPod(ns, "web-2", "node2", "app: web") + walledPod(ns, "web-3",
		"node2", "app: web") +
		costService(ns, "web", "NodePort", "") + costService(ns, "sticky", "ClusterIP", "sessionAffinity: ClientIP, ") +
		walledPod(pol, "client", "node1", "app: client") + walledPod(pol, "server", "node2", "app: server") +
		manyPolicies(pol)
	w := upWalled(t, "cost", map[string]string{"f.yaml": manifests})
	nodes := []string{"node1", "node2"}
	for _, node := range nodes {
		// An entry is forgotten after 10 seconds without a packet, unless told otherwise.
		w.Run("node/"+node, "ovs-vsctl", "set", "Open_vSwitch", ".", "other_config:max-idle=600000")
	}
	s := w.Status()
	from, walledFrom, server, walledServer := w.pod(t, ns+"/client"), w.pod(t, pol+"/client"), w.pod(t,
		ns+"/server"), w.pod(t, pol+"/server")
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
			{name: "direct", from: from, to: at(server.ips, burstPort), recirculations: 1},
			{name: "through a Service", from: from, to: at(web, 80), recirculations: 1},
			{name: "with affinity", from: from, to: at(sticky, 80), first: 25000, recirculations: 1},
			{name: fmt.Sprintf("%d policies on both ends", costPolicies), from: walledFrom, to: at(walledServer.ips, burstPort),
				recirculations: 1},
			{name: "node port", from: outside, to: at(w.node(t, "node1").Addrs, nodePort), recirculations: 2},
			{name: "egress", from: from, to: at(outside.ips, burstPort), recirculations: 1},
		}
		if v4 {
			cases = append(cases, costCase{name: "through a Service, UDP", from: from, proto: podns.UDP, to: at(web, 80),
				recirculations: 1})
		}
		for _, c := range cases {
			t.Run(fmt.Sprintf("%s/%s", familyName(v4), c.name), func(t *testing.T) { w.costs(t, c, nodes) })
		}
	}
	// The preview of staged policies takes no recirculation and no entry for each connection either.
	w.write(t, "staged.yaml", stagedPolicies(pol))
	for _, node := range nodes {
		testenv.Eventually(t, 20*time.Second, func() error {
			entry := w.Run("node/"+node, "ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "weft",
				fmt.Sprintf("table=%d", flows.PolicyEntry))
			if !strings.Contains(entry, "resubmit") {
				return fmt.Errorf("%s has no preview:\n%s", node, entry)
			}
			return nil
		})
	}
	for _, c := range []costCase{
		{name: "staged/direct", from: from, to: netip.AddrPortFrom(server.addr(true), burstPort), first: 40000, recirculations: 1},
		{name: "staged/policies on both ends", from: walledFrom, to: netip.AddrPortFrom(walledServer.addr(true), burstPort),
			first: 40000, recirculations: 1},
	} {
		t.Run(c.name, func(t *testing.T) { w.costs(t, c, nodes) })
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		text, err := os.ReadFile(filepath.Join(lab.Root, w.Name, "logs", "node2-weft-agent.log"))
		const want = `verdict="would be allowed" tier=NetworkPolicy policy=costpol/s50 direction=Ingress rule=0 staged=true`
		if err == nil && !strings.Contains(string(text), want) {
			err = fmt.Errorf("the log of node2 has no %s", want)
		}
		return err
	})
}

// stagedPolicies are manyPolicies again, staged. The one that allows the connections logs.
func stagedPolicies(namespace string) string {
	text := strings.ReplaceAll(manyPolicies(namespace), "namespace: "+namespace+", name: p",
		`annotations: {weft.dev/staged: "true"}, namespace: `+namespace+", name: s")
	return strings.Replace(text, `"true"}, namespace: `+namespace+", name: s50",
		`"true", weft.dev/log-policy: "true"}, namespace: `+namespace+", name: s50", 1)
}

// A Service with many endpoints takes some entries for each of them, and no more for each connection.
func TestConnectionCostOfManyEndpoints(t *testing.T) {
	const (
		ns    = "cost"
		pods  = 3
		ports = 14 // of each pod; in all more than one group of the switch spreads
		// entries for each endpoint: as many as give each nearly the same share.
		each = 16
	)
	manifests := walledPod(ns, "client", "node1", "app: client") + "---\napiVersion: v1\nkind: Service\n" +
		"metadata: {namespace: cost, name: many}\nspec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}\n"
	for i := range pods {
		manifests += walledPod(ns, fmt.Sprintf("web-%d", i), fmt.Sprintf("node%d", i%2+1), "app: web")
	}
	w := upWalled(t, "costmany", map[string]string{"f.yaml": manifests})
	nodes := []string{"node1", "node2"}
	for _, node := range nodes {
		w.Run("node/"+node, "ovs-vsctl", "set", "Open_vSwitch", ".", "other_config:max-idle=600000")
	}
	from := w.pod(t, ns+"/client")
	addrs := map[bool][]string{}
	for i := range pods {
		web := w.pod(t, fmt.Sprintf("%s/web-%d", ns, i))
		for _, v4 := range []bool{true, false} {
			addrs[v4] = append(addrs[v4], fmt.Sprintf("{addresses: [%q]}", of(web.ips, v4)))
		}
		for port := range ports {
			answerer, err := burst.Serve(web.ns, burstPort+uint16(port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { answerer.Close() })
		}
	}
	var slices strings.Builder
	for v4, family := range map[bool]string{true: "IPv4", false: "IPv6"} {
		for port := range ports {
			fmt.Fprintf(&slices, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n"+
				"metadata: {namespace: cost, name: many-%s-%d, labels: {kubernetes.io/service-name: many}}\naddressType: %s\n"+
				"endpoints: [%s]\nports: [{port: %d}]\n", strings.ToLower(family), port, family, strings.Join(addrs[v4], ", "),
				burstPort+port)
		}
	}
	w.write(t, "slices.yaml", slices.String())
	testenv.Eventually(t, 20*time.Second, func() error {
		groups := w.Run("node/node1", "ovs-ofctl", "-O", "OpenFlow15", "dump-groups", "weft")
		if n := endpointsIn(groups); n != 2*pods*ports {
			return fmt.Errorf("the switch's groups have %d endpoints, want %d", n, 2*pods*ports)
		}
		return nil
	})
	for _, v4 := range []bool{true, false} {
		to := netip.AddrPortFrom(of(w.serviceIPs(t, ns, "many"), v4), 80)
		t.Run(familyName(v4), func(t *testing.T) {
			w.costs(t, costCase{from: from, to: to, recirculations: 1, most: each * pods * ports, times: 5}, nodes)
		})
	}
}

// costs makes connections of one case, and counts each node's entries after the few and after the many.
func (w *walled) costs(t *testing.T, c costCase, nodes []string) {
	c.first, c.most, c.times = cmp.Or(c.first, 10000), cmp.Or(c.most, mostEntries), cmp.Or(c.times, 1)
	c.proto = cmp.Or(c.proto, podns.TCP)
	bursts := costBursts()
	bursts[0] *= c.times
	bursts[1] = max(bursts[1], 2*bursts[0])
	for _, node := range nodes {
		w.Run("node/"+node, "ovs-appctl", "revalidator/purge")
	}
	counts, recirculations := map[string][]int{}, map[string]int{}
	made, took := 0, time.Duration(0)
	for _, total := range bursts {
		begin := time.Now()
		b := burst.Burst{From: c.from.ns, Proto: c.proto, To: c.to, FirstPort: c.first + uint16(made), Count: total - made,
			Workers: 16, Timeout: testenv.Patience(5 * time.Second), Terse: true}
		if err := b.Run(); err != nil {
			t.Error(err)
		}
		made, took = total, took+time.Since(begin)
		for _, node := range nodes {
			entries := cache.Parse(w.Run("node/"+node, "ovs-appctl", "dpctl/dump-flows"))
			counts[node] = append(counts[node], len(entries))
			n := counts[node]
			few := n[0]
			if len(entries) > c.most || len(entries)-few > max(fewEntries, few/10) {
				t.Errorf("%s: %v entries after %v connections, want at most %d, and as many after the last as after the first:\n%s",
					node, n, bursts[:len(n)], c.most, shorten(cache.Masks(entries)))
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
		bursts, counts, recirculations, float64(made)/took.Seconds())
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
			peer = fmt.Sprintf("{ipBlock: {cidr: 10.%d.0.0/16, except: [10.%d.7.0/24]}}, {ipBlock: {cidr: \"fd10:%x::/32\"}}", i,
				i, i)
		case i%4 == 3:
			peer, ports = fmt.Sprintf("{namespaceSelector: {matchLabels: {team: t%d}}}", i), "ports: [{protocol: TCP}]"
		}
		text.WriteString(policyManifest(namespace, fmt.Sprintf("p%d", i),
			fmt.Sprintf("podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [%[1]s], %[2]s}], egress: [{to: "+
				"[%[1]s], %[2]s}]", peer, ports)))
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
