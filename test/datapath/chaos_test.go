//go:build integration

package datapath

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
)

const (
	// chaosVariable is for how long TestChaos goes on with faults in a random order, after one of each: "30m".
	chaosVariable = "WEFT_CHAOS"
	// chaosOnlyVariable is a regular expression; only faults whose names match are tried.
	chaosOnlyVariable = "WEFT_CHAOS_ONLY"
)

const (
	chaosPort     = 9000
	chaosNodePort = 30090
	// chaosSettle is how long everything may take to be as before, after a fault and its bound.
	chaosSettle = 90 * time.Second
	// chaosLook is the time of which every datagram must be answered before the next fault.
	chaosLook = 500 * time.Millisecond
)

// chaos is a lab with traffic that never stops, in which things are broken.
type chaos struct {
	*walled
	t     *testing.T
	watch []*pinger
	// forbidden are what no policy allows.
	forbidden []*pinger
	servers   []*echoServer
}

// fault is one way in which something breaks, and what follows from it for traffic that policies allow. What they do
// not allow never passes.
type fault struct {
	name string
	// cause is what is broken: "agent", "API server", "objects", "node", "switch" or "Open vSwitch".
	cause string
	// bound is the longest time without an answer that a route may see.
	bound time.Duration
	do    func(c *chaos)
}

// TestChaos breaks one thing after the other while datagrams go every way, and demands that what policies forbid
// never passes, that faults of the agent, of the API server and of objects lose nothing, that others lose no more than
// their bound, that everything is as before afterwards by itself, and that nothing is left over.
func TestChaos(t *testing.T) {
	c := upChaos(t)
	only := regexp.MustCompile(os.Getenv(chaosOnlyVariable))
	faults := slices.DeleteFunc(slices.Concat(agentFaults(), objectFaults(), nodeFaults(), switchFaults()),
		func(f fault) bool { return !only.MatchString(f.name) })
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	begin, before := time.Now(), c.belongings()
	for _, f := range faults {
		c.breakOne(f)
	}
	if text := os.Getenv(chaosVariable); text != "" {
		duration, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("%s: %v", chaosVariable, err)
		}
		for time.Since(begin) < duration && !t.Failed() {
			c.breakOne(faults[random.IntN(len(faults))])
		}
	}
	if after := c.belongings(); after != before {
		t.Errorf("left over: before\n%s\nafter\n%s", before, after)
	}
	c.freshCompile()
	sent, lost := 0, 0
	for _, p := range c.watch {
		s, l, _ := p.since(time.Time{}, time.Now().Add(-chaosPatience()))
		sent, lost = sent+s, lost+l
	}
	t.Logf("%d datagrams sent in %s, %d without answer; %d forbidden ones, none arrived", sent, time.Since(begin).Round(time.Second), lost, c.sentForbidden())
}

// breakOne breaks one thing, waits until all is as before, and judges what traffic met.
func (c *chaos) breakOne(f fault) {
	c.t.Helper()
	from := time.Now()
	f.do(c)
	c.settle(f.name)
	to := time.Now().Add(-chaosPatience())
	var worst *pinger
	lost, longest := 0, time.Duration(0)
	for _, p := range c.watch {
		_, l, gap := p.since(from, to)
		if lost += l; gap > longest {
			worst, longest = p, gap
		}
	}
	text := fmt.Sprintf("%-12s %-45s %4d lost, longest gap %6s of %s", f.cause, f.name, lost, longest.Round(10*time.Millisecond), f.bound)
	c.t.Log(text)
	if longest > testenv.Patience(f.bound) {
		c.t.Errorf("%s: %s", text, worst.name)
	}
	for _, s := range c.servers {
		if strangers := s.strangers(); len(strangers) > 0 {
			c.t.Fatalf("%s: policies forbid that %v reach %s, and they did", f.name, strangers, s.name)
		}
	}
}

