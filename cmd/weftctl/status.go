package main

import (
	"bytes"
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
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
)

func statusCommand(c *client) *cobra.Command {
	var wait time.Duration
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what this node has programmed, its pods, the other nodes and what was dropped; of a cluster, a line a node",
		Args:  cobra.NoArgs,
		Example: "  weftctl status\n" +
			"  weftctl status -o json | jq .drops\n" +
			"  kubectl weft status --wait 2m",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.output.Check(terminal.Wide, terminal.Name); err != nil {
				return err
			}
			if watch {
				return watchStatus(cmd, c)
			}
			answers, err := waitStatus(cmd.Context(), c, wait)
			if err != nil {
				return err
			}
			if err := printStatus(cmd, c, answers); err != nil {
				return err
			}
			return judge(answers, wait > 0)
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait this long for everything to be well and programmed, for example 2m")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again whenever it changes, until interrupted")
	cmd.MarkFlagsMutuallyExclusive("wait", "watch")
	return cmd
}

// pollEvery is how often a status that is waited for or watched is asked for.
const pollEvery = time.Second

func askStatus(ctx context.Context, c *client) ([]answer[report.Status], error) {
	return ask(ctx, c, func(ctx context.Context, a api.Client) (report.Status, error) { return a.Status(ctx) })
}

