//go:build integration

package datapath

import (
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

// The endpoints of one Service: ports of a few pods, spelled out in EndpointSlices.
const (
	manyPods  = 4
	manyPorts = 500 // of each pod
	manyDials = 20000
	// manyClients share the work, so that source ports seldom come again: connections of one source port are one to a
	// hash.
	manyClients = 8
)

// endpointsIn counts the endpoints that groups lead to. A group may have one of its endpoints in two buckets.
func endpointsIn(groups string) int {
	different := map[string]bool{}
	for _, to := range bucketEndpoint.FindAllString(groups, -1) {
		different[to] = true
	}
	return len(different)
}

var bucketEndpoint = regexp.MustCompile(`nat\(dst=[^)]*\)`)

// One Service with 2,000 endpoints: all of them are reached, and by as many connections as chance would have it.
func TestServiceOfTwoThousandEndpoints(t *testing.T) {
	var text strings.Builder
	for i := range manyClients {
		text.WriteString(podManifest(fmt.Sprintf("client-%d", i), "client", "node1", 9, ""))
	}
	text.WriteString("---\napiVersion: v1\nkind: Service\nmetadata: {name: many}\nspec: {ports: [{port: 80}]}\n")
	var addrs []string
	for i := range manyPods {
		node := i%2 + 1
		fmt.Fprintf(&text,
			"---\napiVersion: v1\nkind: Pod\nmetadata: {name: many-%d}\nspec:\n  nodeName: node%d\n  containers:\n"+
				"    - name: c\n      ports:\n", i, node)
		for port := range manyPorts {
			fmt.Fprintf(&text, "        - {containerPort: %d}\n", 10000+port)
		}
	}
	file := labtest.Write(t, map[string]string{"f.yaml": text.String()})
	l := labtest.Up(t, "svcmany", "-f", file)
	s := l.Status()
	for i := range manyPods {
		p, err := s.Find(fmt.Sprintf("many-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, fmt.Sprintf("{addresses: [%s]}", p.IPs[0]))
	}
	// The addresses are known now.
	for port := range manyPorts {
		fmt.Fprintf(&text,
			"---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n"+
				"metadata: {name: many-%[1]d, labels: {kubernetes.io/service-name: many}}\naddressType: IPv4\n"+
				"endpoints: [%[2]s]\nports: [{port: %[1]d}]\n",
			10000+port, strings.Join(addrs, ", "))
	}
	rewrite(t, file, text.String())
	to := netip.AddrPortFrom(netip.MustParseAddr(s.Services[0].IPs[0]), 80)
	var from []*client
	for i := range manyClients {
		from = append(from, openClient(t, s, fmt.Sprintf("client-%d", i), "node1", "pod"))
	}
	const endpoints = manyPods * manyPorts
	testenv.Eventually(t, 30*time.Second, func() error {
		if s := l.Status(); s.Problem != "" || s.Services[0].Endpoints != endpoints {
			return fmt.Errorf("%d endpoints, want %d; %s", s.Services[0].Endpoints, endpoints, s.Problem)
		}
		groups := l.Run("node/node1", "ovs-ofctl", "-O", "OpenFlow15", "dump-groups", "weft")
		if n := endpointsIn(groups); n != endpoints {
			return fmt.Errorf("the switch's groups have %d endpoints, want %d", n, endpoints)
		}
		return nil
	})
	begin := time.Now()
	var mu sync.Mutex
	counts, different := map[string]int{}, map[netip.AddrPort]bool{}
	var group errgroup.Group
	group.SetLimit(64)
	for i := range manyDials {
		group.Go(func() error {
			answer, err := from[i%manyClients].ns.Dial(podns.TCP, to, testenv.Patience(10*time.Second))
			if err == nil && answer.Outcome != podns.Answered {
				err = fmt.Errorf("%s %s", answer.Outcome, answer.Detail)
			}
			mu.Lock()
			defer mu.Unlock()
			if !different[answer.Source] {
				different[answer.Source] = true
				counts[fmt.Sprintf("%s:%d", answer.Name, answer.Port)]++
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	want := float64(len(different)) / endpoints
	chi := float64(endpoints-len(counts)) * want
	most := 0
	for _, n := range counts {
		chi += (float64(n) - want) * (float64(n) - want) / want
		most = max(most, n)
	}
	// The 99.99th percentile of chi-squared, which is nearly normal for so many degrees of freedom; and what it takes
	// when each endpoint's share is an eighth from the even one, as the places of the datapath's hash may have it.
	const freedom = endpoints - 1
	limit := freedom + 3.72*math.Sqrt(2*freedom) + 2*(3.72*3.72-1)/3 + float64(len(different))/(8*8)
	t.Logf("%d connections (%d of different source ports) in %.1f s to %d of %d endpoints, at most %d to one; "+
		"chi-squared %.0f, limit %.0f", manyDials, len(different), took.Seconds(), len(counts), endpoints, most, chi, limit)
	if chi > limit {
		t.Errorf("chi-squared is %.0f, want at most %.0f", chi, limit)
	}
	if few := int(endpoints * 0.99); len(counts) < few {
		t.Errorf("%d endpoints were reached, want at least %d", len(counts), few)
	}
	// Between two pods there must be no difference either.
	var perPod []int
	for i := range manyPods {
		n := 0
		for name, count := range counts {
			if strings.HasPrefix(name, fmt.Sprintf("default/many-%d:", i)) {
				n += count
			}
		}
		perPod = append(perPod, n)
	}
	slices.Sort(perPod)
	t.Logf("connections for each pod: %v", perPod)
}

// What pods send beyond the pod network gets a source port other than the tunnels': the userspace datapath would take
// the answer.
func TestServiceMasqueradePorts(t *testing.T) {
	c := upChanging(t, "svcmasq", "")
	host, err := c.Status().Find("host")
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.SetLimit(16)
	for range 300 { // of which a port from the whole range would be too small in two dozen cases
		group.Go(func() error {
			answer, err := c.clients[0].ns.Dial(podns.UDP, netip.AddrPortFrom(host.IPs[0], 9), testenv.Patience(5*time.Second))
			if err != nil || answer.Outcome != podns.Answered {
				return fmt.Errorf("%s %s %w", answer.Outcome, answer.Detail, err)
			}
			if port := answer.Source.Port(); !model.PortsBesideTunnels().Contains(port) {
				return fmt.Errorf("the source is %s", answer.Source)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}
