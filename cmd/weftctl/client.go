package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/kubectl"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
)

// pluginName is the name under which kubectl runs this program for `kubectl weft`.
const pluginName = "kubectl-weft"

// maxAtOnce is how many agents are asked at the same time.
const maxAtOnce = 16

// client is which agents to ask, and how their answers are printed.
type client struct {
	// plugin says that kubectl runs this program: it asks a cluster unless --socket is given.
	plugin bool
	socket string
	output terminal.Format
	// namespace is that of objects without one.
	namespace string
	nodes     []string
	all       bool
	cluster   kubectl.Kubectl
}

// isPlugin says whether a program of this name is kubectl's plugin.
func isPlugin(program string) bool {
	return strings.TrimSuffix(filepath.Base(program), ".exe") == pluginName
}

func (c *client) flags(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringVar(&c.socket, "socket", "", "ask the agent at this Unix socket (default "+api.DefaultSocket+
		", where no cluster is asked)")
	flags.StringVarP((*string)(&c.output), "output", "o", string(terminal.Table), "table, wide, json, yaml or name")
	flags.StringVarP(&c.namespace, "namespace", "n", "", "namespace of objects that are named without one")
	flags.StringSliceVar(&c.nodes, "node", nil, "ask these nodes of a cluster (repeat or separate by commas)")
	flags.BoolVarP(&c.all, "all-nodes", "A", false, "ask all nodes of a cluster; kubectl weft does without --node")
	flags.StringVar(&c.cluster.Context, "context", "", "kubectl's context of the cluster")
	flags.StringVar(&c.cluster.Kubeconfig, "kubeconfig", "", "kubectl's configuration file")
	flags.StringVar(&c.cluster.Namespace, "agent-namespace", "weft-system", "namespace of the agents")
	for flag, complete := range map[string]cobra.CompletionFunc{
		"node":      c.completeNames("nodes"),
		"namespace": c.completeNames("namespaces"),
		"output": func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"table", "wide", "json", "yaml", "name"}, cobra.ShellCompDirectiveNoFileComp
		},
	} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err) // a flag that was not added above
		}
	}
}

// remote says whether nodes of a cluster are asked, not the agent of this machine.
func (c *client) remote() bool {
	named := len(c.nodes) > 0 || c.all || c.cluster.Context != "" || c.cluster.Kubeconfig != ""
	return named || c.plugin && c.socket == ""
}

// local is the agent of this machine.
func (c *client) local() api.Client {
	if c.socket == "" {
		return api.Client{Socket: api.DefaultSocket}
	}
	return api.Client{Socket: c.socket}
}

// kinds are the kinds of objects as kubectl's users write them, and as the agent does.
var kinds = map[string]string{
	"po": "pod", "pod": "pod", "pods": "pod",
	"svc": "service", "service": "service", "services": "service",
	"netpol": "policy", "networkpolicy": "policy", "networkpolicies": "policy", "policy": "policy",
	"cnp": "clusterpolicy", "clusternetworkpolicy": "clusterpolicy", "clusternetworkpolicies": "clusterpolicy",
	"clusterpolicy": "clusterpolicy",
	"no":            "node", "node": "node", "nodes": "node",
}

// object is what a user wrote: [KIND/][NAMESPACE/]NAME, with the agent's word for the kind and the namespace of
// --namespace where there is none.
func (c *client) object(args []string) (kind, name string) {
	name = strings.Join(args, "")
	if first, rest, ok := strings.Cut(name, "/"); ok && kinds[first] != "" && first != c.namespace {
		// A namespace may have the name of a kind: NAMESPACE/NAME has one slash, KIND/NAMESPACE/NAME two.
		if strings.Contains(rest, "/") || c.namespace != "" || kinds[first] == "node" {
			kind, name = kinds[first], rest
		}
	}
	if name != "" && c.namespace != "" && !strings.Contains(name, "/") && kind != "node" {
		name = c.namespace + "/" + name
	}
	return kind, name
}

// owner is an object as the agent shows owners of flows.
func (c *client) owner(args []string) string {
	kind, name := c.object(args)
	if kind == "" {
		return name
	}
	return kind + "/" + name
}

// named is an object without its kind.
func (c *client) named(args []string) string {
	_, name := c.object(args)
	return name
}

// inNamespace says whether an object NAMESPACE/NAME is of those that --namespace wants.
func (c *client) inNamespace(object string) bool {
	return c.namespace == "" || strings.HasPrefix(object, c.namespace+"/")
}

// ownerInNamespace is inNamespace for a flow's owner: KIND/NAMESPACE/NAME.
func (c *client) ownerInNamespace(owner string) bool {
	_, object, _ := strings.Cut(owner, "/")
	return strings.Contains(object, "/") && c.inNamespace(object)
}

// where is what was asked, for messages.
func (c *client) where() string {
	if c.remote() {
		return "on the nodes that were asked"
	}
	return "of this node"
}

// answer is what an agent said, or why it did not.
type answer[T any] struct {
	report.Answer[T]
	err error
}