// waitStatus asks until everything is well and programmed, at most for this long. It returns the last answers.
func waitStatus(ctx context.Context, c *client, atMost time.Duration) ([]answer[report.Status], error) {
	deadline := time.Now().Add(atMost)
	for {
		answers, err := askStatus(ctx, c)
		if err == nil && judge(answers, true) == nil || !time.Now().Before(deadline) {
			return answers, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// judge is the exit code: that there is a problem, or, when no agent answers, that it could not be asked.
func judge(answers []answer[report.Status], programmed bool) error {
	silent := 0
	var err error
	for _, a := range answers {
		switch {
		case a.err != nil:
			silent++
			err = cli.Found
		case !a.Answer.Answer.Well() || programmed && !a.Answer.Answer.Programmed():
			err = cli.Found
		}
	}
	if silent == len(answers) {
		return cli.ExitError{Code: cli.CannotAsk}
	}
	return err
}

// watchStatus prints the status whenever what it prints has changed.
func watchStatus(cmd *cobra.Command, c *client) error {
	out, last := cmd.OutOrStdout(), ""
	for {
		answers, err := askStatus(cmd.Context(), c)
		if cmd.Context().Err() != nil {
			return nil //nolint:nilerr // the user has ended it
		}
		var text bytes.Buffer
		if err != nil {
			fmt.Fprintln(&text, err)
		} else if err := writeStatus(&text, c, answers); err != nil {
			return err
		}
		if text.String() != last {
			last = text.String()
			if terminal.Is(out) {
				fmt.Fprint(out, "\x1b[H\x1b[2J") // to the corner, and clear
			}
			if _, err := io.WriteString(out, last); err != nil {
				return err
			}
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-time.After(pollEvery):
		}
	}
}

func printStatus(cmd *cobra.Command, c *client, answers []answer[report.Status]) error {
	return writeStatus(cmd.OutOrStdout(), c, answers)
}

// writeStatus writes the status in the format that was asked for.
func writeStatus(w io.Writer, c *client, answers []answer[report.Status]) error {
	var names []string
	for _, a := range answers {
		node := a.Node
		if a.err == nil {
			node = a.Answer.Answer.Node
		}
		names = append(names, "node/"+node)
	}
	return write(w, c, answers, views{names: names, table: func(w io.Writer) error {
		if c.remote() {
			return showCluster(w, answers, c.output == terminal.Wide)
		}
		return showStatus(w, *answers[0].Answer.Answer)
	}})
}

func showStatus(out io.Writer, r report.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	ready := terminal.Paint(out, terminal.Green, "ready")
	if !r.Ready {
		ready = terminal.Paint(out, terminal.Red, "not ready: "+r.NotReady)
	}
	fmt.Fprintf(w, "Node\t%s\n", r.Node)
	fmt.Fprintf(w, "Agent\t%s, %s\n", r.Version, ready)
	fmt.Fprintf(w, "Addresses\t%s\n", terminal.Join(r.Addrs))
	fmt.Fprintf(w, "Pod CIDRs\t%s\n", terminal.Join(r.PodCIDRs))
	if encapsulated(r) {
		fmt.Fprintf(w, "Tunnel\t%s%s\n", r.Tunnel, underlay(r))
	} else {
		fmt.Fprintf(w, "Transport\t%s%s\n", r.Transport, underlay(r))
	}
	if r.Encryption != "" {
		fmt.Fprintf(w, "Encryption\t%s\n", r.Encryption)
	}
	fmt.Fprintf(w, "Flows\t%s\n", programmed(r.Flows))
	if r.Flows.Flows > 0 {
		fmt.Fprintf(w, "Services\t%s\n", counted(r.Objects.Services, "", r.Objects.ServicesWithProblems, "with problems"))
		fmt.Fprintf(w, "Policies\t%s\n", counted(r.Objects.Policies, " about pods of this node", r.Objects.PoliciesWithErrors,
			"with errors"))
		if r.NoClusterPolicies != "" {
			fmt.Fprintf(w, "\tno ClusterNetworkPolicies: %s\n", r.NoClusterPolicies)
		}
	}
	if r.FromCopy != nil {
		fmt.Fprintf(w, "API news\t%s\n", terminal.Paint(out, terminal.Red,
			"from a copy of "+r.FromCopy.UTC().Format(time.DateTime)+" UTC"))
	} else if len(r.API) > 0 {
		fmt.Fprintf(w, "API news\t%s\n", news(r.API))
	}
	for _, p := range r.AllProblems() {
		fmt.Fprintf(w, "Problem\t%s\n", terminal.Paint(out, terminal.Red, p))
	}
	for _, c := range r.Restart {
		fmt.Fprintf(w, "Restart\t%s is %s, configured is %s: kubectl -n weft-system rollout restart daemonset/weft-agent\n",
			c.Key, c.Old, c.New)
	}

	showPods(w, out, r.Pods)
	showNodes(w, out, r)
	showDrops(w, r.Drops)
	return w.Flush()
}

// encapsulated reports whether the settings ask for tunnels to all nodes. Agents before the settings do not say so.
func encapsulated(r report.Status) bool {
	return (r.Transport == model.ModeOverlay || r.Transport == "") && r.Encryption == ""
}

// underlay says over what this node sends; what depends on the underlay is not known at once.
func underlay(r report.Status) string {
	if r.MTU == 0 {
		return fmt.Sprintf(", %s datapath, underlay and MTU not known yet", r.Datapath)
	}
	return fmt.Sprintf(" over %s, %s datapath, pod MTU %d", terminal.OrNone(r.Underlay), r.Datapath, r.MTU)
}

// programmed says which part of the desired state is installed.
func programmed(s report.Switch) string {
	switch {
	case s.Flows == 0:
		return "none yet"
	case s.Programmed < s.Desired:
		return fmt.Sprintf("%d, only revision %d of %d programmed, %s", s.Flows, s.Programmed, s.Desired, delivered(s))
	}
	return fmt.Sprintf("%d, all programmed (revision %d), %s", s.Flows, s.Programmed, delivered(s))
}

func delivered(s report.Switch) string {
	return terminal.Count(int(s.Bundles), "bundle") + ", " + terminal.Count(int(s.Repairs), "repair")
}

// news says how old the oldest news of a resource is, and which cannot be had.
func news(feeds []report.Feed) string {
	oldest := slices.MaxFunc(feeds, func(a, b report.Feed) int { return cmp.Compare(a.AgeSeconds, b.AgeSeconds) })
	age := time.Duration(oldest.AgeSeconds * float64(time.Second)).Round(time.Second)
	text := fmt.Sprintf("of all resources within %s (%s)", age, oldest.Resource)
	var failing []string
	for _, f := range feeds {
		if f.Error != "" {
			failing = append(failing, f.Resource)
		}
	}
	if len(failing) > 0 {
		text += ", failing: " + strings.Join(failing, ", ")
	}
	return text
}

// counted is a number of objects, and how many of them something is wrong with.
func counted(n int, which string, bad int, how string) string {
	if bad == 0 {
		return fmt.Sprintf("%d%s", n, which)
	}
	return fmt.Sprintf("%d%s, %d %s", n, which, bad, how)
}

// Sections without entries are left out: an agent that has just started knows neither pods nor nodes.

func showPods(w, out io.Writer, pods []report.Pod) {
	if len(pods) == 0 {
		return
	}
	fmt.Fprint(w, "\nPOD\tIPS\tPORT\tOFPORT\tSTATE\n")
	for _, p := range pods {
		ofport := terminal.OrNone("")
		if p.OFPort != 0 {
			ofport = fmt.Sprint(p.OFPort)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", p.Pod, terminal.Join(p.IPs), terminal.OrNone(p.Port), ofport,
			state(out, p.Problem, "programmed"))
	}
}

func showNodes(w, out io.Writer, r report.Status) {
	if len(r.Nodes) == 0 {
		return
	}
	if encapsulated(r) {
		fmt.Fprint(w, "\nNODE\tTUNNEL TO\tPOD CIDRS\tSTATE\n")
	} else {
		fmt.Fprint(w, "\nNODE\tTRANSPORT\tTO\tPOD CIDRS\tSTATE\n")
	}
	for _, n := range r.Nodes {
		tunnel := terminal.OrNone("")
		if n.Tunnel.IsValid() {
			tunnel = n.Tunnel.String()
		}
		problems := n.Rejected
		if n.Unreachable != "" {
			problems = slices.Concat([]string{n.Unreachable}, problems)
		}
		fine := "known"
		if n.RTTSeconds > 0 {
			fine = fmt.Sprintf("reachable, %.1f ms", n.RTTSeconds*1000)
		}
		if n.NotEncrypted != "" {
			fine += "; not encrypted: " + n.NotEncrypted
		}
		if n.Why != "" {
			fine += "; not direct: " + n.Why
		}
		if n.NotIPIP != "" {
			fine += "; not IPIP: " + n.NotIPIP
		}
		known := state(out, strings.Join(problems, "; "), fine)
		name := n.Name
		if !encapsulated(r) {
			name += "\t" + terminal.OrNone(string(n.Transport))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, tunnel, terminal.Join(n.PodCIDRs), known)
	}
}

func showDrops(w io.Writer, drops []report.Drop) {
	if len(drops) == 0 {
		return
	}
	fmt.Fprint(w, "\nDROPPED BECAUSE\tPACKETS\tBYTES\n")
	drops = slices.DeleteFunc(slices.Clone(drops), func(d report.Drop) bool { return d.Packets == 0 })
	if len(drops) == 0 {
		fmt.Fprint(w, "-\t0\t0\n")
	}
	for _, d := range drops {
		fmt.Fprintf(w, "%s\t%d\t%d\n", d.Reason, d.Packets, d.Bytes)
	}
}

func state(out io.Writer, problem, fine string) string {
	if problem != "" {
		return terminal.Paint(out, terminal.Red, problem)
	}
	return terminal.Paint(out, terminal.Green, fine)
}
