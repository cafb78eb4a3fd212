//go:build integration

package datapath

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

const (
	// soakVariable is for how long TestSoak goes on: "1h".
	soakVariable = "WEFT_SOAK"
	soakDefault  = 30 * time.Second
	// soakLeast is how many samples it takes to compare the middle with the end.
	soakLeast = 8
	// soakSteady is how long a soak has to be until connections end as fast as they begin: connection tracking remembers
	// a datagram's for minutes.
	soakSteady = 10 * time.Minute
)

// growth is how much a measure may grow from the middle of a soak to its end: a part of it, and something besides.
type growth struct {
	part, more float64
	// steady says that it stops growing only when a soak is long.
	steady bool
}

const megabyte = 1 << 20

// soakBounds are the measures, by their names. The kernel and Go give memory back late, and a sample may see a process
// that is about to end.
var soakBounds = map[string]growth{
	"goroutines of the agent":                {more: 10},
	"descriptors of the agent":               {more: 5},
	"resident bytes of the agent":            {part: 0.1, more: 16 * megabyte},
	"bytes in the agent's heap":              {part: 0.1, more: 8 * megabyte},
	"flows":                                  {},
	"groups":                                 {},
	"entries of the datapath's cache":        {part: 0.1, more: 100},
	"connections of the userspace datapath":  {part: 0.1, more: 500, steady: true},
	"connections of the kernel":              {part: 0.1, more: 500, steady: true},
	"resident bytes of ovs-vswitchd":         {part: 0.05, more: 8 * megabyte},
	"descriptors of ovs-vswitchd":            {more: 5},
	"resident bytes of ovsdb-server":         {part: 0.05, more: 8 * megabyte},
	"descriptors of ovsdb-server":            {more: 5},
	"lines of nftables":                      {},
	"links, rules, routes and neighbors":     {more: 10},
	"processes of the lab":                   {more: 4},
	"rows of Port and Interface in OVSDB":    {},
	"attachments that the CNI server stored": {},
}

// soakMetrics are those that the agent itself measures.
var soakMetrics = map[string]string{
	"go_goroutines": "goroutines of the agent", "process_open_fds": "descriptors of the agent",
	"process_resident_memory_bytes": "resident bytes of the agent",
	"go_memstats_heap_alloc_bytes":  "bytes in the agent's heap",
	"weft_flows":                    "flows", "weft_groups": "groups",
	"weft_datapath_flows":     "entries of the datapath's cache",
	"weft_switch_connections": "connections of the userspace datapath",
	"weft_kernel_connections": "connections of the kernel",
}

// sample is what was measured at a time, when all objects that came had gone again; by node and measure.
type sample map[string]float64

// TestSoak lets pods, policies and Services come and go while traffic of every kind goes on. What the agent and Open
// vSwitch use must not grow from the middle to the end.
func TestSoak(t *testing.T) {
	duration := soakDefault
	if text := os.Getenv(soakVariable); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", soakVariable, err)
		}
	}
	c := upChaos(t, "soak")
	from := c.pod(t, "chaos/client-node1")
	var samples []sample
	begin := time.Now()
	for rounds := 0; time.Since(begin) < duration || rounds < soakLeast; rounds++ {
		if time.Since(begin) > duration+testenv.Patience(5*time.Minute) {
			t.Fatalf("only %d rounds in %s: the machine is too slow to tell anything", rounds, time.Since(begin))
		}
		c.churn(from)
		samples = append(samples, c.sample())
	}
	took := time.Since(begin)
	c.judge(fault{name: fmt.Sprintf("%d rounds of objects", len(samples)), cause: "objects",
		bound: onDatapath(500*time.Millisecond, 0)}, begin)
	text, grown := judgeSamples(samples, took >= soakSteady)
	t.Logf("%s, %d samples:\n%s", took.Round(time.Second), len(samples), text)
	if len(grown) > 0 {
		t.Errorf("it grew from the middle to the end: %s", strings.Join(grown, "; "))
	}
}

