//go:build integration

package datapath

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
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
	chaosPort        = 9000
	chaosServicePort = 90
	chaosNodePort    = 30090
	// chaosSettle is how long everything may take to be as before, after a fault and its bound.
	chaosSettle = 90 * time.Second
)

// chaos is a lab with traffic that never stops, in which things are broken.
type chaos struct {
	*walled
	t *testing.T
	// hosts are the nodes' own networks, by name.
	hosts map[string]*client
	// watch is traffic that policies allow, but for the streams; forbidden is traffic that no policy allows.
	watch     []traffic
	forbidden []*series
	streams   []*chaosStream
	// later are started when everything listens.
	later []func()
	// servers note what must not have reached them, and taps hear what did.
	servers []*echoServer
	taps    []forbiddenTap
	machine *machine
	// drops is what queueDrops returned last; excused counts the faults whose losses were the machine's.
	drops, excused int
}

// fault is one way in which something breaks, and what follows from it for traffic that policies allow. What they do
// not allow never passes.
type fault struct {
	name string
	// cause is what is broken: "agent", "API server", "API lies", "objects", "node", "switch" or "Open vSwitch".
	cause string
	// bound is the longest time without an answer that a route may see.
	bound time.Duration
	// untracked says that the switch loses its connections: a stream whose server's address is translated may end.
	untracked bool
	// unmasked says that the kernel of node1 lacks an address or its translation for a moment, or has lost its
	// connections: it resets streams of it.
	unmasked bool
	do       func(c *chaos)
}

// TestChaos breaks one thing after the other while datagrams, fragments and TCP connections go every way. What policies
// forbid never passes; faults of the agent, of the API server and of objects lose nothing; others lose no more than
// their bound, and connections outlive them; everything is as before afterwards by itself, and nothing is left over.
func TestChaos(t *testing.T) {
	c := upChaos(t, "chaos")
	only := regexp.MustCompile(os.Getenv(chaosOnlyVariable))
	faults := slices.DeleteFunc(slices.Concat(agentFaults(), lieFaults(), objectFaults(), nodeFaults(), switchFaults()),
		func(f fault) bool { return !only.MatchString(f.name) })
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	begin, before := time.Now(), c.belongings()
	end := sync.OnceFunc(func() { c.judgeEnd(begin, before) })
	defer end() // also when the lab does not become as before
	for _, f := range faults {
		c.breakOne(f)
	}
	if text := os.Getenv(chaosVariable); text != "" {
		duration, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("%s: %v", chaosVariable, err)
		}
		for time.Since(begin) < duration {
			c.breakOne(faults[random.IntN(len(faults))])
		}
	}
	c.freshCompile()
	end()
	c.proveChecks(before)
}

// judgeEnd looks at what is left over, and logs what all traffic met.
func (c *chaos) judgeEnd(begin time.Time, before string) {
	c.t.Helper()
	if left := difference(before, c.belongings()); left != "" {
		c.t.Errorf("left over or missing:\n%s", left)
	}
	tried, lost, broken, denied := 0, 0, 0, 0
	for _, w := range c.watch {
		n, l, _ := w.since(time.Time{}, time.Now().Add(-chaosPatience()))
		tried, lost = tried+n, lost+l
	}
	for _, s := range c.streams {
		broken += len(s.breakages(time.Time{}))
	}
	for _, f := range c.forbidden {
		n, _, _ := f.since(time.Time{}, time.Now())
		denied += n
	}
	c.t.Logf("%s: %d datagrams and new connections, %d without answer; %d streams, %d breakages; %d forbidden attempts, "+
		"%d violations",
		time.Since(begin).Round(time.Second), tried, lost, len(c.streams), broken, denied, len(c.violations()))
	if c.excused > 0 {
		c.t.Logf("%d faults exceeded their bounds because ovs-vswitchd waited for a processor and its queues overflowed",
			c.excused)
	}
}

