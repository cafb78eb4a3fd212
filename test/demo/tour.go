package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/test/cluster/state"
)

const agentNamespace = "weft-system"

// tour is one visit.
type tour struct {
	kube   kubectl
	out    *printer
	record state.Cluster
	agents map[string]string // the agent's pod, by node
}

func (t *tour) run(ctx context.Context) error {
	if len(t.record.Nodes) < 2 {
		return errors.New("the tour goes from node to node: it needs a cluster of two nodes or more (`make demo` starts one)")
	}
	if err := t.findAgents(ctx); err != nil {
		return err
	}
	t.out.chapter("An application")
	a, err := t.deploy(ctx)
	if err != nil {
		return err
	}
	for _, chapter := range []func(context.Context, app) error{t.where, t.traffic, t.status, t.flows, t.openVSwitch} {
		if err := chapter(ctx, a); err != nil {
			return err
		}
	}
	t.next(a)
	return nil
}

// findAgents learns which agent runs on which node.
func (t *tour) findAgents(ctx context.Context) error {
	var pods corev1.PodList
	if err := t.kube.get(ctx, &pods, "-n", agentNamespace, "get", "pods", "-l", "app.kubernetes.io/name=weft-agent", "-o",
		"json"); err != nil {
		return err
	}
	t.agents = map[string]string{}
	for _, p := range pods.Items {
		if isReady(p) {
			t.agents[p.Spec.NodeName] = p.Name
		}
	}
	for _, n := range t.record.Nodes {
		if t.agents[n.Name] == "" {
			return fmt.Errorf("no ready weft-agent on %s; see kubectl -n %s get pods", n.Name, agentNamespace)
		}
	}
	return nil
}

// show runs a command, and prints it and what it answers.
func (t *tour) show(ctx context.Context, args ...string) (string, error) {
	t.out.command(typed(args))
	out, err := t.kube.run(ctx, "", args...)
	if err != nil {
		return "", err
	}
	t.out.result(out)
	return out, nil
}

// onAgent is a command in the agent's container of a node.
func (t *tour) onAgent(node string, command ...string) []string {
	return append([]string{"-n", agentNamespace, "exec", t.agents[node], "--"}, command...)
}

func inClient(command ...string) []string {
	return append([]string{"-n", namespace, "exec", client, "--"}, command...)
}

func (t *tour) where(ctx context.Context, _ app) error {
	t.out.chapter("Nodes, and the pods with their addresses")
	if _, err := t.show(ctx, "get", "nodes", "-o",
		"custom-columns=NAME:.metadata.name,ADDRESS:.status.addresses[0].address,POD CIDRS:.spec.podCIDRs[*]"); err != nil {
		return err
	}
	_, err := t.show(ctx, "-n", namespace, "get", "pods", "-o", "wide")
	return err
}

func (t *tour) traffic(ctx context.Context, a app) error {
	t.out.chapter(fmt.Sprintf("From the client on %s to a web pod on %s", a.client.Spec.NodeName, a.remote.Spec.NodeName))
	if _, err := t.show(ctx, inClient("ping", "-c", "3", a.remote.Status.PodIP)...); err != nil {
		return err
	}
	t.out.gap()
	t.out.say("HTTP to every web pod, which answers with its name:")
	for _, p := range a.web {
		name, err := t.show(ctx, inClient("curl", "-sS", "--max-time", "10", "http://"+net.JoinHostPort(p.Status.PodIP,
			webPort)+"/hostname")...)
		if err != nil {
			return err
		}
		if strings.TrimSpace(name) != p.Name {
			return fmt.Errorf("%s answered for %s, which has the address %s", strings.TrimSpace(name), p.Name, p.Status.PodIP)
		}
	}
	return nil
}

func (t *tour) status(ctx context.Context, a app) error {
	node := a.client.Spec.NodeName
	t.out.chapter("What the agent of " + node + " has made of it")
	_, err := t.show(ctx, t.onAgent(node, "weftctl", "status")...)
	return err
}

// pings is how many packets the tour follows, and settleTimeout how long OVS may take to count them: it does so about
// twice a second.
const (
	pings         = 10
	settleTimeout = 20 * time.Second
)