// settle waits until every route is answered again and every agent is content.
func (c *chaos) settle(after string) {
	c.t.Helper()
	time.Sleep(chaosPatience() + chaosLook) // so that what unsettled looks at was sent after the fault
	for deadline := time.Now().Add(testenv.Patience(chaosSettle)); ; time.Sleep(100 * time.Millisecond) {
		err := c.unsettled()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.show("node1", "cat /proc/net/nf_conntrack | grep -E '=9000|=30090|=90 '; nft list table inet weft; ip rule; ip -6 route; ovs-appctl dpctl/dump-conntrack | grep udp")
			c.t.Fatalf("%s: not as before after %s: %v", after, chaosSettle, err)
		}
	}
}

func (c *chaos) unsettled() error {
	now := time.Now()
	for _, p := range c.watch {
		if sent, lost, _ := p.since(now.Add(-chaosPatience()-chaosLook), now.Add(-chaosPatience())); lost > 0 || sent == 0 {
			return fmt.Errorf("%s: %d of %d datagrams are not answered", p.name, lost, sent)
		}
	}
	for _, node := range []string{"node1", "node2"} {
		var r report.Status
		if err := c.ask(node, "/v1/status", &r); err != nil {
			return fmt.Errorf("the agent of %s: %w", node, err)
		}
		if !r.Ready || len(r.Problems) > 0 || r.Flows.Realised != r.Flows.Desired || r.Flows.Error != "" {
			return fmt.Errorf("the agent of %s is not content: %s %q, revision %d of %d %s", node, r.NotReady, r.Problems, r.Flows.Realised, r.Flows.Desired, r.Flows.Error)
		}
	}
	return nil
}

// belongings are what the nodes have that could be left over.
func (c *chaos) belongings() string {
	const list = `ovs-vsctl list-ports weft | sort; ip -br link | awk '{print $1}' | sort; ovs-ofctl -O OpenFlow15 dump-groups weft | grep -c group_id
nft list tables; ip rule; ip route; ls /run/weft/attachments`
	var text strings.Builder
	for _, node := range []string{"node1", "node2"} {
		fmt.Fprintf(&text, "%s:\n%s\n", node, c.Run("node/"+node, "sh", "-c", list))
	}
	return text.String()
}

// freshCompile starts the agents anew. One that finds the switch as it would have made it sends it nothing.
func (c *chaos) freshCompile() {
	c.t.Helper()
	agentKilled(c, "node1", "node2")
	c.settle("the last start of the agents")
	for _, node := range []string{"node1", "node2"} {
		var r report.Status
		if err := c.ask(node, "/v1/status", &r); err != nil {
			c.t.Fatal(err)
		}
		if r.Flows.Bundles != 0 {
			c.t.Errorf("the switch of %s was not as a fresh agent compiles it: %d bundles were needed", node, r.Flows.Bundles)
		}
	}
}

func (c *chaos) sentForbidden() (sent int) {
	for _, p := range c.forbidden {
		s, _, _ := p.since(time.Time{}, time.Now())
		sent += s
	}
	return sent
}

// upChaos starts the lab and its traffic: between pods of one node and of two, through Services, between nodes and
// pods, from the host outside and to it; and what the policies forbid.
func upChaos(t *testing.T) *chaos {
	const ns = "chaos"
	manifests := namespaceManifest(ns, "a: b")
	for _, node := range []string{"node1", "node2"} {
		manifests += walledPod(ns, "server-"+node, node, "role: server") + walledPod(ns, "client-"+node, node, "role: client") +
			walledPod(ns, "stranger-"+node, node, "role: stranger")
	}
	manifests += policyManifest(ns, "servers", "podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress], ingress: "+
		"[{from: [{podSelector: {matchLabels: {role: client}}}, {podSelector: {matchLabels: {role: server}}}, "+
		// The host outside, and node1 as another node's pods see it.
		"{ipBlock: {cidr: 172.31.0.0/24}}, {ipBlock: {cidr: \"fd57:6566:7461::/64\"}}, "+
		"{ipBlock: {cidr: 10.244.0.1/32}}, {ipBlock: {cidr: \"fd10:244::1/128\"}}]}]")
	manifests += fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: servers}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {role: server}
  ports: [{port: 90, protocol: UDP, targetPort: %d, nodePort: %d}]
