package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// onDisk are the directories of a node that are empty at first, whatever the machine has there, and that are kept in
// the state directory instead of memory.
var onDisk = []string{"/etc/cni/net.d", "/opt/cni/bin", "/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet",
	"/var/lib/openvswitch", "/var/log/openvswitch", "/var/log/pods"}

// copyOnWrite are the directories that a node may change for itself.
var copyOnWrite = []string{"/etc", "/opt", "/var/lib", "/var/log"}

// nodeFiles writes the files that a node needs before it starts, and says where it sees them.
func nodeFiles(dir paths, plan state.Plan, index int) (sandbox.Files, error) {
	name := state.NodeName(index)
	files := sandbox.Files{CopyOnWrite: copyOnWrite}
	for _, target := range onDisk {
		source := dir.node(name, "root", target)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return files, fmt.Errorf("prepare node %s: %w", name, err)
		}
		files.Binds = append(files.Binds, sandbox.Bind{Source: source, Target: target})
	}
	write := func(text string, parts ...string) (string, error) {
		path := dir.node(name, parts...)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		return path, os.WriteFile(path, []byte(text), 0o644)
	}
	for key, value := range sysctls {
		source, err := write(value+"\n", "sysctl", strings.ReplaceAll(key, "/", "."))
		if err != nil {
			return files, fmt.Errorf("prepare node %s: %w", name, err)
		}
		files.Binds = append(files.Binds, sandbox.Bind{Source: source, Target: "/proc/sys/" + key})
	}
	hosts, err := write(hostsFile(plan, index), "hosts")
	if err != nil {
		return files, fmt.Errorf("prepare node %s: %w", name, err)
	}
	files.Binds = append(files.Binds, sandbox.Bind{Source: hosts, Target: "/etc/hosts"})
	if _, err := write(fmt.Sprintf("nameserver %s\n", plan.Outside()[0].Addr()), "resolv.conf"); err != nil {
		return files, fmt.Errorf("prepare node %s: %w", name, err)
	}
	if _, err := write(containerdConfig(), "containerd.toml"); err != nil {
		return files, fmt.Errorf("prepare node %s: %w", name, err)
	}
	return files, nil
}

// hostsFile is a node's /etc/hosts, of which kubelet makes those of its host-network pods.
func hostsFile(plan state.Plan, index int) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, addr := range state.Addrs(plan.Node(index)) {
		fmt.Fprintf(&b, "%s %s\n", addr, state.NodeName(index))
	}
	return b.String()
}

// startNode starts one node up to its container runtime: namespaces, Open vSwitch unless a DaemonSet will, the node's
// addresses and containerd.
func startNode(ctx context.Context, c state.Cluster, index int, switches openVSwitch) (state.Node, error) {
	dir, plan := paths(c.Dir), c.Plan
	n := state.Node{Name: state.NodeName(index), Addrs: state.Addrs(plan.Node(index)),
		Processes: map[string]sandbox.Process{}}
	files, err := nodeFiles(dir, plan, index)
	if err != nil {
		return n, err
	}
	if n.Sandbox, err = sandbox.Group(plan.Name).Start(n.Name, files); err != nil {
		return n, err
	}
	if err := c.Datapath.Attach(ctx, c.Underlay, n.Sandbox); err != nil {
		return n, err
	}
	if err := makeRouter(ctx, n.Sandbox); err != nil {
		return n, err
	}
	if err := switches.connect(ctx, c, n, plan.Uplink(index)); err != nil {
		return n, err
	}
	return n, startContainerd(ctx, dir, n)
}

// makeRouter makes a node forward packets, as every Kubernetes node does.
func makeRouter(ctx context.Context, n sandbox.Node) error {
	const script = `
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding`
	_, err := n.Run(ctx, "sh", "-ec", script)
	return err
}

func startContainerd(ctx context.Context, dir paths, n state.Node) error {
	d := sandbox.Daemon{Args: []string{"containerd", "--config=" + dir.node(n.Name, "containerd.toml")}}
	return startOnNode(ctx, dir, n, d, func(ctx context.Context) error {
		_, err := n.Sandbox.Run(ctx, "ctr", "--connect-timeout=2s", "version")
		return err
	})
}

// startOnNode starts a daemon on a node, records it and waits until it is ready. Its log is among the cluster's.
func startOnNode(ctx context.Context, dir paths, n state.Node, d sandbox.Daemon,
	ready func(context.Context) error) error {
	name := filepath.Base(d.Args[0])
	d.Log = dir.log(n.Name + "-" + name)
	running, err := n.Sandbox.StartDaemon(d)
	if err != nil {
		return err
	}
	n.Processes[name] = running.Process
	return waitReady(ctx, running, n.Name+"'s "+name, d.Log, ready)
}

func kubeletArgs(dir paths, n state.Node, index int) []string {
	return []string{
		"--config=" + dir.node(n.Name, "kubelet.yaml"),
		"--kubeconfig=" + dir.kubeconfig(n.Name),
		"--node-ip=" + list(n.Addrs),
		"--node-labels=" + fmt.Sprintf("topology.kubernetes.io/region=lab,topology.kubernetes.io/zone=%s", zone(index)),
	}
}

// zone spreads the nodes over two zones.
func zone(index int) string { return []string{"zone-a", "zone-b"}[index%2] }

// startKubelet starts a node's kubelet and returns when the node is registered.
func startKubelet(ctx context.Context, c state.Cluster, n state.Node, index int) error {
	dir := paths(c.Dir)
	if err := writeYAML(dir.node(n.Name, "kubelet.yaml"), kubeletConfig(dir, c.Plan, n)); err != nil {
		return err
	}
	d := sandbox.Daemon{Args: append([]string{filepath.Join(c.Components, "kubelet")}, kubeletArgs(dir, n, index)...)}
	return startOnNode(ctx, dir, n, d, func(ctx context.Context) error {
		// Only an administrator may give a node a role; the label exists as soon as the node does.
		_, err := kubectl(ctx, c, "label", "--overwrite", "node", n.Name, "node-role.kubernetes.io/worker=")
		return err
	})
}

// startOutside starts the host beyond the nodes. It has no route but to its own network: what it answers must come from
// a node's address.
func startOutside(ctx context.Context, c state.Cluster) (state.Outside, error) {
	out := state.Outside{Addrs: state.Addrs(c.Plan.Outside()), Beyond: c.Plan.Beyond()}
	var err error
	if out.Sandbox, err = startMember(ctx, c, state.OutsideName, c.Plan.Outside()); err != nil {
		return out, err
	}
	var beyond []netip.Prefix
	for _, addr := range out.Beyond {
		beyond = append(beyond, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return out, out.Sandbox.Configure("lo", beyond, nil)
}
