//go:build integration

package datapath

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab"
)

const (
	// lieTime is how long the API server lies.
	lieTime = 6 * time.Second
	// lieAskAgain is how long an informer may pause after such a time: each failure doubles its pause.
	lieAskAgain = 15 * time.Second
)

// lieFaults are what a broken or restored API server, or a proxy before it, answers. Errors change
// nothing and cost nothing; what cannot be told from the truth is followed, until the truth comes back
// (docs/security.md).
func lieFaults() []fault {
	answers := func(name string, f apiserver.Fault) fault {
		return fault{name: name, cause: "API lies", do: func(c *chaos) {
			before := c.known()
			c.lie(everywhere(f))
			time.Sleep(lieTime)
			if now := c.known(); now != before {
				c.t.Errorf("%s: the agents know %s, before %s", name, now, before)
			}
			c.lie(apiserver.Lie{})
		}}
	}
	return []fault{
		answers("each watch ends with 410", apiserver.Expired),
		answers("lists break off", apiserver.Cut),
		answers("nothing may be read", apiserver.Forbidden),
		{name: "nothing may be read while an agent starts", cause: "API lies", do: func(c *chaos) {
			c.lie(everywhere(apiserver.Forbidden))
			agentKilled(c, "node1")
			time.Sleep(lieTime)
			if r, err := c.ask("node1"); err == nil && r.Ready && r.FromCopy == nil {
				c.t.Error("the agent is ready with objects that it may not read")
			}
			c.lie(apiserver.Lie{})
		}},
		{name: "watches are silent", cause: "API lies", bound: onDatapath(500*time.Millisecond, 0), do: func(c *chaos) {
			c.listen()
			before := c.known()
			c.lie(everywhere(apiserver.Stalled))
			c.write(c.t, "b.yaml", idlePolicies(5))
			time.Sleep(lieTime)
			if now := c.known(); now != before {
				c.t.Errorf("through silent watches the agents came to know %s, before %s", now, before)
			}
			c.lie(apiserver.Lie{})
			c.waitKnown(before, false)
			c.write(c.t, "b.yaml", "")
			c.waitKnown(before, true)
		}},
		// The watches ask for what comes after the newer state, and hear nothing: the agents keep what they know.
		{name: "an older state", cause: "API lies", bound: onDatapath(500*time.Millisecond, 0), do: func(c *chaos) {
			c.olderState(func(newer string) {
				time.Sleep(lieTime)
				if now := c.known(); now != newer {
					c.t.Errorf("the agents know %s, before the lie %s", now, newer)
				}
			})
		}},
		// Agents that start cannot know better.
		{name: "an older state while agents start", cause: "API lies", bound: onDatapath(500*time.Millisecond, 0),
			do: func(c *chaos) {
				c.olderState(func(newer string) {
					agentKilled(c, "node1", "node2")
					c.waitKnown(newer, false)
					time.Sleep(lieTime)
				})
			}},
		// Policies that allow pods by their labels allow those of other nodes no longer. Those of this node run on as before.
		{name: "no pods", cause: "API lies", bound: lieTime + lieAskAgain, do: func(c *chaos) {
			before, begin := c.known(), time.Now()
			c.lie(apiserver.Lie{Resources: map[string]apiserver.Fault{apiserver.Pods: apiserver.Empty}})
			time.Sleep(lieTime)
			for _, w := range c.watch {
				for _, local := range []string{"client-node1 to server-node1 ", "node1 to server-node1 ",
					"client-node1 to the world "} {
					// The cache is forgotten, as after each change of objects.
					_, _, gap := w.since(begin, time.Now().Add(-chaosPatience()))
					if gap > testenv.Patience(time.Second) && strings.HasPrefix(w.label(), local) {
						c.t.Errorf("%s: no answer for %s while the API server has no pods", w.label(), gap)
					}
				}
			}
			c.lie(apiserver.Lie{})
			c.waitKnown(before, true)
		}},
	}
}

// olderState has the API server answer from an older state for the time of during, which is given what the agents know
// of the newer one: other policies, Services and pods than before. In the end these are gone.
func (c *chaos) olderState(during func(newer string)) {
	c.t.Helper()
	c.listen()
	before := c.known()
	c.write(c.t, "b.yaml", idlePolicies(7))
	c.waitKnown(before, false)
	older := c.known()
	if err := lab.KeepState(c.t.Context(), c.Name); err != nil {
		c.t.Fatal(err)
	}
	c.write(c.t, "b.yaml", idlePolicies(3)+walledService("chaos", "later", "role: server", 8080)+walledPod("chaos",
		"guest-1", "node1", "role: guest"))
	c.waitKnown(older, false)
	time.Sleep(time.Second) // for all of it
	newer := c.known()
	c.lie(apiserver.Lie{Older: true})
	during(newer)
	c.lie(apiserver.Lie{})
	c.waitKnown(newer, true)
	c.write(c.t, "b.yaml", "")
	c.waitKnown(before, true)
}

// everywhere is a fault of all resources.
func everywhere(f apiserver.Fault) apiserver.Lie {
	l := apiserver.Lie{Resources: map[string]apiserver.Fault{}}
	for _, resource := range []string{
		apiserver.Nodes, apiserver.Namespaces, apiserver.Pods, apiserver.Services, apiserver.EndpointSlices,
		apiserver.NetworkPolicies, apiserver.ServiceCIDRs,
	} {
		l.Resources[resource] = f
	}
	return l
}

func (c *chaos) lie(l apiserver.Lie) {
	c.t.Helper()
	if err := lab.Lie(c.t.Context(), c.Name, l); err != nil {
		c.t.Fatalf("lie about %v: %v", slices.Sorted(maps.Keys(l.Resources)), err)
	}
}

// listen waits until the agents hear of every resource again. After failures an informer pauses, at most for 30 s and
// as much again at random (client-go's reflector), also when the fault is long over.
func (c *chaos) listen() {
	c.t.Helper()
	testenv.Eventually(c.t, 90*time.Second, func() error {
		for _, node := range []string{"node1", "node2"} {
			r, err := c.ask(node)
			if err != nil {
				return fmt.Errorf("the agent of %s: %w", node, err)
			}
			for _, f := range r.API {
				if f.Error != "" {
					return fmt.Errorf("the agent of %s hears nothing of %s: %s", node, f.Resource, f.Error)
				}
			}
		}
		return nil
	})
}

// known is how many objects each agent knows from the API server.
func (c *chaos) known() string {
	text := ""
	for _, node := range []string{"node1", "node2"} {
		r, err := c.ask(node)
		if err != nil {
			return err.Error()
		}
		text += fmt.Sprintf("%s: %+v; ", node, r.Objects)
	}
	return text
}

// waitKnown waits until the agents know what they did, or something else.
func (c *chaos) waitKnown(what string, same bool) {
	c.t.Helper()
	testenv.Eventually(c.t, 60*time.Second, func() error {
		if now := c.known(); (now == what) != same {
			return fmt.Errorf("the agents know %s; before %s", now, what)
		}
		return nil
	})
}
