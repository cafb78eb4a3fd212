package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
)

func statusCommand(c *client) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what this node has programmed, its pods, the other nodes and what was dropped",
		Args:  cobra.NoArgs,
		Example: "  weftctl status\n" +
			"  weftctl status -o json | jq .drops",
		RunE: func(cmd *cobra.Command, _ []string) error {
			agent, err := c.agent()
			if err != nil {
				return err
			}
			r, err := agent.Status(cmd.Context())
			if err != nil {
				return err
			}
			return c.output.Print(cmd.OutOrStdout(), r, func(w io.Writer) error { return showStatus(w, r) })
		},
	}
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
	fmt.Fprintf(w, "Tunnel\t%s\n", tunnel(r))
	fmt.Fprintf(w, "Flows\t%s\n", programmed(r.Flows))
	if r.Flows.Flows > 0 {
		fmt.Fprintf(w, "Services\t%s\n", counted(r.Objects.Services, "", r.Objects.ServicesWithProblems, "with problems"))
		fmt.Fprintf(w, "Policies\t%s\n", counted(r.Objects.Policies, " about pods of this node", r.Objects.PoliciesWithErrors,
			"with errors"))
	}
	if r.FromCopy != nil {
		fmt.Fprintf(w, "API news\t%s\n", terminal.Paint(out, terminal.Red,
			"from a copy of "+r.FromCopy.UTC().Format(time.DateTime)+" UTC"))
	} else if len(r.API) > 0 {
		fmt.Fprintf(w, "API news\t%s\n", news(r.API))
	}
	for _, p := range problems(r) {
		fmt.Fprintf(w, "Problem\t%s\n", terminal.Paint(out, terminal.Red, p))
	}
	for _, c := range r.Restart {
		fmt.Fprintf(w, "Restart\t%s is %s, configured is %s: kubectl -n weft-system rollout restart daemonset/weft-agent\n",
			c.Key, c.Old, c.New)
	}

	showPods(w, out, r.Pods)
	showNodes(w, out, r.Nodes)
	showDrops(w, r.Drops)
	return w.Flush()
}

// tunnel says how this node sends; what depends on the underlay is not known at once.
func tunnel(r report.Status) string {
	if r.MTU == 0 {
		return fmt.Sprintf("%s, %s datapath, underlay and MTU not known yet", r.Tunnel, r.Datapath)
	}
	return fmt.Sprintf("%s over %s, %s datapath, pod MTU %d", r.Tunnel, terminal.OrNone(r.Underlay), r.Datapath, r.MTU)
}

// programmed says which part of the desired state is installed.
func programmed(s report.Switch) string {
	switch {
	case s.Flows == 0:
		return "none yet"
	case s.Programmed < s.Desired:
		return fmt.Sprintf("%d, only revision %d of %d programmed, %d bundles, %d repairs", s.Flows, s.Programmed, s.Desired,
			s.Bundles, s.Repairs)
	}
	return fmt.Sprintf("%d, all programmed (revision %d), %d bundles, %d repairs", s.Flows, s.Programmed, s.Bundles,
		s.Repairs)
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

func showNodes(w, out io.Writer, nodes []report.Node) {
	if len(nodes) == 0 {
		return
	}
	fmt.Fprint(w, "\nNODE\tTUNNEL TO\tPOD CIDRS\tSTATE\n")
	for _, n := range nodes {
		tunnel := terminal.OrNone("")
		if n.Tunnel.IsValid() {
			tunnel = n.Tunnel.String()
		}
		problems := n.Rejected
		if n.Unreachable != "" {
			problems = slices.Concat([]string{n.Unreachable}, problems)
		}
		known := state(out, strings.Join(problems, "; "), "known")
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", n.Name, tunnel, terminal.Join(n.PodCIDRs), known)
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

// problems lists everything that is wrong now.
func problems(r report.Status) []string {
	list := append([]string{}, r.Problems...)
	if r.Flows.Error != "" {
		list = append(list, "switch: "+r.Flows.Error)
	}
	for _, owner := range slices.Sorted(maps.Keys(r.Flows.Quarantined)) {
		what := " is left out: "
		if strings.HasPrefix(owner, model.KindPolicy.String()+"/") {
			what = " isolates its pods and allows nothing: "
		}
		list = append(list, owner+what+r.Flows.Quarantined[owner])
	}
	return append(list, r.Flows.Conflicts...)
}

func state(out io.Writer, problem, fine string) string {
	if problem != "" {
		return terminal.Paint(out, terminal.Red, problem)
	}
	return terminal.Paint(out, terminal.Green, fine)
}
