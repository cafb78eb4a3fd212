package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
)

const planHelp = "" +
	"The agent compiles the objects of the files together with all that it knows, on copies: neither the\n" +
	"API server nor the switch is changed. What the API server and controllers would fill in (a ClusterIP, a pod's\n" +
	"addresses) is taken from the object of the same name; --dry-run=server, as in the last example, fills in more.\n" +
	"A Deployment or a Service makes no pods or EndpointSlices here: give those, too. weft-lab compile needs no\n" +
	"cluster (docs/lab.md).\n\n"

func diffCommand(c *client) *cobra.Command {
	var files []string
	var gone bool
	cmd := &cobra.Command{
		Use:   "diff -f FILE|DIR|-…",
		Short: "Show which flows would change if manifests were applied",
		Long: "Shows, for each object whose flows would change on the nodes that are asked, the flows that would go (-)\n" +
			"and those that would come (+), with the groups that they lead to.\n" + planHelp +
			"Exit codes: 0 nothing would change, 1 something would, or an object could not be programmed, 2 it cannot be said.",
		Args: cobra.NoArgs,
		Example: "  kubectl weft diff -f policy.yaml\n" +
			"  kubectl weft diff --delete -f policy.yaml --node worker-1\n" +
			"  weftctl diff -f manifests/ -o json | jq '.changes[].owner'\n" +
			"  kubectl apply -f app.yaml --dry-run=server -o json | kubectl weft diff -f -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.plan(cmd, files, api.PlanRequest{Delete: gone}, showChanges, func(p report.Plan) bool {
				return len(p.Changes)+len(p.Problems) > 0
			})
		},
	}
	planFlags(cmd, &files)
	cmd.Flags().BoolVar(&gone, "delete", false, "as if the objects were deleted, not applied")
	return cmd
}

func compileCommand(c *client) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "compile [POD|SERVICE|POLICY|NODE] -f FILE|DIR|-…",
		Short: "Show the flows that nodes would have if manifests were applied",
		Long: "Shows all flows of the nodes that are asked as they would be with the manifests applied, or those of an\n" +
			"object, which is named as in weftctl flows.\n" + planHelp +
			"Exit codes: 0 everything can be programmed, 1 an object cannot, 2 it cannot be said.",
		Args: cobra.MaximumNArgs(1),
		Example: "  kubectl weft compile policy/shop/backend -f policy.yaml --node worker-1\n" +
			"  weftctl compile -f manifests/ -o json\n" +
			"  kubectl apply -f app.yaml --dry-run=server -o json | kubectl weft compile -f - --node worker-1",
		RunE: func(cmd *cobra.Command, args []string) error {
			owner := c.owner(args)
			return c.plan(cmd, files, api.PlanRequest{All: true, Object: owner}, func(w io.Writer, p report.Plan) error {
				return showFlows(w, p.Flows, owner != "")
			}, func(p report.Plan) bool { return len(p.Problems) > 0 })
		},
	}
	planFlags(cmd, &files)
	return cmd
}

func planFlags(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringSliceVarP(files, "filename", "f", nil,
		"file or directory of manifests, - for the input; also several times")
	if err := cmd.MarkFlagRequired("filename"); err != nil {
		panic(err) // a flag that was not added above
	}
}

// plan asks about the objects of files, and shows each node's plan. Found says that the exit code is 1.
func (c *client) plan(cmd *cobra.Command, files []string, request api.PlanRequest,
	show func(io.Writer, report.Plan) error, found func(report.Plan) bool) error {
	if err := c.output.Check(); err != nil {
		return err
	}
	var err error
	if request.Objects, err = readObjects(files, c.namespace, cmd.InOrStdin()); err != nil {
		return err
	}
	all, err := ask(cmd.Context(), c, func(ctx context.Context, a api.Client) (report.Plan, error) {
		return a.Plan(ctx, request)
	})
	if err != nil {
		return err
	}
	answers, err := given(all, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	err = write(cmd.OutOrStdout(), c, all, views{table: func(w io.Writer) error {
		for i, a := range answers {
			if i > 0 {
				fmt.Fprintln(w)
			}
			if a.Node != "" {
				fmt.Fprintln(w, terminal.Paint(w, terminal.Bold, "Node "+a.Node))
			}
			for _, text := range a.Answer.Answer.Warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", text)
			}
			for _, text := range a.Answer.Answer.Problems {
				fmt.Fprintln(w, terminal.Paint(w, terminal.Red, "Problem: "+text))
			}
			if err := show(w, *a.Answer.Answer); err != nil {
				return err
			}
		}
		return nil
	}})
	switch {
	case err != nil:
		return err
	case len(answers) < len(all):
		return cli.ExitError{Code: cli.CannotAsk} // they were named
	case slices.ContainsFunc(answers, func(a answer[report.Plan]) bool { return found(*a.Answer.Answer) }):
		return cli.Found
	}
	return nil
}

