//go:build integration

package datapath

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// matrixKinds are the kinds of destinations, in the order of the page's columns.
var matrixKinds = []string{"pod", "ClusterIP", "node port", "external IP", "load balancer", "world", "sizes"}

// echoPort is where servers of the matrix echo.
const echoPort = 7100

// matrix is a lab of three nodes in two subnets. The pods client, stranger and walled are on node1; open-N and
// guarded-N are servers on node2 and node3, of which policies isolate the guarded ones: they accept from client, and
// from the gateway of node1. The egress of walled is isolated: it reaches the host outside by TCP alone.
type matrix struct {
	mesh
	families []bool // IPv4 or not
}

// matrixServers are the pods that serve, by node.
var matrixServers = []struct {
	name, node string
	nodePort   uint16
	guarded    bool
}{
	{"open-2", "node2", 30010, false}, {"guarded-2", "node2", 30020, true},
	{"open-3", "node3", 30030, false}, {"guarded-3", "node3", 30040, true},
}

// serverAddr is an address of a Service beyond the cluster.
func serverAddr(v4 bool, nodePort uint16, kind byte) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(nodePort%200) + kind})
	}
	return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x:%x", nodePort, kind))
}

// externalKind and balancerKind are the kinds of serverAddr.
const (
	externalKind byte = 1
	balancerKind byte = 2
)

func upMatrix(t *testing.T, family lab.Family) matrix {
	t.Helper()
	families := map[lab.Family][]bool{lab.IPv4: {true}, lab.IPv6: {false}, lab.Dual: {true, false}}[family]
	file := filepath.Join(labtest.Write(t, map[string]string{"m.yaml": matrixManifests(families)}), "m.yaml")
	l := labtest.Up(t, "matrix", "-f", file, "--nodes=3", "--segments=2", "--ip-family="+string(family))
	m := matrix{mesh{Lab: l, pods: map[string]lab.PodStatus{}, nodes: map[string]lab.NodeStatus{}, manifests: file},
		families}
	s := l.Status()
	for _, p := range s.Pods {
		m.pods[p.Name] = p
	}
	for _, n := range s.Nodes {
		m.nodes[n.Name] = n
		for _, v4 := range families { // the routes of the network, for directRoutes: none
			m.Run("router", "ip", "route", "add", m.podCIDR(n.Name, v4).String(), "via", of(n.Addrs, v4).String())
		}
	}
	m.serve(t, "outside")
	for _, server := range matrixServers {
		m.serve(t, server.name)
	}
	return m
}

// serve echoes in a pod, or outside, as long as the lab stands.
func (m matrix) serve(t *testing.T, where string) {
	t.Helper()
	cmd := m.Exec(where, labtest.Program(t, "probe"), "serve", fmt.Sprintf("--echo=%d", echoPort), "--http=7180")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	testenv.Eventually(t, 30*time.Second, func() error {
		var reply wire.DialReply
		m.Ask(where, wire.DialRequest{Targets: []wire.Target{{Proto: wire.Connect, Addr: netip.MustParseAddr("127.0.0.1"),
			Port: echoPort, Attempts: 1, Timeout: time.Second}}}, &reply, "dial")
		if r := reply.Results[0]; !r.OK() {
			return fmt.Errorf("the server in %s: %s", where, r.Error)
		}
		return nil
	})
}

func matrixManifests(families []bool) string {
	var text strings.Builder
	for _, name := range []string{"client", "stranger", "walled"} {
		text.WriteString(podManifest(name, name, "node1", 9, ""))
	}
	list := func(addr func(v4 bool) string) string {
		items := make([]string, len(families))
		for i, v4 := range families {
			items[i] = addr(v4)
		}
		return strings.Join(items, ", ")
	}
	for _, s := range matrixServers {
		text.WriteString(podManifest(s.name, s.name, s.node, 9, ""))
		fmt.Fprintf(&text, `---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {app: %[1]s}
  externalIPs: [%[2]s]
  ports:
    - {name: tcp, port: 80, targetPort: %[4]d, nodePort: %[5]d}
    - {name: udp, port: 80, targetPort: %[4]d, nodePort: %[5]d, protocol: UDP}
status: {loadBalancer: {ingress: [%[3]s]}}
`, s.name, list(func(v4 bool) string { return fmt.Sprintf("%q", serverAddr(v4, s.nodePort, externalKind)) }),
			list(func(v4 bool) string { return fmt.Sprintf("{ip: %q}", serverAddr(v4, s.nodePort, balancerKind)) }),
			echoPort, s.nodePort)
		if s.guarded {
			fmt.Fprintf(&text, `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: %[1]s}
spec:
  podSelector: {matchLabels: {app: %[1]s}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}, %[2]s]}]
`, s.name, list(func(v4 bool) string {
				return fmt.Sprintf("{ipBlock: {cidr: %q}}",
					map[bool]string{true: "10.244.0.1/32", false: "fd10:244::1/128"}[v4])
			}))
		}
	}
	fmt.Fprintf(&text, `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: walled}
spec:
  podSelector: {matchLabels: {app: walled}}
  policyTypes: [Egress]
  egress: [{to: [%s], ports: [{port: %d}]}]
`, list(func(v4 bool) string {
		return fmt.Sprintf("{ipBlock: {cidr: %q}}",
			map[bool]string{true: "172.31.0.2/32", false: "fd57:6566:7461::2/128"}[v4])
	}), echoPort)
	return text.String()
}