// proveChecks damages the switch in a way that the agent does not repair, since it leaves foreign flows alone, and that
// lets through what ingress policies forbid. Each check has to notice.
func (c *chaos) proveChecks(before string) {
	c.t.Helper()
	if c.t.Failed() {
		return
	}
	const foreign = "table=55,priority=65000"
	c.damage("node1", "ovs-ofctl -O OpenFlow15 add-flow weft "+foreign+",actions=goto_table:60")
	testenv.Eventually(c.t, 20*time.Second, func() error {
		found := strings.Join(c.violations(), "\n")
		for _, part := range []string{"server-node1 got a forbidden datagram", "a forbidden connection", "were answered",
			"server-node1 heard"} {
			if !strings.Contains(found, part) {
				return fmt.Errorf("policies of node1 are bypassed, and nothing says %q, but:\n%s", part, found)
			}
		}
		if err := c.unsettled(); err == nil || !strings.Contains(err.Error(), "foreign flows") {
			return fmt.Errorf("a foreign flow is in the switch, and the agent says: %w", err)
		}
		return nil
	})
	if left := difference(before, c.belongings()); !strings.Contains(left, "node1: flows of table=55") {
		c.t.Errorf("a foreign flow is left over, and what is noticed is: %q", left)
	}
	c.damage("node1", "ovs-ofctl -O OpenFlow15 --strict del-flows weft "+foreign)
}

// breakOne breaks one thing, waits until all is as before, and judges what traffic met.
func (c *chaos) breakOne(f fault) {
	c.t.Helper()
	from := time.Now()
	f.do(c)
	unsettled := c.settled()
	c.judge(f, from)
	if unsettled != nil {
		c.show("node1", "cat /proc/net/nf_conntrack | grep -E '=9000|=30090|=90 '; nft list table inet weft; ip rule; "+
			"ip -6 route; ovs-appctl dpctl/dump-conntrack | grep udp")
		c.t.Fatalf("%s: not as before: %v", f.name, unsettled)
	}
}

// judge compares what traffic met since a fault with what the fault may cost.
func (c *chaos) judge(f fault, from time.Time) {
	c.t.Helper()
	to := time.Now().Add(-chaosPatience())
	var worst string
	lost, longest := map[bool]int{}, time.Duration(0)
	for _, w := range c.watch {
		_, l, gap := w.since(from, to)
		_, connects := w.(*dialer)
		if lost[connects] += l; gap > longest {
			worst, longest = w.label(), gap
		}
	}
	var wrong []string
	broken, pause, paused := 0, time.Duration(0), ""
	for _, s := range c.streams {
		if p := s.pause(from); p > pause {
			pause, paused = p, s.name
		}
		breakages := s.breakages(from)
		if len(breakages) == 0 {
			continue
		}
		broken++
		var why []string
		for _, b := range breakages {
			why = append(why, fmt.Sprintf("%s after %s", b.why, b.at.Sub(from).Round(time.Millisecond)))
		}
		text := s.name + ": " + strings.Join(why, "; ")
		c.t.Log(text)
		if (!f.untracked || !s.translated) && (!f.unmasked || !s.masqueraded) {
			wrong = append(wrong, text)
		}
	}
	late, total := c.machine.late(from), c.queueDrops()
	drops := max(0, total-c.drops) // those of queues that went are not known
	c.drops = total
	text := fmt.Sprintf("%-12s %-45s lost %4d datagrams, %3d new connections, longest %6s of %s; streams: %d broken, "+
		"pause %s; machine %s late, %d packets dropped from queues",
		f.cause, f.name, lost[false], lost[true], longest.Round(10*time.Millisecond), f.bound, broken,
		pause.Round(10*time.Millisecond), late.Round(time.Millisecond), drops)
	c.t.Log(text)
	var exceeded []string
	if longest > testenv.Patience(f.bound) {
		exceeded = append(exceeded, worst)
	}
	if most := streamPause(f.bound); pause > most {
		exceeded = append(exceeded, fmt.Sprintf("%s paused for longer than %s", paused, most))
	}
	// A datagram that no queue dropped is Weft's to answer for, however late the machine was.
	if len(exceeded) > 0 && late >= machineLate && lost[false] <= drops {
		c.excused++
		c.t.Logf("%s: the machine's fault", f.name)
	} else if len(exceeded) > 0 {
		c.t.Errorf("%s: %s", text, strings.Join(exceeded, "; "))
	}
	if len(wrong) > 0 {
		c.t.Errorf("%s: broken:\n%s", text, strings.Join(wrong, "\n"))
	}
	if found := c.violations(); len(found) > 0 {
		c.t.Fatalf("%s: policies forbid this:\n%s", f.name, strings.Join(found, "\n"))
	}
}

