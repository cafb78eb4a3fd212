package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/bench/result"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/podns"
)

// startWeft brings Weft up as a lab, with a build of the agent.
func (o options) startWeft(ctx context.Context, system, name, agent string) (n *network, err error) {
	dir, err := os.MkdirTemp("", "weft-bench-lab-")
	if err != nil {
		return nil, err
	}
	weftLab := filepath.Join(o.programs, "weft-lab")
	var open []io.Closer
	down := func(ctx context.Context) error {
		return errors.Join(closeAll(open), command(ctx, "", weftLab, "down", "--ignore-not-found", "--name="+name),
			os.RemoveAll(dir))
	}
	n = &network{system: system, down: down}
	defer func() {
		if err != nil {
			err = errors.Join(err, down(context.WithoutCancel(ctx)))
		}
	}()
	file := filepath.Join(dir, "f.yaml")
	if err := os.WriteFile(file, []byte(manifests(o.Policies)), 0o600); err != nil {
		return nil, err
	}
	if err := command(ctx, "", weftLab, "up", "--name="+name, "--nodes=2", "--datapath="+o.Datapath, "--tunnel="+o.Tunnel,
		"--ip-family=dual", "--agent="+agent, "-f", file); err != nil {
		return nil, err
	}
	s, err := lab.ReadStatus(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, node := range s.Nodes {
		n.switches = append(n.switches, switchNode{node.Sandbox, model.BridgeName})
	}
	pods := map[string]*pod{}
	for _, status := range s.Pods {
		ns, err := podns.Open(status.NetNS)
		if err != nil {
			return nil, err
		}
		open = append(open, ns)
		p, closers, err := newPod(ns, status.IPs)
		if err != nil {
			return nil, err
		}
		open = append(open, closers...)
		pods[status.Name] = p
	}
	var service []netip.Addr
	for _, text := range s.Services[0].IPs {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		service = append(service, addr)
	}
	client, near, far := pods["client"], pods["near"], pods["far"]
	n.paths = []path{
		{name: result.SameNode, from: client, to: near, address: near.addrs, back: true},
		{name: result.AcrossNodes, from: client, to: far, address: far.addrs, back: true},
		{name: result.Service, from: client, to: far, address: service},
		{name: result.Policies, from: pods["isolated"], to: pods["walled"], address: pods["walled"].addrs, back: true},
	}
	return n, nil
}

// manifests are the pods, a Service and policies about two more pods.
func manifests(policies int) string {
	var text strings.Builder
	for _, pod := range []struct{ namespace, name, node string }{
		{"open", "client", "node1"}, {"open", "near", "node1"}, {"open", "far", "node2"}, {"closed", "isolated", "node1"},
		{"closed", "walled", "node2"},
	} {
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: %s, name: %s, labels: {app: %[2]s}}\n"+
			"spec: {nodeName: %[3]s, containers: [{name: c, ports: [{containerPort: 9}]}]}\n", pod.namespace, pod.name, pod.node)
	}
	var ports []string
	for _, port := range []int{echoPort, sinkPort} {
		for _, proto := range []string{"TCP", "UDP"} {
			ports = append(ports, fmt.Sprintf("{name: %s-%d, port: %[2]d, protocol: %[3]s}", strings.ToLower(proto), port,
				proto))
		}
	}
	fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Service\nmetadata: {namespace: open, name: far}\n"+
		"spec: {ipFamilyPolicy: RequireDualStack, selector: {app: far}, ports: [%s]}\n", strings.Join(ports, ", "))
	for i := range policies {
		// Of peers, of namespaces, of ranges of ports, and of addresses; the last one allows the traffic.
		peer, port := fmt.Sprintf("{podSelector: {matchLabels: {friend: f%d}}}", i), fmt.Sprintf("{port: %d}", 20000+i)
		switch {
		case i == policies-1:
			peer = "{podSelector: {}}"
			port = fmt.Sprintf("{port: %d, endPort: %d}, {port: %[1]d, endPort: %[2]d, protocol: UDP}", echoPort, sinkPort)
		case i%4 == 1:
			port = fmt.Sprintf("{port: %d, endPort: %d}", 21000+10*i, 21005+10*i)
		case i%4 == 2:
			peer = fmt.Sprintf("{ipBlock: {cidr: 172.16.%d.0/24, except: [172.16.%[1]d.8/29]}}", i%256)
		case i%4 == 3:
			peer, port = fmt.Sprintf("{namespaceSelector: {matchLabels: {team: t%d}}}", i), "{protocol: TCP}"
		}
		fmt.Fprintf(&text, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"+
			"metadata: {namespace: closed, name: p%d}\nspec: {podSelector: {}, policyTypes: [Ingress, Egress], "+
			"ingress: [{from: [%[2]s], ports: [%[3]s]}], "+
			"egress: [{to: [%[2]s], ports: [%[3]s]}]}\n", i, peer, port)
	}
	return text.String()
}

// command runs a command in a directory.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Dir, cmd.Stderr = dir, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return nil
}
