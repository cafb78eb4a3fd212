// Package kubectl reaches the agents of a cluster by running kubectl, so that a user's contexts, credentials and
// proxies work as with kubectl itself, and weftctl needs no client of the API server. It keeps no state; every call
// runs one process, which ends with the call or with the connection that it returns.
package kubectl

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"
)

const (
	// selector finds the agents' pods, container is theirs; both are in deploy/weft.yaml.
	selector  = "app.kubernetes.io/name=weft-agent"
	container = "weft-agent"
)

// Kubectl is how a cluster is reached.
type Kubectl struct {
	// Context and Kubeconfig are kubectl's flags; empty ones are kubectl's own choice.
	Context, Kubeconfig string
	// Namespace is the agents'.
	Namespace string
}

// Agent is the agent of a node.
type Agent struct {
	Node string
	// Pod is the agent's; empty when the node has none.
	Pod string
	// Image is that of the agent's container.
	Image string
	// Addrs are the node's InternalIPs.
	Addrs []netip.Addr
	// Problem says why the agent cannot be asked, or why it may not answer; empty when it runs.
	Problem string
}

// command is kubectl with its flags.
func (k Kubectl) command(ctx context.Context, args ...string) *exec.Cmd {
	var flags []string
	if k.Context != "" {
		flags = append(flags, "--context="+k.Context)
	}
	if k.Kubeconfig != "" {
		flags = append(flags, "--kubeconfig="+k.Kubeconfig)
	}
	return exec.CommandContext(ctx, "kubectl", append(flags, args...)...)
}

// Run runs kubectl and returns what it wrote.
func (k Kubectl) Run(ctx context.Context, args ...string) ([]byte, error) {
	return k.RunWith(ctx, nil, args...)
}

// RunWith runs kubectl with an input.
func (k Kubectl) RunWith(ctx context.Context, input []byte, args ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	cmd := k.command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &errs
	cmd.WaitDelay = time.Second // a program that kubectl has started may hold its output open
	if err := cmd.Run(); err != nil {
		return nil, failure(args, err, errs.String())
	}
	return out.Bytes(), nil
}

// failure says why kubectl failed, in its own words.
func failure(args []string, err error, said string) error {
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("kubectl is not on the PATH; nodes of a cluster are asked through it")
	}
	return fmt.Errorf("kubectl %s: %s", args[0], cmp.Or(strings.TrimSpace(said), err.Error()))
}

type node struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Status struct {
		Addresses []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

type condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Message string `json:"message"`
}