// ask asks the agent of this machine, whose answer has no Node, or those of the cluster's nodes. The error is that no
// agent was found to ask, or the local one's.
func ask[T any](ctx context.Context, c *client, question func(context.Context, api.Client) (T, error)) (
	[]answer[T], error) {
	if !c.remote() {
		v, err := question(ctx, c.local())
		if err != nil {
			return nil, err
		}
		return []answer[T]{{Answer: report.Answer[T]{Answer: &v}}}, nil
	}
	agents, err := c.cluster.Agents(ctx, c.nodes)
	if err != nil {
		return nil, err
	}
	answers := make([]answer[T], len(agents))
	var group errgroup.Group
	group.SetLimit(maxAtOnce)
	for i, agent := range agents {
		a := &answers[i]
		a.Node = agent.Node
		if agent.Problem != "" {
			a.err = errors.New(agent.Problem)
			a.Error = agent.Problem
			continue
		}
		group.Go(func() error {
			v, err := question(ctx, api.Client{Dial: c.cluster.Dial(agent.Pod)})
			if err == nil {
				a.Answer.Answer = &v
				return nil
			}
			if said := (kubectl.Error{}); errors.As(err, &said) {
				err = said // not what HTTP makes of it
			}
			a.err, a.Error = err, err.Error()
			return nil
		})
	}
	return answers, group.Wait()
}

// given are the answers that were given. The others are told on errs; when there is none, that is the error.
func given[T any](answers []answer[T], errs io.Writer) ([]answer[T], error) {
	var failed []string
	for _, a := range answers {
		if a.err != nil {
			failed = append(failed, fmt.Sprintf("node %s: %v", a.Node, a.err))
		}
	}
	if len(failed) > 0 && len(failed) == len(answers) {
		return nil, errors.New(strings.Join(failed, "; "))
	}
	for _, f := range failed {
		fmt.Fprintln(errs, f)
	}
	return slices.DeleteFunc(slices.Clone(answers), func(a answer[T]) bool { return a.err != nil }), nil
}

// views are the forms of an answer that are not data.
type views struct {
	table func(io.Writer) error
	// names are for -o name.
	names []string
}

// write prints answers: data of the agent of this machine as it is, those of a cluster in a list with the nodes' names.
func write[T any](w io.Writer, c *client, answers []answer[T], v views) error {
	if c.output == terminal.Name {
		for _, name := range v.names {
			fmt.Fprintln(w, name)
		}
		return nil
	}
	if !c.remote() {
		return c.output.Print(w, answers[0].Answer.Answer, v.table)
	}
	list := make([]report.Answer[T], len(answers))
	for i, a := range answers {
		list[i] = a.Answer
	}
	return c.output.Print(w, list, v.table)
}

// showLists asks for lists and shows them: the way of every command but status. Of each node it calls table, and names
// lists what -o name prints.
func showLists[T any](cmd *cobra.Command, c *client, question func(context.Context, api.Client) ([]T, error),
	table func(w io.Writer, list []T) error, name func(T) string, none error) error {
	if err := c.output.Check(terminal.Wide, terminal.Name); err != nil {
		return err
	}
	all, err := ask(cmd.Context(), c, question)
	if err != nil {
		return err
	}
	answers, err := given(all, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	var names []string
	empty := true
	for _, a := range answers {
		for _, item := range *a.Answer.Answer {
			names, empty = append(names, name(item)), false
		}
	}
	if empty && none != nil {
		return none
	}
	slices.Sort(names)
	err = write(cmd.OutOrStdout(), c, all, views{names: slices.Compact(names), table: func(w io.Writer) error {
		for i, a := range answers {
			if i > 0 {
				fmt.Fprintln(w)
			}
			if a.Node != "" {
				fmt.Fprintf(w, "%s\n", terminal.Paint(w, terminal.Bold, "Node "+a.Node))
			}
			if err := table(w, *a.Answer.Answer); err != nil {
				return err
			}
		}
		return nil
	}})
	if err == nil && len(answers) < len(all) {
		return cli.ExitError{Code: cli.CannotAsk} // they were named
	}
	return err
}

// completeNames completes the names of objects of a cluster, or nothing where there is none.
func (c *client) completeNames(kind string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		c.plugin = c.plugin || isPlugin(os.Args[0])
		names, err := c.names(cmd.Context(), kind)
		if err != nil {
			cobra.CompErrorln(err.Error())
		}
		return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, begun) }),
			cobra.ShellCompDirectiveNoFileComp
	}
}

// names lists objects: of a cluster all of them, of this machine those that its agent knows.
func (c *client) names(ctx context.Context, kind string) ([]string, error) {
	if c.remote() {
		return c.cluster.Names(ctx, kind)
	}
	agent := c.local()
	var names []string
	switch kind {
	case "services":
		list, err := agent.Services(ctx, "")
		for _, s := range list {
			names = append(names, s.Service)
		}
		return names, err
	case "networkpolicies":
		list, err := agent.Policies(ctx, "")
		for _, p := range list {
			names = append(names, p.Policy)
		}
		return names, err
	}
	s, err := agent.Status(ctx)
	switch kind {
	case "nodes":
		names = append(names, s.Node)
		for _, n := range s.Nodes {
			names = append(names, n.Name)
		}
	case "pods":
		for _, p := range s.Pods {
			names = append(names, p.Pod)
		}
	}
	return names, err
}

// completeObjects completes one argument with the names of objects of several kinds, each with its prefix.
func (c *client) completeObjects(kinds map[string]string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for prefix, kind := range kinds {
			list, err := c.names(cmd.Context(), kind)
			if err != nil {
				cobra.CompErrorln(err.Error())
			}
			for _, name := range list {
				if strings.HasPrefix(prefix+name, begun) {
					names = append(names, prefix+name)
				}
			}
		}
		slices.Sort(names)
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
