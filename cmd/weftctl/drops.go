package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
)

// drop is a flow that drops, with what it has counted.
type drop struct {
	Node   string       `json:"node,omitempty"`
	Reason flows.Reason `json:"reason"`
	// Owner is the object that the flow exists for: the pod or policy, if it is one's.
	Owner string `json:"owner"`
	Table string `json:"table"`
	Match string `json:"match"`
	openflow.Stats
}

func dropsCommand(c *client) *cobra.Command {
	var follow, all bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "drops [POD|POLICY|NODE]",
		Short: "Show which flows drop packets, with the object that each exists for; -f as they drop them",
		Long: "Shows the flows that have dropped packets: the reason, the object they exist for, and what they match. With -f, a line\n" +
			"for each flow that drops more, as soon as it is seen. Without --all, reasons that occur on every healthy node are\n" +
			"left out (harmless in docs/metrics.md). Flows count, so a line has no addresses beside those that the flow matches; a\n" +
			"policy's log has (docs/policies.md).",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeObjects(map[string]string{"pod/": "pods", "policy/": "networkpolicies", "node/": "nodes"}),
		Example:           "  weftctl drops\n  kubectl weft drops -f\n  kubectl weft drops pod/shop/web -f -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.output.Check(); err != nil {
				return err
			}
			if interval <= 0 {
				return fmt.Errorf("--interval %s: want a time of more than 0", interval)
			}
			if follow {
				return followDrops(cmd, c, c.owner(args), all, interval)
			}
			list, err := readDrops(cmd, c, c.owner(args), all)
			if err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(d drop) bool { return d.Packets == 0 })
			slices.SortStableFunc(list, func(a, b drop) int { return cmp.Compare(b.Packets, a.Packets) })
			return c.output.Print(cmd.OutOrStdout(), list, func(w io.Writer) error { return showDropFlows(w, list) })
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "show each flow that drops more, until interrupted")
	cmd.Flags().BoolVar(&all, "all", false, "also what is dropped on every healthy node, such as multicast")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "how often the switches are read with -f")
	return cmd
}

// readDrops reads the flows that drop, also those that have not yet.
func readDrops(cmd *cobra.Command, c *client, object string, all bool) ([]drop, error) {
	asked, err := ask(cmd.Context(), c, func(ctx context.Context, a api.Client) ([]report.Flow, error) {
		return a.Flows(ctx, object)
	})
	if err != nil {
		return nil, err
	}
	answers, err := given(asked, cmd.ErrOrStderr())
	if err != nil {
		return nil, err
	}
	list := []drop{}
	for _, a := range answers {
		for _, f := range *a.Answer.Answer {
			if f.Reason != "" && (all || !f.Reason.Harmless()) {
				list = append(list, drop{a.Node, f.Reason, f.Owner, f.Table, f.Match, f.Stats})
			}
		}
	}
	return list, nil
}

func showDropFlows(out io.Writer, list []drop) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "No flow has dropped a packet.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "NODE\tREASON\tPACKETS\tBYTES\tOWNER\tMATCH\n")
	for _, d := range list {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\n", terminal.OrNone(d.Node), d.Reason, d.Packets, d.Bytes, d.Owner, orAny(d.Match))
	}
	return w.Flush()
}

// followDrops prints what each flow drops more than at the last reading. What is lost between two readings is a flow
// that was added, dropped and was removed.
func followDrops(cmd *cobra.Command, c *client, object string, all bool, interval time.Duration) error {
	type id struct {
		node, table, match string
		owner              string
	}
	last := map[id]openflow.Stats{}
	for first := true; ; first = false {
		list, err := readDrops(cmd, c, object, all)
		switch {
		case cmd.Context().Err() != nil:
			return nil //nolint:nilerr // the user has ended it
		case err != nil && first:
			return err
		case err != nil: // an agent that restarts answers again
			fmt.Fprintln(cmd.ErrOrStderr(), err)
		}
		for _, d := range list {
			key := id{d.Node, d.Table, d.Match, d.Owner}
			before := last[key]
			last[key] = d.Stats
			if d.Packets <= before.Packets || first {
				continue
			}
			d.Packets, d.Bytes = d.Packets-before.Packets, d.Bytes-min(before.Bytes, d.Bytes)
			if err := printDrop(cmd.OutOrStdout(), c.output, d); err != nil {
				return err
			}
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-time.After(interval):
		}
	}
}

// printDrop writes one line: of JSON, one object a line.
func printDrop(w io.Writer, format terminal.Format, d drop) error {
	if format != terminal.Table {
		return json.NewEncoder(w).Encode(d)
	}
	_, err := fmt.Fprintf(w, "%s  %s  %s  %s  %s  %s\n", time.Now().Format(time.TimeOnly), terminal.OrNone(d.Node), d.Reason,
		terminal.Count(int(d.Packets), "packet"), d.Owner, orAny(d.Match))
	return err
}
