package lab

import (
	"context"
	"fmt"

	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

// TraceNodes asks the agents of a lab's nodes for what following packets through them needs.
func TraceNodes(ctx context.Context, name string) ([]walk.Node, error) {
	s, err := ReadStatus(ctx, name)
	if err != nil {
		return nil, err
	}
	nodes := make([]walk.Node, len(s.Nodes))
	for i, n := range s.Nodes {
		agent := api.Client{Socket: fmt.Sprintf("/proc/%d/root%s", n.Sandbox.Holder.PID, agentSocket)}
		if nodes[i], err = agent.Trace(ctx); err != nil {
			return nil, fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	return nodes, nil
}