`, ns, chaosPort, chaosNodePort)
	c := &chaos{walled: upWalled(t, "chaos", map[string]string{"a.yaml": manifests}), t: t}
	outside := openClient(t, c.Status(), "", "", "outside")
	pods, hosts := map[string]*client{}, map[string]*client{}
	for _, node := range []string{"node1", "node2"} {
		hosts[node] = c.host(t, node)
		for _, role := range []string{"server", "client", "stranger"} {
			pods[role+"-"+node] = c.pod(t, ns+"/"+role+"-"+node)
		}
	}
	for _, at := range []*client{pods["server-node1"], pods["server-node2"], pods["client-node1"], pods["client-node2"], outside} {
		c.servers = append(c.servers, serveEcho(t, at, chaosPort))
	}
	for _, s := range c.servers[:2] {
		for _, node := range []string{"node1", "node2"} {
			s.forbidden = append(s.forbidden, pods["stranger-"+node].ips...)
		}
	}
	vips := c.serviceIPs(t, ns, "servers")
	for _, v4 := range []bool{true, false} {
		add := func(from *client, to netip.Addr, port uint16, what string) {
			c.watch = append(c.watch, startPinger(t, from, netip.AddrPortFrom(to, port), what+" over "+familyName(v4)))
		}
		for _, role := range []string{"server-node1", "server-node2"} {
			add(pods["client-node1"], pods[role].addr(v4), chaosPort, "client-node1 to "+role)
			add(hosts["node1"], pods[role].addr(v4), chaosPort, "node1 to "+role)
		}
		add(pods["server-node2"], pods["client-node1"].addr(v4), chaosPort, "server-node2 to client-node1")
		add(pods["client-node1"], of(vips, v4), 90, "client-node1 to the Service")
		add(pods["client-node2"], of(vips, v4), 90, "client-node2 to the Service")
		add(hosts["node1"], of(vips, v4), 90, "node1 to the Service")
		add(pods["client-node1"], outside.addr(v4), chaosPort, "client-node1 to the world")
		add(outside, of(hosts["node1"].ips, v4), chaosNodePort, "the world to the node port at node1")
		for _, node := range []string{"node1", "node2"} {
			for _, to := range []netip.AddrPort{
				netip.AddrPortFrom(pods["server-node1"].addr(v4), chaosPort), netip.AddrPortFrom(of(vips, v4), 90),
			} {
				c.forbidden = append(c.forbidden, startPinger(t, pods["stranger-"+node], to, "stranger-"+node+" to "+to.String()))
			}
		}
	}
	c.settle("the start")
	time.Sleep(chaosPatience())
	return c
}

// ask asks a node's agent, which may be away.
func (c *chaos) ask(node, path string, v any) error {
	return askAgent(c.t.Context(), c.files[node], path, v)
}

// nodeStatus is how the lab sees a node.
func (c *chaos) nodeStatus(name string) lab.NodeStatus {
	c.t.Helper()
	for _, n := range c.Status().Nodes {
		if n.Name == name {
			return n
		}
	}
	c.t.Fatalf("no node %s", name)
	return lab.NodeStatus{}
}

// damage runs a script on a node. One that fails breaks nothing, so the fault would be none.
func (c *chaos) damage(node, script string) {
	c.t.Helper()
	c.Run("node/"+node, "sh", "-ec", script)
}

// show logs what a script says on a node, for a test that failed.
func (c *chaos) show(node, script string) {
	c.t.Helper()
	out, err := labtest.Run(c.Exec("node/"+node, "sh", "-c", script))
	c.t.Logf("%s (%v):\n%s", node, err, out)
}

// objects is how many objects and pods each agent has in its view.
func (c *chaos) objects() string {
	var text strings.Builder
	for _, node := range []string{"node1", "node2"} {
		var r report.Status
		err := c.ask(node, "/v1/status", &r)
		fmt.Fprintf(&text, "%s: %+v, %d pods %v; ", node, r.Objects, len(r.Pods), err)
	}
	return text.String()
}

// chaosPatience is how long an answer may take.
func chaosPatience() time.Duration { return testenv.Patience(time.Second) }