type pod struct {
	Metadata struct {
		Name              string `json:"name"`
		DeletionTimestamp string `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		NodeName   string `json:"nodeName"`
		Containers []struct {
			Name  string `json:"name"`
			Image string `json:"image"`
		} `json:"containers"`
	} `json:"spec"`
	Status struct {
		Phase             string            `json:"phase"`
		ContainerStatuses []containerStatus `json:"containerStatuses"`
	} `json:"status"`
}

type containerStatus struct {
	Name  string `json:"name"`
	State struct {
		Running    *struct{}   `json:"running"`
		Waiting    *whyNotLive `json:"waiting"`
		Terminated *whyNotLive `json:"terminated"`
	} `json:"state"`
}

type whyNotLive struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

type list[T any] struct {
	Items []T `json:"items"`
}

// get lists objects.
func get[T any](ctx context.Context, k Kubectl, args ...string) ([]T, error) {
	args = append([]string{"get"}, append(args, "--output=json")...)
	out, err := k.Run(ctx, args...)
	if err != nil {
		return nil, err
	}
	var l list[T]
	if err := json.Unmarshal(out, &l); err != nil {
		return nil, fmt.Errorf("read what kubectl get %s says: %w", args[1], err)
	}
	return l.Items, nil
}

// Agents lists the agents of all nodes, or of those that are named, by node. A node without an agent, and one whose
// agent does not run, is in the list with its problem.
func (k Kubectl) Agents(ctx context.Context, wanted []string) ([]Agent, error) {
	nodes, err := get[node](ctx, k, "nodes")
	if err != nil {
		return nil, err
	}
	pods, err := get[pod](ctx, k, "pods", "--namespace="+k.Namespace, "--selector="+selector)
	if err != nil {
		return nil, err
	}
	byNode := map[string]pod{}
	for _, p := range pods {
		if other, ok := byNode[p.Spec.NodeName]; !ok || other.Metadata.DeletionTimestamp != "" {
			byNode[p.Spec.NodeName] = p
		}
	}
	var agents []Agent
	var names []string
	for _, n := range nodes {
		names = append(names, n.Metadata.Name)
		if len(wanted) == 0 || slices.Contains(wanted, n.Metadata.Name) {
			agents = append(agents, agentOf(n, byNode[n.Metadata.Name]))
		}
	}
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			slices.Sort(names)
			return nil, fmt.Errorf("there is no node %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	slices.SortFunc(agents, func(a, b Agent) int { return strings.Compare(a.Node, b.Node) })
	return agents, nil
}

func agentOf(n node, p pod) Agent {
	a := Agent{Node: n.Metadata.Name, Pod: p.Metadata.Name}
	for _, one := range n.Status.Addresses {
		if addr, err := netip.ParseAddr(one.Address); err == nil && one.Type == "InternalIP" {
			a.Addrs = append(a.Addrs, addr.Unmap())
		}
	}
	for _, c := range p.Spec.Containers {
		if c.Name == container {
			a.Image = c.Image
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" && c.Status != "True" {
			a.Problem = "node is not ready: " + c.Message
		}
	}
	switch {
	case a.Problem != "":
	case a.Pod == "":
		a.Problem = "no pod of weft-agent is on this node"
	case p.Status.Phase != "Running":
		a.Problem = fmt.Sprintf("pod %s is %s%s", a.Pod, p.Status.Phase, whyNot(p))
	default:
		if why := whyNot(p); why != "" {
			a.Problem = "pod " + a.Pod + why
		}
	}
	return a
}

// whyNot says why the agent's container does not run; empty when it does.
func whyNot(p pod) string {
	for _, c := range p.Status.ContainerStatuses {
		if c.Name != container {
			continue
		}
		for _, why := range []*whyNotLive{c.State.Waiting, c.State.Terminated} {
			if why != nil {
				return strings.TrimSuffix(fmt.Sprintf(": %s: %s", why.Reason, why.Message), ": ")
			}
		}
	}
	return ""
}

// Names lists objects of a kind as NAMESPACE/NAME, or NAME where they have no namespace.
func (k Kubectl) Names(ctx context.Context, kind string) ([]string, error) {
	out, err := k.Run(ctx, "get", kind, "--all-namespaces", "--no-headers",
		"--output=custom-columns=NAMESPACE:.metadata.namespace,NAME:.metadata.name")
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) == 2 {
			names = append(names, strings.TrimPrefix(fields[0]+"/"+fields[1], "<none>/"))
		}
	}
	return names, nil
}

// NodesOf are the nodes of the pods of a name: in a namespace, or in all for an empty one. A pod without a node yet is
// left out.
func (k Kubectl) NodesOf(ctx context.Context, namespace, name string) ([]string, error) {
	fields := "--field-selector=metadata.name=" + name
	if namespace != "" {
		fields += ",metadata.namespace=" + namespace
	}
	pods, err := get[pod](ctx, k, "pods", "--all-namespaces", fields)
	if err != nil {
		return nil, err
	}
	var nodes []string
	for _, p := range pods {
		if p.Spec.NodeName != "" && !slices.Contains(nodes, p.Spec.NodeName) {
			nodes = append(nodes, p.Spec.NodeName)
		}
	}
	return nodes, nil
}
