//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"

	"github.com/weft-cni/weft/test/e2e/internal/dump"
)

// bridge is the name of Weft's bridge on every node.
const bridge = "weft"

// run runs a command of the machine in the node's namespaces.
func (n node) run(ctx context.Context, args ...string) (string, error) {
	sandbox, err := env.record.Find(n.name)
	if err != nil {
		return "", err
	}
	return sandbox.Run(ctx, args...)
}

// flows dumps the flows of the node's bridge.
func (n node) flows(ctx context.Context) ([]dump.Flow, error) {
	out, err := n.run(ctx, "ovs-ofctl", "-O", "OpenFlow15", "--names", "dump-flows", bridge)
	if err != nil {
		return nil, err
	}
	return dump.Flows(out)
}

// flowIdentities are the node's flows without their counters.
func (n node) flowIdentities(ctx context.Context) ([]string, error) {
	flows, err := n.flows(ctx)
	if err != nil {
		return nil, err
	}
	identities := make([]string, len(flows))
	for i, f := range flows {
		identities[i] = f.Identity()
	}
	return identities, nil
}

// ports reads the counters of the bridge's ports.
func (n node) ports(ctx context.Context) (map[string]dump.Port, error) {
	out, err := n.run(ctx, "ovs-ofctl", "-O", "OpenFlow15", "--names", "dump-ports", bridge)
	if err != nil {
		return nil, err
	}
	return dump.Ports(out)
}

// interfaces reads the switch's interfaces with what Weft wrote about them.
func (n node) interfaces(ctx context.Context) (map[string]map[string]string, error) {
	out, err := n.run(ctx, "ovs-vsctl", "--format=json", "--columns=name,external_ids", "list", "Interface")
	if err != nil {
		return nil, err
	}
	return dump.Interfaces(out)
}

// The external_ids by which Weft remembers whose a port is.
const (
	idPod = "weft.pod"
	idIPs = "weft.ips"
)

// portOf names the switch port of a pod on this node.
func (n node) portOf(ctx context.Context, p *pod) (string, error) {
	interfaces, err := n.interfaces(ctx)
	if err != nil {
		return "", err
	}
	for name, ids := range interfaces {
		if ids[idPod] == env.namespace+"/"+p.name {
			return name, nil
		}
	}
	return "", fmt.Errorf("no port on %s has %s=%s/%s", n.name, idPod, env.namespace, p.name)
}

// inventory lists everything on a node that comes and goes with pods, one line each: switch ports, links, network
// namespaces, addresses and flows.
func (n node) inventory(ctx context.Context) ([]string, error) {
	var lines []string
	for _, source := range []struct {
		kind string
		argv []string
	}{
		{"switch port", []string{"ovs-vsctl", "list-ports", bridge}},
		{"link", []string{"sh", "-c", "ls /sys/class/net"}},
		{"network namespace", []string{"sh", "-c", "ls /run/netns"}},
	} {
		out, err := n.run(ctx, source.argv...)
		if err != nil {
			return nil, err
		}
		for _, name := range strings.Fields(out) {
			lines = append(lines, source.kind+" "+name)
		}
	}
	interfaces, err := n.interfaces(ctx)
	if err != nil {
		return nil, err
	}
	for name, ids := range interfaces {
		for key, value := range ids {
			lines = append(lines, fmt.Sprintf("external_ids of %s: %s=%s", name, key, value))
		}
	}
	flows, err := n.flowIdentities(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range flows {
		lines = append(lines, "flow "+f)
	}
	return lines, nil
}