// churn lets pods, policies and Services come, connects to the pods through one of the Services, and lets them go
// again.
func (c *chaos) churn(from *client) {
	c.t.Helper()
	text := idlePolicies(20) + walledService("chaos", "guests", "role: guest", 8080) +
		walledPod("chaos", "guest-1", "node1", "role: guest") + walledPod("chaos", "guest-2", "node2", "role: guest")
	for i := range 10 {
		text += walledService("chaos", fmt.Sprintf("more-%d", i), "role: server", 8080)
	}
	before := c.objects()
	c.write(c.t, "b.yaml", text)
	for _, ip := range c.serviceIPs(c.t, "chaos", "guests") {
		testenv.Eventually(c.t, 20*time.Second, func() error {
			answer, err := from.outcome(podns.TCP, netip.AddrPortFrom(ip, 80), time.Second)
			if err == nil && answer.Outcome != podns.Answered {
				err = fmt.Errorf("a new Service at %s: %s %s", ip, answer.Outcome, answer.Detail)
			}
			return err
		})
	}
	c.write(c.t, "b.yaml", "")
	testenv.Eventually(c.t, 20*time.Second, func() error {
		if now := c.objects(); now != before {
			return fmt.Errorf("the agents have %s, before %s", now, before)
		}
		return c.contentAgents()
	})
}

// sample measures both nodes.
func (c *chaos) sample() sample {
	c.t.Helper()
	s := sample{}
	for _, node := range []string{"node1", "node2"} {
		for name, value := range c.agentMetrics(node) {
			if measure := soakMetrics[name]; measure != "" {
				s[node+": "+measure] = value
			}
		}
		if labtest.Datapath() == config.DatapathNetdev {
			s[node+": connections of the userspace datapath"] -= c.remembered(node)
		}
		for _, program := range []string{"ovs-vswitchd", "ovsdb-server"} {
			s[node+": resident bytes of "+program], s[node+": descriptors of "+program] = c.used(node, program)
		}
		for measure, script := range map[string]string{
			"lines of nftables": "nft -s list ruleset | wc -l",
			"links, rules, routes and neighbors": "(ip -o link; ip rule; ip -6 rule; ip route show table all; ip -6 route " +
				"show table all; ip neigh) | wc -l",
			"rows of Port and Interface in OVSDB": "(ovs-vsctl --bare --columns=_uuid list Port; ovs-vsctl --bare " +
				"--columns=_uuid list Interface) | wc -l",
			"attachments that the CNI server stored": "ls /run/weft/attachments | wc -l",
		} {
			n, err := strconv.ParseFloat(c.Run("node/"+node, "sh", "-ec", script), 64)
			if err != nil {
				c.t.Fatalf("%s of %s: %v", measure, node, err)
			}
			s[node+": "+measure] = n
		}
	}
	pids, err := c.nodeStatus("node1").Sandbox.Group.Cgroup().PIDs()
	if err != nil {
		c.t.Fatal(err)
	}
	s["processes of the lab"] = float64(len(pids))
	return s
}

// remembered is how many connections a node's userspace datapath has in flows.EndpointZone. What Services translated is
// remembered there for an hour, so it grows for the first, up to the limit that the agent sets.
func (c *chaos) remembered(node string) float64 {
	c.t.Helper()
	out := c.Run("node/"+node, "ovs-appctl", "dpctl/ct-get-limits", "netdev@ovs-netdev",
		fmt.Sprintf("zone=%d", flows.EndpointZone))
	_, count, _ := strings.Cut(out, ",count=")
	n, err := strconv.ParseFloat(strings.TrimSpace(count), 64)
	if err != nil {
		c.t.Fatalf("what %s remembers of Services: %q", node, out)
	}
	return n
}

// askHealth asks where a node's agent serves its health and its metrics. The caller closes the body.
func (c *chaos) askHealth(node, path string) (*http.Response, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network,
		address string) (conn net.Conn, err error) {
		err = c.hosts[node].ns.Do(func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}
	return (&http.Client{Transport: transport, Timeout: testenv.Patience(20 * time.Second)}).Get("http://127.0.0.1:9470" +
		path)
}

