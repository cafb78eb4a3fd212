package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/manifest"
	"github.com/weft-cni/weft/test/scenario"
)

// compiled is a node's flows, or how they change.
type compiled struct {
	Node  string        `json:"node"`
	Flows []report.Flow `json:"flows,omitempty"`
	// Removed and Added are of --before.
	Removed []report.Flow `json:"removed,omitempty"`
	Added   []report.Flow `json:"added,omitempty"`
}

func compileCommand(p *terminal.Format) *cobra.Command {
	var opt, before lab.Options
	var nodes []string
	var save string
	cmd := &cobra.Command{
		Use:   "compile [OBJECT] -f FILE|DIR|-… | -k DIR…",
		Short: "Show the flows that manifests give, without root and without bringing anything up",
		Long: "Compiles the manifests as the agents of a lab would, with the lab's addresses, and shows each node's flows with the object\n" +
			"that each exists for: all, or those of OBJECT (pod/NAMESPACE/NAME, service/…, policy/…, node/NAME, pipeline). With --before,\n" +
			"the flows that go and those that come when those manifests become these; the exit code is then 1 if there are any.\n" +
			"--save writes what `weftctl trace --file` and `weftctl policy explain --file` read.",
		Args: cobra.MaximumNArgs(1),
		Example: "  weft-lab compile -f examples/shop --node node1\n" +
			"  weft-lab compile policy/shop/backend -f examples/shop -f examples/shop-policies\n" +
			"  weft-lab compile --before examples/shop -f examples/shop -f examples/shop-policies\n" +
			"  weft-lab compile -f examples/shop --save nodes.json; weftctl trace --file nodes.json shop/frontend-0 shop/backend-0:9000",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(p.Check(), finish(&opt, "")); err != nil {
				return err
			}
			if err := readInput(cmd, &opt); err != nil {
				return err
			}
			all, err := compileAll(cmd, opt, before)
			if err != nil {
				return err
			}
			if save != "" {
				if err := saveCompiled(save, all[len(all)-1]); err != nil {
					return err
				}
			}
			list, err := chosen(all, nodes, strings.Join(args, ""))
			if err != nil {
				return err
			}
			if save == "" || len(nodes) > 0 || len(args) > 0 || len(all) > 1 {
				err = p.Print(cmd.OutOrStdout(), list, func(w io.Writer) error { return showCompiled(w, list) })
			}
			changed := func(c compiled) bool { return len(c.Removed)+len(c.Added) > 0 }
			if err == nil && slices.ContainsFunc(list, changed) {
				return cli.Found
			}
			return err
		},
	}
	labFlags(cmd, &opt)
	cmd.Flags().StringArrayVar(&before.Manifests, "before", nil,
		"file or directory of the manifests before a change; also several times")
	cmd.Flags().StringSliceVar(&nodes, "node", nil, "only these nodes")
	cmd.Flags().StringVar(&save, "save", "", "write the nodes to this file, for weftctl trace --file")
	for _, name := range []string{"set", "agent"} { // of agents that run
		if err := cmd.Flags().MarkHidden(name); err != nil {
			panic(err) // a flag that labFlags does not add
		}
	}
	return cmd
}

// compileAll reads and compiles the manifests, those before the change first.
func compileAll(cmd *cobra.Command, opt, before lab.Options) ([][]scenario.Compiled, error) {
	if len(opt.Settings) > 0 {
		return nil, errors.New("--set is for agents that run: flows are compiled with the default settings")
	}
	if !slices.Contains([]config.Datapath{config.DatapathNetdev, config.DatapathSystem}, opt.Datapath) {
		return nil, fmt.Errorf("--datapath %q: want %s or %s", opt.Datapath, config.DatapathNetdev, config.DatapathSystem)
	}
	after, err := lab.Check(opt)
	if err != nil {
		return nil, err
	}
	for _, warning := range after.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", warning)
	}
	sets := []manifest.Set{after}
	if len(before.Manifests) > 0 {
		before.Family, before.Nodes = opt.Family, opt.Nodes
		first, err := lab.Check(before)
		if err != nil {
			return nil, fmt.Errorf("--before: %w", err)
		}
		sets = []manifest.Set{first, after}
		if names(first) != names(after) {
			return nil, fmt.Errorf("the nodes before are %s, and those after %s: want the same", names(first), names(after))
		}
	}
	return scenario.Compile(opt, sets...)
}

func names(set manifest.Set) string {
	var list []string
	for _, n := range set.Nodes {
		list = append(list, n.Name)
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func saveCompiled(file string, list []scenario.Compiled) error {
	nodes := make([]walk.Node, len(list))
	for i, c := range list {
		nodes[i] = c.Node
	}
	text, err := json.Marshal(nodes)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// chosen is what is to be shown: of some nodes, or all, and of an object, or all.
func chosen(all [][]scenario.Compiled, nodes []string, object string) ([]compiled, error) {
	list := []compiled{}
	last := all[len(all)-1]
	for _, name := range nodes {
		if !slices.ContainsFunc(last, func(c scenario.Compiled) bool { return c.Name == name }) {
			return nil, fmt.Errorf("there is no node %q", name)
		}
	}
	of := func(list []report.Flow) []report.Flow {
		return slices.DeleteFunc(list, func(f report.Flow) bool {
			_, name, _ := strings.Cut(f.Owner, "/")
			return object != "" && f.Owner != object && name != object
		})
	}
	found := false
	for i, c := range last {
		if len(nodes) > 0 && !slices.Contains(nodes, c.Name) {
			continue
		}
		one := compiled{Node: c.Name}
		if len(all) == 1 {
			one.Flows = of(slices.Clone(c.Flows))
			found = found || len(one.Flows) > 0
		} else {
			one.Removed = of(report.Without(all[0][i].Flows, c.Flows))
			one.Added = of(report.Without(c.Flows, all[0][i].Flows))
			found = true // or nothing changes, which is an answer, too
		}
		list = append(list, one)
	}
	if !found {
		return nil, fmt.Errorf("no flow exists because of %s; owners are pod/NAMESPACE/NAME, service/NAMESPACE/NAME, "+
			"policy/NAMESPACE/NAME, node/NAME, self and pipeline", object)
	}
	return list, nil
}

func showCompiled(out io.Writer, list []compiled) error {
	for i, c := range list {
		if i > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintln(out, terminal.Paint(out, terminal.Bold, "Node "+c.Node))
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, part := range []struct {
			sign  string
			flows []report.Flow
		}{{"", c.Flows}, {"- ", c.Removed}, {"+ ", c.Added}} {
			for _, f := range part.flows {
				showFlow(w, part.sign, f)
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if len(c.Flows) == 0 {
			fmt.Fprintf(out, "%d flows go, %d come.\n", len(c.Removed), len(c.Added))
		}
	}
	return nil
}

func showFlow(w io.Writer, sign string, f report.Flow) {
	match, actions := f.Match, f.Actions
	if match == "" {
		match = "(any)"
	}
	if f.Reason != "" {
		actions += " (" + string(f.Reason) + ")"
	}
	for _, g := range f.Groups {
		var to []string
		for _, b := range g.Buckets {
			to = append(to, b.To)
		}
		actions += fmt.Sprintf(" [group %d: %s]", g.ID, strings.Join(to, ", "))
	}
	fmt.Fprintf(w, "%s%s\t%d\t%s\t%s\t%s\n", sign, f.Table, f.Priority, f.Owner, match, actions)
}
