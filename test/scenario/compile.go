package scenario

import (
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/manifest"
)

// Compiled is a node as its agent would program it.
type Compiled struct {
	Name string
	// Flows are those of the switch, in the order that packets meet them, with the groups that they lead to.
	Flows []report.Flow
	// Node is the node for pkg/trace/walk.
	Node walk.Node
}

// Compile compiles the flows of every node of a lab with these manifests, which Check has read, one set after the
// other: what is in several keeps its addresses. It answers with the nodes after each set. Nothing is started.
func Compile(opt lab.Options, sets ...manifest.Set) ([][]Compiled, error) {
	n := newNetwork(opt.Family, opt.Datapath == config.DatapathSystem, opt.Nodes)
	n.transport = model.Tunnel(opt.Tunnel)
	var all [][]Compiled
	for _, set := range sets {
		if err := n.take(set); err != nil {
			return nil, err
		}
		nodes := make([]Compiled, len(n.nodes))
		for i, one := range n.nodes {
			nodes[i] = Compiled{Name: one.name, Node: n.walked[i],
				Flows: report.Compiled(one.compiler.Desired(), one.snapshot, "")}
		}
		all = append(all, nodes)
	}
	return all, nil
}