// streamPause is how long a stream may pause when packets are lost for a time. TCP doubles the time after which it
// sends again, so it may need as long again; and what it sends first can be lost in the burst that follows.
func streamPause(bound time.Duration) time.Duration { return testenv.Patience(4*bound + 2*time.Second) }

// settle waits until everything is as before.
func (c *chaos) settle(after string) {
	c.t.Helper()
	if err := c.settled(); err != nil {
		c.t.Fatalf("%s: not as before: %v", after, err)
	}
}

// settled waits until every route is answered again and every agent is content.
func (c *chaos) settled() error {
	time.Sleep(chaosPatience() + chaosLook()) // so that what unsettled looks at was sent after the fault
	for deadline := time.Now().Add(testenv.Patience(chaosSettle)); ; time.Sleep(100 * time.Millisecond) {
		err := c.unsettled()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func (c *chaos) unsettled() error {
	now := time.Now()
	for _, w := range c.watch {
		if tried, lost, _ := w.since(now.Add(-chaosPatience()-chaosLook()), now.Add(-chaosPatience())); lost > 0 ||
			tried == 0 {
			return fmt.Errorf("%s: %d of %d are not answered", w.label(), lost, tried)
		}
	}
	for _, s := range c.streams {
		if pause := s.pause(now.Add(-chaosPatience())); pause >= chaosPatience() {
			return fmt.Errorf("%s: nothing arrives", s.name)
		}
	}
	return c.contentAgents()
}

// contentAgents returns why an agent is not content, or nil.
func (c *chaos) contentAgents() error {
	for _, node := range []string{"node1", "node2"} {
		r, err := c.ask(node)
		if err != nil {
			return fmt.Errorf("the agent of %s: %w", node, err)
		}
		if !r.Ready || len(r.Problems) > 0 || r.Flows.Programmed != r.Flows.Desired || r.Flows.Error != "" {
			return fmt.Errorf("the agent of %s is not content: %s %q, revision %d of %d %s",
				node, r.NotReady, r.Problems, r.Flows.Programmed, r.Flows.Desired, r.Flows.Error)
		}
	}
	return nil
}

// freshCompile restarts the agents. One that finds the switch as it would have made it sends it nothing.
func (c *chaos) freshCompile() {
	c.t.Helper()
	c.breakOne(fault{name: "the last start", cause: "agent", do: func(c *chaos) { agentKilled(c, "node1", "node2") }})
	for _, node := range []string{"node1", "node2"} {
		r, err := c.ask(node)
		if err != nil {
			c.t.Fatal(err)
		}
		if r.Flows.Bundles != 0 {
			c.t.Errorf("the switch of %s was not as a fresh agent compiles it: %d bundles were needed", node, r.Flows.Bundles)
		}
	}
}

// ask asks how a node is. Its agent may be away.
func (c *chaos) ask(node string) (report.Status, error) {
	return agentOf(c.files[node]).Status(c.t.Context())
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
		r, err := c.ask(node)
		fmt.Fprintf(&text, "%s: %+v, %d pods %v; ", node, r.Objects, len(r.Pods), err)
	}
	return text.String()
}

// chaosLook is the time of which every datagram must be answered before the next fault.
func chaosLook() time.Duration { return testenv.Patience(500 * time.Millisecond) }

// chaosPatience is how long an answer may take.
func chaosPatience() time.Duration { return testenv.Patience(time.Second) }