// agentMetrics are the metrics of a node's agent that have no labels.
func (c *chaos) agentMetrics(node string) map[string]float64 {
	c.t.Helper()
	response, err := c.askHealth(node, "/metrics")
	if err != nil {
		c.t.Fatalf("the metrics of %s: %v", node, err)
	}
	defer response.Body.Close()
	values := map[string]float64{}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		if value, err := strconv.ParseFloat(text, 64); err == nil {
			values[name] = value
		}
	}
	if err := lines.Err(); err != nil || values["go_goroutines"] == 0 {
		c.t.Fatalf("the metrics of %s: %d, %v", node, len(values), err)
	}
	return values
}

// used is how much memory a daemon of Open vSwitch's has, and how many descriptors.
func (c *chaos) used(node, program string) (resident, descriptors float64) {
	c.t.Helper()
	pid, err := os.ReadFile(c.files[node] + "/run/openvswitch/" + program + ".pid")
	if err != nil {
		c.t.Fatal(err)
	}
	proc := "/proc/" + strings.TrimSpace(string(pid))
	stat, err := os.ReadFile(proc + "/statm")
	if err != nil {
		c.t.Fatal(err)
	}
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		c.t.Fatal(err)
	}
	if fields := strings.Fields(string(stat)); len(fields) > 1 {
		if pages, err := strconv.Atoi(fields[1]); err == nil {
			return float64(pages * os.Getpagesize()), float64(len(fds))
		}
	}
	c.t.Fatalf("%s of %s: /proc/PID/statm is %q", program, node, stat)
	return 0, 0
}

// judgeSamples compares the third quarter of the samples with the last one, by their medians, or by their minima where
// garbage is counted as well. Steady says that the soak was long enough for everything. It returns a table, and what
// grew beyond its bound.
func judgeSamples(samples []sample, steady bool) (table string, grown []string) {
	var text strings.Builder
	third, last := samples[len(samples)/2:len(samples)*3/4], samples[len(samples)*3/4:]
	for _, name := range slices.Sorted(maps.Keys(samples[0])) {
		measure := name
		if _, rest, ok := strings.Cut(name, ": "); ok {
			measure = rest
		}
		bound, known := soakBounds[measure]
		middle, end := typical(third, name), typical(last, name)
		most := middle*(1+bound.part) + bound.more
		fmt.Fprintf(&text, "%-55s first %12.0f, middle %12.0f, end %12.0f, bound %12.0f\n", name, samples[0][name], middle,
			end, most)
		switch {
		case !known:
			grown = append(grown, name+" has no bound")
		case end > most && (steady || !bound.steady):
			grown = append(grown, fmt.Sprintf("%s: from %.0f to %.0f, at most %.0f", name, middle, end, most))
		}
	}
	return text.String(), grown
}

// typical is the value of a measure in some samples.
func typical(samples []sample, name string) float64 {
	var values []float64
	for _, s := range samples {
		values = append(values, s[name])
	}
	slices.Sort(values)
	if strings.HasSuffix(name, "heap") {
		return values[0]
	}
	return values[len(values)/2]
}

// What grows is noticed: each measure, by one more than its bound; and what does not grow is not.
func TestSoakJudgment(t *testing.T) {
	for measure, bound := range soakBounds {
		for _, over := range []float64{0, 1} {
			var samples []sample
			for i := range soakLeast {
				const middle = 1e6
				value := float64(middle)
				if i >= soakLeast*3/4 {
					value += middle*bound.part + bound.more + over
				}
				samples = append(samples, sample{"node1: " + measure: value})
			}
			if _, grown := judgeSamples(samples, true); (len(grown) > 0) != (over > 0) {
				t.Errorf("%s, %.0f more than its bound: %v", measure, over, grown)
			}
		}
	}
}