// matrixProbe is a packet, or a stream, with what should become of it.
type matrixProbe struct {
	kind, from string
	wire.Target
	denied bool
	// source is the client's address as the server sees it; not valid where none is expected.
	source netip.Addr
	// tooLarge is a packet that the client's kernel must refuse.
	tooLarge bool
}

func (p matrixProbe) String() string {
	return fmt.Sprintf("%s: %s to %s at %s, %s of %d bytes", p.kind, p.from, p.Name, netip.AddrPortFrom(p.Addr, p.Port),
		p.Proto, p.Size)
}

// tally counts probes that went as expected.
type tally struct{ passed, denied, tooLarge int }

// probeAll sends all probes of a row, from all clients at once. What is denied is waited for beside the rest.
func (m matrix) probeAll(t *testing.T, r matrixRow) map[string]tally {
	t.Helper()
	const atOnce = 16 // by one process of the probe
	batches := map[string][]matrixProbe{}
	number := map[string]int{}
	for _, p := range m.probes(r) {
		key := p.from
		if p.denied {
			key = fmt.Sprintf("%s denied %d", p.from, number[p.from]/atOnce)
			number[p.from]++
		}
		batches[key] = append(batches[key], p)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	counts := map[string]tally{}
	for _, probes := range batches {
		wg.Go(func() {
			results, err := m.dial(t, probes[0].from, probes)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			for i, got := range results {
				p, count := probes[i], counts[probes[i].kind]
				switch {
				case p.denied && got.OK():
					t.Errorf("%s: %s passed, which a policy denies", r.name, p)
				case p.denied:
					count.denied++
				case p.tooLarge && !strings.Contains(got.Error, syscall.EMSGSIZE.Error()):
					t.Errorf("%s: %s, which is too large: %q, want %q", r.name, p, got.Error, syscall.EMSGSIZE)
				case p.tooLarge:
					count.tooLarge++
				case !got.OK():
					t.Errorf("%s: %s: %s", r.name, p, got.Error)
				case p.source.IsValid() && got.Observed.Addr() != p.source:
					t.Errorf("%s: %s: the server saw %s, want %s", r.name, p, got.Observed.Addr(), p.source)
				default:
					count.passed++
				}
				counts[p.kind] = count
			}
		})
	}
	wg.Wait()
	return counts
}

// dial sends a client's probes.
func (m matrix) dial(t *testing.T, from string, probes []matrixProbe) ([]wire.Result, error) {
	t.Helper()
	var request wire.DialRequest
	for _, p := range probes {
		request.Targets = append(request.Targets, p.Target)
	}
	in, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	cmd := m.Exec(from, labtest.Program(t, "probe"), "dial")
	cmd.Stdin = bytes.NewReader(in)
	out, err := labtest.Run(cmd)
	if err != nil {
		return nil, err
	}
	var reply wire.DialReply
	return reply.Results, json.Unmarshal([]byte(out), &reply)
}

// probes are all probes of a row.
func (m matrix) probes(r matrixRow) []matrixProbe {
	l := &probeList{m: m, row: r, lab: m.Status()}
	for _, v4 := range m.families {
		l.v4 = v4
		for _, s := range matrixServers {
			l.server(s.name, s.node, s.nodePort, s.guarded)
		}
		outside, source := of(l.lab.Outside.Addrs, v4), of(m.nodes["node1"].Addrs, v4)
		l.add("world", "client", "outside", outside, echoPort, false, source)
		l.add("world", "open-3", "outside", outside, echoPort, false, of(m.nodes["node3"].Addrs, v4))
		tcp := wire.Target{Name: "outside", Proto: wire.TCP, Addr: outside, Port: echoPort, Size: 20000}
		l.one("world", "walled", tcp, false, source)
		tcp.Proto, tcp.Size = wire.UDP, 64
		l.one("world", "walled", tcp, true, source)
	}
	return l.probes
}

// probeList collects the probes of a row, in one family after the other.
type probeList struct {
	m      matrix
	row    matrixRow
	lab    lab.Status
	v4     bool
	probes []matrixProbe
}

// server adds the probes to a server by all its addresses. Node1 reaches none that its row refuses.
func (l *probeList) server(name, node string, nodePort uint16, guarded bool) {
	if node == "node3" && l.row.far == "" {
		return
	}
	ip := func(pod string) netip.Addr { return of(l.m.pods[pod].IPs, l.v4) }
	gateway := func(node string) netip.Addr { return model.GatewayAddr(l.m.podCIDR(node, l.v4)) }
	at := func(node string) netip.Addr { return of(l.m.nodes[node].Addrs, l.v4) }
	service := l.clusterIP(name)
	external, balancer := serverAddr(l.v4, nodePort, externalKind), serverAddr(l.v4, nodePort, balancerKind)
	for _, from := range []struct {
		name   string
		source netip.Addr
		denied bool
	}{{"client", ip("client"), false}, {"stranger", ip("stranger"), guarded}, {"node/node1", gateway("node1"), false}} {
		l.add("pod", from.name, name, ip(name), echoPort, from.denied, from.source)
		l.add("ClusterIP", from.name, name, service, 80, from.denied, from.source)
		l.add("external IP", from.name, name, external, 80, from.denied, from.source)
		l.add("load balancer", from.name, name, balancer, 80, from.denied, from.source)
	}
	// The node whose port it is sends on with its gateway's address, and leaves the client's to its own endpoints. Pods
	// that use a port of another node have their node's address there.
	for _, from := range []string{"client", "stranger"} {
		l.add("node port", from, name, at("node1"), nodePort, false, gateway("node1"))
		if node == "node2" {
			l.add("node port", from, name, at("node2"), nodePort, guarded, at("node1"))
		} else {
			l.add("node port", from, name, at("node2"), nodePort, guarded, gateway("node2"))
		}
	}
	if !guarded { // docs/transports.md: a node's own clients of its own ports have one of two sources
		l.add("node port", "node/node1", name, at("node1"), nodePort, false, netip.Addr{})
	}
	outside := of(l.lab.Outside.Addrs, l.v4)
	l.add("node port", "outside", name, at("node1"), nodePort, false, gateway("node1"))
	switch {
	case node == "node3":
		l.add("node port", "outside", name, at("node3"), nodePort, guarded, outside)
	case l.row.far != "":
		l.add("node port", "outside", name, at("node3"), nodePort, guarded, gateway("node3"))
	}
	if !guarded {
		l.sizes(name, ip(name), at("node1"), nodePort)
	}
	l.add("external IP", "outside", name, external, 80, false, gateway("node1"))
	l.add("load balancer", "outside", name, balancer, 80, false, gateway("node1"))

	ping := wire.Target{Name: name, Proto: wire.ICMP, Addr: ip(name), DontFragment: true}
	ping.Size = l.m.rowMTU(l.row) - 28
	if !l.v4 {
		ping.Size -= 20
	}
	l.one("pod", "client", ping, false, netip.Addr{})
	l.one("pod", "stranger", ping, guarded, netip.Addr{})
}

func (l *probeList) clusterIP(name string) netip.Addr {
	for _, s := range l.lab.Services {
		if s.Name == name {
			for _, text := range s.IPs {
				if a := netip.MustParseAddr(text); a.Is4() == l.v4 {
					return a
				}
			}
		}
	}
	return netip.Addr{}
}

// add adds a stream, a small datagram, and one in fragments where it is to pass.
func (l *probeList) add(kind, from, name string, to netip.Addr, port uint16, denied bool, source netip.Addr) {
	target := wire.Target{Name: name, Proto: wire.TCP, Addr: to, Port: port, Size: 20000}
	l.one(kind, from, target, denied, source)
	target.Proto, target.Size = wire.UDP, 64
	l.one(kind, from, target, denied, source)
	if !denied {
		// On the userspace datapath, a connection to such an address may not begin with fragments (docs/services.md).
		target.Size, target.Opened = 4000, kind == "external IP" || kind == "load balancer"
		l.one(kind, from, target, denied, source)
	}
}

// one adds a probe. What is denied is tried once, for longer than TCP takes to repeat a lost packet.
func (l *probeList) one(kind, from string, target wire.Target, denied bool, source netip.Addr) {
	target.Attempts, target.Timeout = 3, 5*time.Second
	if denied {
		target.Attempts, target.Timeout = 1, 1500*time.Millisecond
	}
	l.probes = append(l.probes, matrixProbe{kind, from, target, denied, source, false})
}

// configureSet changes several settings of a node's agent at once, so that it never sees a combination between two.
func (m matrix) configureSet(t *testing.T, n lab.NodeStatus, settings []struct{ key, value string }) {
	t.Helper()
	path := filepath.Join(n.Files, "run/weft/config.yaml")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, s := range settings {
		var kept []string
		for _, line := range strings.SplitAfter(text, "\n") {
			if !strings.HasPrefix(line, s.key+":") {
				kept = append(kept, line)
			}
		}
		text = strings.Join(kept, "") + s.key + ": " + s.value + "\n"
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