func (t *tour) flows(ctx context.Context, a app) error {
	here, there := a.client.Spec.NodeName, a.remote.Spec.NodeName
	t.out.chapter(fmt.Sprintf("The flows that %d pings and their answers take, on both nodes", pings))
	before := map[string][]report.Flow{}
	for _, pod := range []corev1.Pod{a.client, a.remote} {
		var err error
		if before[pod.Spec.NodeName], err = t.quiet(ctx, pod); err != nil {
			return err
		}
	}
	ping := inClient("ping", "-q", "-c", fmt.Sprint(pings), "-i", "0.1", a.remote.Status.PodIP)
	if _, err := t.show(ctx, ping...); err != nil {
		return err
	}
	for _, end := range []struct {
		pod  corev1.Pod
		peer string
	}{{a.client, there}, {a.remote, here}} {
		node, owner := end.pod.Spec.NodeName, "pod/"+namespace+"/"+end.pod.Name
		var hits []hit
		err := testenv.Poll(ctx, settleTimeout, func(ctx context.Context) error {
			after, err := t.readFlows(ctx, node)
			if err != nil {
				return err
			}
			// Every ping makes one packet of each direction. What grew less is not on their way.
			hits = grown(before[node], after, pings)
			for _, want := range []struct{ table, owner string }{
				{"Classifier", owner}, {"SpoofGuard", owner}, {"Forwarding", owner}, {"SpoofGuard", "node/" + end.peer}, {
					"Forwarding", "node/" + end.peer},
			} {
				if packetsOf(hits, want.table, want.owner) < pings {
					return fmt.Errorf("%s: the flows of %s in table %s did not count %d packets", node, want.owner, want.table, pings)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		t.out.gap()
		t.out.say(fmt.Sprintf("%s, where %s is:", t.out.paint(terminal.Bold, node), end.pod.Name))
		t.out.result(render(hits))
	}
	return nil
}

// readFlows asks the agent of a node for its flows and their counters.
func (t *tour) readFlows(ctx context.Context, node string) ([]report.Flow, error) {
	var list []report.Flow
	err := t.kube.get(ctx, &list, t.onAgent(node, "weftctl", "flows", "-o", "json")...)
	return list, err
}

// quiet reads the flows of a pod's node when Open vSwitch has counted what the pod did before: two readings of its
// flows a revalidation apart are equal. The node has other traffic, which never ends.
func (t *tour) quiet(ctx context.Context, pod corev1.Pod) ([]report.Flow, error) {
	node, owner := pod.Spec.NodeName, "pod/"+pod.Namespace+"/"+pod.Name
	ofPod := func(list []report.Flow) []report.Flow {
		return slices.DeleteFunc(slices.Clone(list), func(f report.Flow) bool { return f.Owner != owner })
	}
	var last []report.Flow
	var read time.Time
	err := testenv.Poll(ctx, settleTimeout, func(ctx context.Context) error {
		if time.Since(read) < time.Second {
			return errors.New("waiting for the next reading")
		}
		list, err := t.readFlows(ctx, node)
		if err != nil {
			return err
		}
		same := reflect.DeepEqual(ofPod(last), ofPod(list))
		last, read = list, time.Now()
		if !same {
			return fmt.Errorf("%s: packets of %s are still being counted", node, owner)
		}
		return nil
	})
	return last, err
}

func (t *tour) openVSwitch(ctx context.Context, a app) error {
	node := a.client.Spec.NodeName
	t.out.chapter("The same with Open vSwitch's own tools: where " + node + " sends what")
	_, err := t.show(ctx, t.onAgent(node, "ovs-ofctl", "--names", "--no-stats", "-O", "OpenFlow15", "dump-flows", "weft",
		"table=Forwarding")...)
	return err
}

// next says where to go from here.
func (t *tour) next(a app) {
	t.out.chapter("Try it yourself")
	list := func(lines ...string) {
		for _, line := range lines {
			t.out.result(line)
		}
	}
	bin := filepath.Dir(t.record.Kubectl())
	list("export KUBECONFIG="+t.record.Kubeconfig(), "export PATH="+bin+":$PATH")
	t.out.say("More pods, and the flows that exist because of one:")
	list("kubectl -n "+namespace+" scale deployment web --replicas=10",
		typed(t.onAgent(a.client.Spec.NodeName, "weftctl", "flows", namespace+"/"+client)))
	t.out.say("The way from one node to the other's pods, and a shell in a pod:")
	list(typed(t.onAgent(a.client.Spec.NodeName, "weftctl", "flows", "node/"+a.remote.Spec.NodeName)),
		"kubectl -n "+namespace+" exec -it "+client+" -- sh")
	t.out.say("Remove the application, or everything:")
	list("kubectl delete namespace "+namespace, "make cluster-down"+t.makeArguments())
}

// makeArguments names the cluster for make, unless make would find it anyway.
func (t *tour) makeArguments() string {
	var arguments string
	if t.record.Plan.Name != "weft" {
		arguments += " NAME=" + t.record.Plan.Name
	}
	if def, err := filepath.Abs(".cluster"); err != nil || def != t.record.Dir {
		arguments += " DIR=" + t.record.Dir
	}
	return arguments
}
