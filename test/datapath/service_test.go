//go:build integration

package datapath

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

// tableServices are the Services of the table. All are of type LoadBalancer, so each has every kind of address; the
// endpoints of web are one pod on node1 and one on node2, that of host is a pod in the network of node2.
var tableServices = []tableService{
	{name: "cc", app: "web"},
	{name: "cl", app: "web", externalLocal: true},
	{name: "lc", app: "web", internalLocal: true},
	{name: "ll", app: "web", internalLocal: true, externalLocal: true},
	{name: "none-c", app: "absent"},
	{name: "none-l", app: "absent", internalLocal: true, externalLocal: true},
	{name: "host-c", app: "host"},
	{name: "host-l", app: "host", externalLocal: true},
	{name: "ranges-in", app: "web", ranges: []string{"172.31.0.2/32", "fd57:6566:7461::2/128"}},
	{name: "ranges-out", app: "web", ranges: []string{"203.0.113.0/24", "2001:db8:ffff::/64"}},
	{name: "ranges-l", app: "web", externalLocal: true, ranges: []string{"172.31.0.0/24", "fd57:6566:7461::/64"}},
}

type tableService struct {
	name, app                    string
	internalLocal, externalLocal bool
	ranges                       []string

	// What follows is the same for all, with numbers that follow from the place in the table.
	index int
	ports map[podns.Proto]uint16 // at nodes
	ips   []netip.Addr           // cluster IPs
}

// port is the Service's own; they differ because node3's address is an external one of all of them.
func (s tableService) port() uint16 { return uint16(80 + s.index) }

// addr gives a Service an address of its own in one of the table's ranges: 1 and 2 are the load balancer's, 3 is
// external.
func (s tableService) addr(v4 bool, kind int) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(10*s.index + kind)})
	}
	return netip.MustParseAddr(fmt.Sprintf("2001:db8::%d:%d", s.index+1, kind))
}

func policyName(local bool) string {
	if local {
		return "Local"
	}
	return "Cluster"
}

func (s tableService) manifest(node3 []netip.Addr) string {
	var external, balancer []string
	for _, v4 := range []bool{true, false} {
		external = append(external, fmt.Sprintf("%q, %q", s.addr(v4, 3), of(node3, v4)))
		balancer = append(balancer, fmt.Sprintf("{ip: %q}, {ip: %q}", s.addr(v4, 1), s.addr(v4, 2)))
	}
	ranges := ""
	if len(s.ranges) > 0 {
		ranges = fmt.Sprintf("\n  loadBalancerSourceRanges: [%q]", strings.Join(s.ranges, `", "`))
		ranges = strings.ReplaceAll(ranges, `\"`, `"`)
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: %[2]s}
  internalTrafficPolicy: %[3]s
  externalTrafficPolicy: %[4]s
  externalIPs: [%[5]s]%[7]s
  ports: [{name: tcp, port: %[8]d, targetPort: tcp}, {name: udp, port: %[8]d, targetPort: udp, protocol: UDP}]
status: {loadBalancer: {ingress: [%[6]s]}}
`, s.name, s.app, policyName(s.internalLocal), policyName(s.externalLocal), strings.Join(external,
		", "), strings.Join(balancer, ", "), ranges, s.port())
}

// podManifest is a pod with a TCP and a UDP port of one number.
func podManifest(name, app, node string, port int, more string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[2]s}}
spec:
  nodeName: %[3]s%[5]s
  containers: [{name: c, ports: [{name: tcp, containerPort: %[4]d}, {name: udp, containerPort: %[4]d, protocol: UDP}]}]
`, name, app, node, port, more)
}

const hostNetwork = "\n  hostNetwork: true"

// tableClients are the places that packets come from.
var tableClients = []struct{ pod, node, kind string }{
	{"client-1", "node1", "pod"}, // on a node with an endpoint
	{"client-3", "node3", "pod"}, // on a node without
	{"web-1", "node1", "pod"},    // an endpoint itself
	{"host-1", "node1", "node"},  // hostNetwork pods, so the nodes themselves: with an endpoint and without
	{"host-3", "node3", "node"},
	{"outside", "", "outside"},
}

// table is the lab of the table of cases.
type table struct {
	*labtest.Lab
	services []tableService
	clients  []*client
	nodes    map[string]lab.NodeStatus
	// endpoints are all pods behind Services, by app.
	endpoints map[string][]endpoint
}

func upTable(t *testing.T) table {
	t.Helper()
	// The plan of labs is fixed, so node3's addresses are known before there is one.
	node3 := []netip.Addr{netip.MustParseAddr("172.31.0.13"), netip.MustParseAddr("fd57:6566:7461::d")}
	text := podManifest("web-1", "web", "node1", 8080, "") + podManifest("web-2", "web", "node2", 8080, "") +
		podManifest("client-1", "client", "node1", 9, "") + podManifest("client-3", "client", "node3", 9, "") +
		podManifest("host-1", "client", "node1", 9, hostNetwork) + podManifest("host-2", "host", "node2", 8081, hostNetwork) +
		podManifest("host-3", "client", "node3", 9, hostNetwork)
	tb := table{nodes: map[string]lab.NodeStatus{}, endpoints: map[string][]endpoint{}}
	for i, s := range tableServices {
		s.index = i
		text += s.manifest(node3)
		tb.services = append(tb.services, s)
	}
	tb.Lab = labtest.Up(t, "svctable", "-f", labtest.Write(t, map[string]string{"f.yaml": text}), "--nodes=3",
		"--ip-family=dual")
	s := tb.Status()
	for _, n := range s.Nodes {
		tb.nodes[n.Name] = n
	}
	if got := tb.nodes["node3"].Addrs; !slices.Equal(got, node3) {
		t.Fatalf("node3 has the addresses %v, want %v", got, node3)
	}
	for i := range tb.services {
		tb.services[i].take(t, s)
	}
	for _, c := range tableClients {
		tb.clients = append(tb.clients, openClient(t, s, c.pod, c.node, c.kind))
	}
	for _, p := range s.Pods {
		app := p.Labels["app"]
		tb.endpoints[app] = append(tb.endpoints[app], endpoint{name: "default/" + p.Name, node: p.Node, addrs: p.IPs,
			onHost: app == "host"})
	}
	// The ways of the host outside: what ends in 1 and 3 through node1, what ends in 2 through node3.
	for _, service := range tb.services {
		for _, v4 := range []bool{true, false} {
			tb.Run("outside", "ip", "route", "replace", service.addr(v4, 2).String(), "via", of(tb.nodes["node3"].Addrs,
				v4).String())
		}
	}
	return tb
}

