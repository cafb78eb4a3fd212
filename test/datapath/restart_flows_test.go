//go:build integration

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// TestRestartTouchesNothing starts an agent over a switch with 30,000 flows of Weft's, in a soak 100,000: the switch
// reports no change of any flow, no connection breaks, and no traffic is lost but for what the userspace datapath loses
// while the agent takes the processors.
func TestRestartTouchesNothing(t *testing.T) {
	restartFlows := 30_000
	if os.Getenv(soakVariable) != "" {
		restartFlows = 100_000
	}
	c := upChaos(t, "restart")
	c.write(t, "b.yaml", addressPolicies(restartFlows))
	// the agent's report costs the switch a dump each time, so it is asked last
	for _, node := range []string{"node1", "node2"} {
		testenv.Eventually(t, 10*time.Minute, func() error {
			time.Sleep(2 * time.Second)
			_, after, _ := strings.Cut(c.Run("node/"+node, "ovs-ofctl", "-O", "OpenFlow15", "dump-aggregate", "weft"),
				"flow_count=")
			if n, err := strconv.Atoi(strings.TrimSpace(after)); err != nil || n < restartFlows {
				return fmt.Errorf("%s has %d flows: %w", node, n, err)
			}
			return nil
		})
	}
	c.settle("the flows")
	time.Sleep(2 * chaosPatience()) // what settle asked for is over
	c.drops = c.queueDrops()
	watcher := c.watchFlows("node1")
	begin := time.Now()
	agentKilled(c, "node1")
	testenv.Eventually(t, time.Minute, func() error { // the agent's report would have the switch dump all flows
		response, err := c.askHealth("node1", "/readyz")
		if err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK {
			err = fmt.Errorf("the agent is not ready: %s", response.Status)
		}
		return errors.Join(err, response.Body.Close())
	})
	time.Sleep(3*time.Second + chaosPatience())
	// The agent reads the switch in pieces; but its start takes the processors for some seconds, and one thread of
	// ovs-vswitchd forwards what pods send in the userspace datapath. Otherwise idle, two processors lost 1 to 16
	// datagrams.
	c.judge(fault{name: "one is killed", cause: "agent", bound: onDatapath(time.Second, 0)}, begin)
	r, err := c.ask("node1")
	if err != nil {
		t.Fatal(err)
	}
	events := watcher.events()
	t.Logf("the switch has %d flows; after the start of another agent: %d bundles, %d changes of flows",
		r.Flows.Flows, r.Flows.Bundles, len(events))
	if r.Flows.Flows < restartFlows || r.Flows.Bundles > 0 || len(events) > 0 {
		t.Errorf("want %d flows, no bundle and no change: %.300q", restartFlows, events)
	}
	// A change is noticed.
	c.damage("node1", "ovs-ofctl -O OpenFlow15 --strict del-flows weft table=60,priority=0")
	testenv.Eventually(t, 10*time.Second, func() error {
		if seen := strings.Join(watcher.events(), ""); !strings.Contains(seen, "event=DELETED") ||
			!strings.Contains(seen, "event=ADDED") {
			return fmt.Errorf("a flow was removed and repaired, and the switch reported: %q", seen)
		}
		return nil
	})
}

// addressPolicies allow the servers nothing that traffic needs, with this many flows: one for each address.
func addressPolicies(flows int) string {
	const each = 1000
	var text strings.Builder
	for i := range flows / each {
		var peers strings.Builder
		for j := range each {
			n := i*each + j
			fmt.Fprintf(&peers, "{ipBlock: {cidr: 198.%d.%d.%d/32}},", 18+n>>16, n>>8&0xff, n&0xff)
		}
		text.WriteString(policyManifest("chaos", fmt.Sprintf("addresses-%d", i), fmt.Sprintf(
			"podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress], ingress: [{from: [%s], ports: [{port: %d}]}]",
			peers.String(), 1000+i)))
	}
	return text.String()
}

// flowWatcher collects what a switch reports about its flows.
type flowWatcher struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (w *flowWatcher) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(b)
}

// events are the changes so far, one a line.
func (w *flowWatcher) events() (list []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range strings.Lines(w.out.String()) {
		if strings.Contains(line, "event=") && !strings.Contains(line, "event=INITIAL") {
			list = append(list, line)
		}
	}
	return list
}

// watchFlows has a node's switch report changes of flows until the test ends.
func (c *chaos) watchFlows(node string) *flowWatcher {
	c.t.Helper()
	w := &flowWatcher{}
	cmd := c.Exec("node/"+node, "ovs-ofctl", "-O", "OpenFlow15", "monitor", "weft", "watch:!initial")
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	return w
}
