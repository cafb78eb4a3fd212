package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report/api"
)

// use is what an object has sent, received or decided within a time.
type use struct {
	Node string `json:"node,omitempty"`
	Name string `json:"name"`
	// Packets and Bytes are those within the interval.
	openflow.Stats
}

func topCommand(c *client) *cobra.Command {
	var interval time.Duration
	var most int
	cmd := &cobra.Command{
		Use:   "top pods|services|policies",
		Short: "Show what is busiest now: pods by what they send, Services by new connections, policies by packets",
		Long: "Reads the switches twice, and shows what has counted most in between: of a pod the packets that it has sent, of a Service\n" +
			"the packets that began a connection, of a rule of a policy the packets that it allowed or denied.",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"pods", "services", "policies"},
		Example:   "  weftctl top pods\n  kubectl weft top policies --interval 10s",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.output.Check(); err != nil {
				return err
			}
			if interval <= 0 {
				return fmt.Errorf("--interval %s: want a time of more than 0", interval)
			}
			before, err := readUse(cmd, c, args[0])
			if err != nil {
				return err
			}
			select {
			case <-cmd.Context().Done():
				return cli.ExitError{Code: cli.CannotAsk}
			case <-time.After(interval):
			}
			after, err := readUse(cmd, c, args[0])
			if err != nil {
				return err
			}
			list := busiest(before, after, most)
			return c.output.Print(cmd.OutOrStdout(), list, func(w io.Writer) error {
				return showUse(w, args[0], interval, list)
			})
		},
	}
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "the time between the two readings")
	cmd.Flags().IntVar(&most, "most", 20, "how many to show")
	return cmd
}

// readUse reads the counters of all objects of a kind.
func readUse(cmd *cobra.Command, c *client, kind string) ([]use, error) {
	asked, err := ask(cmd.Context(), c, func(ctx context.Context, a api.Client) ([]use, error) {
		var list []use
		switch kind {
		case "pods":
			all, err := a.Flows(ctx, "")
			for _, f := range all {
				// Each packet of a pod takes the one flow of its port in the first table.
				if pod, ok := strings.CutPrefix(f.Owner, "pod/"); ok && f.TableID == 0 {
					list = append(list, use{Name: pod, Stats: f.Stats})
				}
			}
			return list, err
		case "services":
			all, err := a.Services(ctx, "")
			for _, s := range all {
				for _, f := range s.Frontends {
					list = append(list, use{Name: fmt.Sprintf("%s %s/%s", s.Service, f.Address, f.Protocol), Stats: f.Stats})
				}
			}
			return list, err
		}
		all, err := a.Policies(ctx, "")
		for _, p := range all {
			for _, r := range p.Rules {
				list = append(list, use{Name: fmt.Sprintf("%s %s %s", p.Policy, r.Direction, r.Rule), Stats: r.Stats})
			}
		}
		return list, err
	})
	if err != nil {
		return nil, err
	}
	answers, err := given(asked, cmd.ErrOrStderr())
	var list []use
	for _, a := range answers {
		for _, u := range *a.Answer.Answer {
			if u.Node = a.Node; c.inNamespace(u.Name) {
				list = append(list, u)
			}
		}
	}
	return list, err
}

// useID is an object of a node.
type useID struct{ node, name string }

// sum adds up the counters of each object.
func sum(list []use) map[useID]openflow.Stats {
	sums := map[useID]openflow.Stats{}
	for _, u := range list {
		s := sums[useID{u.Node, u.Name}]
		sums[useID{u.Node, u.Name}] = openflow.Stats{Packets: s.Packets + u.Packets, Bytes: s.Bytes + u.Bytes}
	}
	return sums
}

// busiest are those that have counted since before, most bytes first.
func busiest(before, after []use, most int) []use {
	was, now := sum(before), sum(after)
	list := []use{}
	for of, s := range now {
		if s.Packets > was[of].Packets {
			since := openflow.Stats{Packets: s.Packets - was[of].Packets, Bytes: s.Bytes - min(was[of].Bytes, s.Bytes)}
			list = append(list, use{of.node, of.name, since})
		}
	}
	slices.SortFunc(list, func(a, b use) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Node, b.Node),
			cmp.Compare(a.Name, b.Name))
	})
	return list[:min(max(most, 0), len(list))]
}

func showUse(out io.Writer, kind string, interval time.Duration, list []use) error {
	if len(list) == 0 {
		_, err := fmt.Fprintf(out, "Of %s, nothing was counted within %s.\n", kind, interval)
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "NODE\tNAME\tPACKETS/S\tKBIT/S\n")
	for _, u := range list {
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.1f\n", terminal.OrNone(u.Node), u.Name, float64(u.Packets)/interval.Seconds(),
			float64(u.Bytes)*8/1000/interval.Seconds())
	}
	return w.Flush()
}