// take reads what the lab assigned.
func (s *tableService) take(t *testing.T, status lab.Status) {
	t.Helper()
	s.ports = map[podns.Proto]uint16{}
	for _, one := range status.Services {
		if one.Name != s.name {
			continue
		}
		for _, text := range one.IPs {
			s.ips = append(s.ips, netip.MustParseAddr(text))
		}
		for _, text := range one.Ports {
			var port, nodePort uint16
			var proto string
			if _, err := fmt.Sscanf(text, "%d:%d/%s", &port, &nodePort, &proto); err != nil {
				t.Fatalf("port %q of Service %s: %v", text, s.name, err)
			}
			s.ports[podns.Proto(proto)] = nodePort
		}
	}
	if len(s.ips) != 2 || len(s.ports) != 2 {
		t.Fatalf("Service %s has the addresses %v and the node ports %v", s.name, s.ips, s.ports)
	}
}

// targets are the ways to a Service in one family.
func (tb table) targets(s tableService, v4 bool, proto podns.Proto) []target {
	at := func(kind targetKind, node string, addr netip.Addr, port uint16) target {
		return target{kind: kind, node: node, addr: netip.AddrPortFrom(addr, port), proto: proto}
	}
	node1, node3 := of(tb.nodes["node1"].Addrs, v4), of(tb.nodes["node3"].Addrs, v4)
	return []target{
		at(clusterIP, "", of(s.ips, v4), s.port()),
		at(nodePort, "node1", node1, s.ports[proto]),
		at(nodePort, "node3", node3, s.ports[proto]),
		at(balancerIP, "node1", s.addr(v4, 1), s.port()),
		at(balancerIP, "node3", s.addr(v4, 2), s.port()),
		at(externalIP, "node1", s.addr(v4, 3), s.port()),
		at(nodeAddress, "node3", node3, s.port()),
	}
}

// Every kind of client, address, traffic policy and endpoint: who is reached, with which source, and how a client is
// turned away.
func TestServiceTable(t *testing.T) {
	tb := upTable(t)
	begin := time.Now()
	var all []tableCase
	for _, service := range tb.services {
		for _, c := range tb.clients {
			for _, v4 := range []bool{true, false} {
				for _, proto := range []podns.Proto{podns.TCP, podns.UDP} {
					for _, to := range tb.targets(service, v4, proto) {
						if want, ok := tb.reference(service, c, to); ok {
							all = append(all, tableCase{service.name, c, to, want})
						}
					}
				}
			}
		}
	}
	problems, dials := tryAll(all)
	for _, name := range slices.Sorted(maps.Keys(problems)) {
		t.Errorf("%s: %s", name, problems[name])
	}
	if len(problems) >= mostDiffer {
		t.Errorf("%d cases differ; the rest was not tried", len(problems))
	}
	took := time.Since(begin)
	t.Logf("%d cases with %d connections in %.1f s; %d differ", len(all), dials, took.Seconds(), len(problems))
	if limit := testenv.Patience(90 * time.Second); took > limit {
		t.Errorf("the table took %s, more than %s", took, limit)
	}
}

// tableCase is one case of the table.
type tableCase struct {
	service string
	from    *client
	to      target
	want    expectation
}

func (c tableCase) String() string {
	return fmt.Sprintf("%s: from %s to %s", c.service, c.from.name, c.to)
}

// Cases that are tried at once: of those that should be answered, for each processor, so that they go as fast as the
// machine; the others mostly wait. When so many differ the rest is not tried: each takes its time.
const (
	answeredAtOnce = 4
	silentAtOnce   = 64
	mostDiffer     = 100
)

// tryAll makes the connections of all cases, and returns those that differ and how many connections that were.
func tryAll(cases []tableCase) (map[string]string, int) {
	var mu sync.Mutex
	differ, dials := map[string]string{}, 0
	try := func(silent bool, atOnce int) {
		var group sync.WaitGroup
		slots := make(chan struct{}, atOnce)
		for _, c := range cases {
			if (c.want.outcome == podns.Silent) != silent {
				continue
			}
			slots <- struct{}{}
			mu.Lock()
			enough := len(differ) >= mostDiffer
			mu.Unlock()
			if enough {
				break
			}
			group.Go(func() {
				defer func() { <-slots }()
				got := c.from.try(c.to, c.want)
				mu.Lock()
				defer mu.Unlock()
				dials += got.dials
				if text := c.want.compare(got); text != "" {
					differ[c.String()] = text
				}
			})
		}
		group.Wait()
	}
	try(false, answeredAtOnce*runtime.GOMAXPROCS(0))
	try(true, silentAtOnce)
	return differ, dials
}
