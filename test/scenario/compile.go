package scenario

import (
	"fmt"
	"maps"
	"slices"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
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

// Compile compiles the flows of every node of a lab with these manifests, which Check has read, one set after the other:
// what is in several keeps its addresses. It answers with the nodes after each set. Nothing is started.
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
			desired := one.compiler.Desired()
			nodes[i] = Compiled{Name: one.name, Node: n.walked[i],
				Flows: report.Flows(contents(desired), desired, one.snapshot, "")}
		}
		all = append(all, nodes)
	}
	return all, nil
}

// contents are a switch that has the flows and groups that it should, and has seen no packet.
func contents(desired flows.Desired) openflow.Contents {
	var c openflow.Contents
	for _, key := range slices.SortedFunc(maps.Keys(desired.Flows), openflow.Key.Compare) {
		c.Flows = append(c.Flows, openflow.Entry{Flow: desired.Flows[key].Flow})
	}
	for _, id := range slices.Sorted(maps.Keys(desired.Groups)) {
		c.Groups = append(c.Groups, desired.Groups[id].Group)
	}
	return c
}

// Changes are the flows that a node has only before or only after a change, in the order that packets meet them.
func Changes(before, after Compiled) (removed, added []report.Flow) {
	less := func(list, from []report.Flow) []report.Flow {
		has := map[string]bool{}
		for _, f := range from {
			has[text(f)] = true
		}
		return slices.DeleteFunc(slices.Clone(list), func(f report.Flow) bool { return has[text(f)] })
	}
	return less(before.Flows, after.Flows), less(after.Flows, before.Flows)
}

// text is everything of a flow but its counters, with the groups behind it.
func text(f report.Flow) string {
	return fmt.Sprintf("%d %d %s %s %s %+v", f.TableID, f.Priority, f.Match, f.Actions, f.Owner, f.Groups)
}
