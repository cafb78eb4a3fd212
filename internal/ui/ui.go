// Package ui is the page that weftctl ui serves to a browser of the same machine: the nodes of a cluster and the paths
// between them, who reaches whom, the pipeline with its counters, and traces. It asks agents what the other commands
// ask them, evaluates with the same code (pkg/trace/walk), and changes nothing.
//
// Handler serves requests on any goroutine. What it asked agents it keeps for some seconds, behind mutexes; it has no
// other state and starts no goroutine that outlives a request.
package ui

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/internal/kubectl"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
)

// Agent is the agent of a node.
type Agent struct {
	// Node is empty for the agent of this machine, whose answers name it.
	Node   string
	Client api.Client
	// Problem says why the agent cannot be asked; empty when it can.
	Problem string
}

// Agents lists the agents to ask. Any goroutine may call it.
type Agents func(context.Context) ([]Agent, error)

// Local is the agent of this machine alone.
func Local(client api.Client) Agents {
	return func(context.Context) ([]Agent, error) { return []Agent{{Client: client}}, nil }
}

// maxAtOnce is how many agents are asked at the same time.
const maxAtOnce = 16

// ask asks all agents. Those that do not answer have an Error in the list.
func ask[T any](ctx context.Context, agents []Agent, question func(context.Context, api.Client) (T, error),
	name func(T) string) []report.Answer[T] {
	answers := make([]report.Answer[T], len(agents))
	var group errgroup.Group
	group.SetLimit(maxAtOnce)
	for i, agent := range agents {
		a := &answers[i]
		a.Node, a.Error = agent.Node, agent.Problem
		if a.Error != "" {
			continue
		}
		group.Go(func() error {
			v, err := question(ctx, agent.Client)
			if err != nil {
				a.Node, a.Error = cmp.Or(a.Node, "this node"), reason(err)
				return nil
			}
			a.Node, a.Answer = cmp.Or(a.Node, name(v)), &v
			return nil
		})
	}
	_ = group.Wait() // no function fails
	slices.SortFunc(answers, func(x, y report.Answer[T]) int { return strings.Compare(x.Node, y.Node) })
	return answers
}

// reason is an agent's error without what HTTP makes of it.
func reason(err error) string {
	if said := (kubectl.Error{}); errors.As(err, &said) {
		return said.Error()
	}
	return err.Error()
}

// agentOf is the agent of a node. The agent of this machine answers for any name: there is no other.
func agentOf(agents []Agent, node string) (Agent, error) {
	i := slices.IndexFunc(agents, func(a Agent) bool { return a.Node == node || a.Node == "" })
	switch {
	case i < 0:
		return Agent{}, fmt.Errorf("there is no node %q", node)
	case agents[i].Problem != "":
		return Agent{}, fmt.Errorf("node %s: %s", node, agents[i].Problem)
	}
	return agents[i], nil
}
