package lab

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

// Agents are the agents of a lab's nodes, by node.
func Agents(ctx context.Context, name string) (map[string]api.Client, error) {
	s, err := ReadStatus(ctx, name)
	if err != nil {
		return nil, err
	}
	agents := map[string]api.Client{}
	for _, n := range s.Nodes {
		agents[n.Name] = api.Client{Socket: fmt.Sprintf("/proc/%d/root%s", n.Sandbox.Holder.PID, agentSocket)}
	}
	return agents, nil
}

// TraceNodes asks the agents of a lab's nodes for what following packets through them needs.
func TraceNodes(ctx context.Context, name string) ([]walk.Node, error) {
	agents, err := Agents(ctx, name)
	if err != nil {
		return nil, err
	}
	var nodes []walk.Node
	for _, node := range slices.Sorted(maps.Keys(agents)) {
		one, err := agents[node].Trace(ctx)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", node, err)
		}
		nodes = append(nodes, one)
	}
	return nodes, nil
}
