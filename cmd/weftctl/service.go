package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
)

func serviceCommand(c *client) *cobra.Command {
	return &cobra.Command{
		Use:     "service [NAME]",
		Aliases: []string{"services"},
		Short:   "Show the Services that this node serves, with their endpoints and how many packets began a connection",
		Long: "Shows every address of every Service as this node serves it: its traffic policy, the endpoints that the policy leaves\n" +
			"(those marked * are on this node), session affinity, and how many packets began a connection since the flow was written.\n" +
			"NAME is a Service's NAMESPACE/NAME or NAME; all its endpoints are listed then.",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeObjects(map[string]string{"": "services"}),
		Example: "  weftctl service\n" +
			"  weftctl service shop/web\n" +
			"  weftctl service -o json | jq -r '.[] | select(.problem).service'",
		RunE: func(cmd *cobra.Command, args []string) error {
			var none error
			if len(args) == 1 {
				none = fmt.Errorf("there is no Service %s %s; headless Services and those of type ExternalName need no "+
					"flows, kubectl get services -A lists all", args[0], c.where())
			}
			question := func(ctx context.Context, agent api.Client) ([]report.Service, error) {
				list, err := agent.Services(ctx, c.named(args))
				return slices.DeleteFunc(list, func(s report.Service) bool { return !c.inNamespace(s.Service) }), err
			}
			show := func(w io.Writer, list []report.Service) error {
				return showServices(w, list, len(args) == 1 || c.output == terminal.Wide)
			}
			return showLists(cmd, c, question, show, func(s report.Service) string { return "service/" + s.Service }, none)
		},
	}
}

func showServices(out io.Writer, services []report.Service, all bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(services) == 0 {
		fmt.Fprint(w, "This node serves no Service.\n")
		return w.Flush()
	}
	fmt.Fprint(w, "SERVICE\tKIND\tADDRESS\tPROTO\tTRAFFIC\tAFFINITY\tNEW\tENDPOINTS\tSTATE\n")
	for _, s := range services {
		for _, f := range s.Frontends {
			problem := joinNotEmpty("; ", f.Without, s.Problem)
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", s.Service, f.Kind, f.Address, f.Protocol, trafficPolicy(f),
				terminal.OrNone(s.Affinity), f.Packets,
				some(endpoints(f), all), state(out, problem, "programmed"))
		}
		if len(s.Frontends) == 0 {
			fmt.Fprintf(w, "%s\t-\t-\t-\t-\t-\t-\t-\t%s\n", s.Service, state(out, s.Problem, "no address"))
		}
	}
	for _, s := range services {
		if s.HealthCheckNodePort != 0 {
			fmt.Fprintf(w, "\n%s tells load balancers at port %d of this node that it has %s here.\n", s.Service,
				s.HealthCheckNodePort, terminal.Count(s.HealthyEndpoints, "endpoint"))
		}
	}
	return w.Flush()
}

// trafficPolicy is the policy, and which clients are let in where not all are.
func trafficPolicy(f report.Frontend) string {
	if len(f.Sources) == 0 {
		return f.Policy
	}
	return f.Policy + " from " + terminal.Join(f.Sources)
}

func endpoints(f report.Frontend) []string {
	list := make([]string, len(f.Endpoints))
	for i, e := range f.Endpoints {
		list[i] = e.Address.String()
		if e.Local {
			list[i] += "*"
		}
		if e.Weight > 1 {
			list[i] += fmt.Sprintf("(weight %d)", e.Weight)
		}
	}
	return list
}

func joinNotEmpty(separator string, texts ...string) string {
	var list []string
	for _, text := range texts {
		if text != "" {
			list = append(list, text)
		}
	}
	return strings.Join(list, separator)
}
