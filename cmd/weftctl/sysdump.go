package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/kubectl"
	"github.com/weft-cni/weft/internal/sysdump"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/internal/version"
	"github.com/weft-cni/weft/pkg/report/api"
)

func sysdumpCommand(c *client) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "sysdump",
		Short: "Collect what a maintainer needs to find a fault into one archive, without secrets",
		Long: "Collects, of this node or of the nodes of a cluster: what the agents answer, their logs, flows, groups and meters, the\n" +
			"databases of Open vSwitch, nftables and routes; and of a cluster the objects that matter to its network. Settings of\n" +
			"applications (environment, commands, volumes), data of ConfigMaps and Secrets are not in it, and what looks like a\n" +
			"credential is taken out. What does not answer is named in index.txt; the rest is collected all the same.",
		Args:    cobra.NoArgs,
		Example: "  kubectl weft sysdump\n  kubectl weft sysdump --node worker-1,worker-2 --file weft.tar.gz",
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now().UTC()
			dir := "weft-sysdump-" + now.Format("20060102-150405")
			if file == "" {
				file = dir + ".tar.gz"
			}
			items := c.localItems()
			if c.remote() {
				items = c.clusterItems(cmd.Context())
			}
			out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				return err
			}
			results, err := sysdump.Write(cmd.Context(), out, dir, now, items)
			err = errors.Join(err, out.Close())
			failed := 0
			for _, r := range results {
				if r.Error != "" {
					failed++
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", r.Name, r.Error)
				}
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %d of them failed\n", file, terminal.Count(len(results), "item"), failed)
			if err == nil && failed > 0 {
				return cli.Found
			}
			return err
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "the archive (default weft-sysdump-TIME.tar.gz)")
	return cmd
}

// text is an item whose content is there already.
func text(name, content string) sysdump.Item {
	return sysdump.Item{Name: name, Collect: func(context.Context) ([]byte, error) { return []byte(content), nil }}
}

// answersOf are items of what an agent answers.
func answersOf(dir string, agent api.Client) []sysdump.Item {
	item := func(name string, ask func(ctx context.Context) (any, error)) sysdump.Item {
		return sysdump.Item{Name: path.Join(dir, name), Collect: func(ctx context.Context) ([]byte, error) {
			v, err := ask(ctx)
			if err != nil {
				return nil, err
			}
			return json.MarshalIndent(v, "", " ")
		}}
	}
	return []sysdump.Item{
		item("status.json", func(ctx context.Context) (any, error) { return agent.Status(ctx) }),
		item("flows.json", func(ctx context.Context) (any, error) { return agent.Flows(ctx, "") }),
		item("services.json", func(ctx context.Context) (any, error) { return agent.Services(ctx, "") }),
		item("policies.json", func(ctx context.Context) (any, error) { return agent.Policies(ctx, "") }),
		// A list, as weftctl trace --file reads it.
		item("trace.json", func(ctx context.Context) (any, error) {
			n, err := agent.Trace(ctx)
			return []any{n}, err
		}),
	}
}