func showChanges(out io.Writer, p report.Plan) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	removed, added := 0, 0
	for _, o := range p.Changes {
		removed, added = removed+len(o.Removed), added+len(o.Added)
		fmt.Fprintf(w, "%s: %s fewer, %d more\n", o.Owner, terminal.Count(len(o.Removed), "flow"), len(o.Added))
		for _, side := range []struct {
			sign  string
			flows []report.Flow
		}{{"-", o.Removed}, {"+", o.Added}} {
			for _, f := range side.flows {
				fmt.Fprintf(w, "%s %s\t%d\t%s\t%s%s\n", side.sign, f.Table, f.Priority, orAny(f.Match), f.Actions, groupsText(f))
			}
		}
	}
	if len(p.Changes) == 0 {
		fmt.Fprintln(w, "No flow would change.")
	} else {
		fmt.Fprintf(w, "\n%s of %s: %d would go, %d would come.\n", terminal.Count(removed+added, "flow"),
			terminal.Count(len(p.Changes), "object"), removed, added)
	}
	return w.Flush()
}

// groupsText is the groups behind a flow, with where their buckets lead.
func groupsText(f report.Flow) string {
	var b strings.Builder
	for _, g := range f.Groups {
		to := make([]string, len(g.Buckets))
		for i, bucket := range g.Buckets {
			to[i] = bucket.To
		}
		fmt.Fprintf(&b, " [group %d: %s]", g.ID, terminal.OrNone(strings.Join(to, ", ")))
	}
	return b.String()
}

// readObjects reads the objects of manifests, as JSON. Those without a namespace get this one, if it is not empty.
func readObjects(files []string, namespace string, input io.Reader) ([]json.RawMessage, error) {
	objects := []json.RawMessage{}
	read := func(name string, text []byte) error {
		for i, document := range strings.Split("\n"+string(text), "\n---") {
			list, err := objectsOf(document, namespace)
			if err != nil {
				return fmt.Errorf("%s, document %d: %w", name, i+1, err)
			}
			objects = append(objects, list...)
		}
		return nil
	}
	for _, file := range files {
		if file == "-" {
			text, err := io.ReadAll(input)
			if err := errors.Join(err, read("the input", text)); err != nil {
				return nil, err
			}
			continue
		}
		found := []string{file}
		if info, err := os.Stat(file); err == nil && info.IsDir() {
			found = nil
			for _, pattern := range []string{"*.yaml", "*.yml", "*.json"} {
				more, _ := filepath.Glob(filepath.Join(file, pattern)) // the patterns are right
				found = append(found, more...)
			}
		}
		for _, name := range found {
			text, err := os.ReadFile(name)
			if err := errors.Join(err, read(name, text)); err != nil {
				return nil, err
			}
		}
	}
	if len(objects) == 0 {
		return nil, errors.New("the files have no object")
	}
	return objects, nil
}

// objectsOf are the objects of a document: one, those of a List, or none.
func objectsOf(document, namespace string) ([]json.RawMessage, error) {
	text, err := yaml.YAMLToJSONStrict([]byte(document))
	if err != nil {
		return nil, err
	}
	var object map[string]any
	if err := json.Unmarshal(text, &object); err != nil || object == nil {
		return nil, err
	}
	items, isList := object["items"].([]any)
	if kind, _ := object["kind"].(string); !isList || !strings.HasSuffix(kind, "List") {
		items = []any{object}
	}
	var list []json.RawMessage
	for _, item := range items {
		if one, ok := item.(map[string]any); ok {
			if metadata, ok := one["metadata"].(map[string]any); ok && namespace != "" && metadata["namespace"] == nil {
				metadata["namespace"] = namespace
			}
		}
		text, err := json.Marshal(item)
		if err != nil {
			return nil, err
		}
		list = append(list, text)
	}
	return list, nil
}