// ofBridge are commands about the bridge; they are in the agent's image.
var ofBridge = map[string][]string{
	"ovs-flows.txt":  {"ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "weft"},
	"ovs-groups.txt": {"ovs-ofctl", "-O", "OpenFlow15", "dump-groups", "weft"},
	"ovs-meters.txt": {"ovs-ofctl", "-O", "OpenFlow15", "meter-stats", "weft"},
	"ovs-ports.txt":  {"ovs-ofctl", "-O", "OpenFlow15", "dump-ports", "weft"},
	"nftables.txt":   {"nft", "list", "ruleset"},
}

// ofNode are commands that only the node itself has.
var ofNode = map[string][]string{
	"ovs-vsctl.txt":     {"ovs-vsctl", "show"},
	"ovs-database.txt":  {"ovs-vsctl", "list", "Open_vSwitch"},
	"ovs-conntrack.txt": {"ovs-appctl", "dpctl/ct-stats-show"},
	"links.txt":         {"ip", "-d", "-s", "link"},
	"addresses.txt":     {"ip", "addr"},
	"routes.txt":        {"ip", "route", "show", "table", "all"},
	"routes6.txt":       {"ip", "-6", "route", "show", "table", "all"},
	"rules.txt":         {"ip", "rule"},
}

// localItems are those of this machine.
func (c *client) localItems() []sysdump.Item {
	items := append([]sysdump.Item{text("version.txt", version.Get().String()+"\n")}, answersOf("node", c.local())...)
	for _, commands := range []map[string][]string{ofBridge, ofNode} {
		for name, args := range commands {
			items = append(items, sysdump.Item{Name: "node/" + name, Collect: func(ctx context.Context) ([]byte, error) {
				return exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
			}})
		}
	}
	return items
}

// ofCluster are the resources whose objects matter to the network.
var ofCluster = []string{"nodes", "namespaces", "pods", "services", "endpointslices.discovery.k8s.io",
	"networkpolicies.networking.k8s.io", "servicecidrs.networking.k8s.io", "events"}

// clusterItems are those of a cluster. Without an answer of the API server they are what failed.
func (c *client) clusterItems(ctx context.Context) []sysdump.Item {
	items := []sysdump.Item{text("version.txt", version.Get().String()+"\n")}
	objects := func(name string, keepData bool, args ...string) {
		items = append(items, sysdump.Item{Name: name, Collect: func(ctx context.Context) ([]byte, error) {
			text, err := c.cluster.Run(ctx, append([]string{"get", "--output=json"}, args...)...)
			if err != nil {
				return nil, err
			}
			return sysdump.Objects(text, keepData)
		}})
	}
	for _, kind := range ofCluster {
		objects("cluster/"+kind+".json", false, kind, "--all-namespaces")
	}
	in := "--namespace=" + c.cluster.Namespace
	objects("cluster/weft-config.json", true, "configmap", "weft-config", in)
	objects("cluster/daemonsets.json", false, "daemonsets", in)
	agents, err := c.cluster.Agents(ctx, c.nodes)
	if err != nil {
		return append(items, sysdump.Item{Name: "nodes", Collect: func(context.Context) ([]byte, error) { return nil, err }})
	}
	for _, a := range agents {
		items = append(items, c.nodeItems(a)...)
	}
	return items
}

// nodeItems are those of a node of a cluster. One whose agent does not run has its logs.
func (c *client) nodeItems(a kubectl.Agent) []sysdump.Item {
	dir := path.Join("nodes", a.Node)
	if a.Pod == "" {
		return []sysdump.Item{text(dir+"/problem.txt", a.Problem+"\n")}
	}
	run := func(name string, args ...string) sysdump.Item {
		return sysdump.Item{Name: path.Join(dir, name), Collect: func(ctx context.Context) ([]byte, error) {
			return c.cluster.Run(ctx, args...)
		}}
	}
	in := "--namespace=" + c.cluster.Namespace
	items := []sysdump.Item{run("log.txt", "logs", in, "--all-containers", "--tail=50000", a.Pod)}
	previous := run("log-previous.txt", "logs", in, "--previous", "--tail=50000", "--container=weft-agent", a.Pod)
	collect := previous.Collect
	previous.Collect = func(ctx context.Context) ([]byte, error) {
		text, err := collect(ctx)
		if err != nil {
			return nil, nil //nolint:nilerr // most have not ended before
		}
		return text, nil
	}
	items = append(items, previous)
	if a.Problem != "" {
		return append(items, text(dir+"/problem.txt", a.Problem+"\n"))
	}
	items = append(items, answersOf(dir, api.Client{Dial: c.cluster.Dial(a.Pod)})...)
	for name, args := range ofBridge {
		items = append(items, run(name, append([]string{"exec", in, "--container=weft-agent", a.Pod, "--"}, args...)...))
	}
	return items
}
