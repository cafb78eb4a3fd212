package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab/podns"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// Status is how a lab is.
type Status struct {
	Name  string    `json:"name"`
	Up    bool      `json:"up"`
	Since time.Time `json:"since"`
	// Manifests are the paths of files and directories, Kustomizations those of directories that are built.
	Manifests      []string `json:"manifests"`
	Kustomizations []string `json:"kustomizations,omitempty"`
	// Settings are the agents' that were asked for.
	Settings []string            `json:"settings,omitempty"`
	Tunnel   model.Encapsulation `json:"tunnelType"`
	Datapath config.Datapath     `json:"datapath"`
	Family   Family              `json:"ipFamily"`
	// Problem says why the manifests as they are now are not what stands.
	Problem string       `json:"problem,omitempty"`
	Nodes   []NodeStatus `json:"nodes"`
	// Outside is a host on the underlay that is not a node.
	Outside OutsideStatus `json:"outside"`
	// Router is between the segments of the underlay.
	Router   sandbox.Node    `json:"router"`
	Pods     []PodStatus     `json:"pods"`
	Services []ServiceStatus `json:"services"`
	// Warnings are what the manifests ask for and what has no effect, with file and line.
	Warnings []string `json:"warnings,omitempty"`
	// Ignored are kinds of the manifests that mean nothing to a network.
	Ignored []string `json:"ignored,omitempty"`
	// Events are what the agents reported to Kubernetes.
	Events []string `json:"events,omitempty"`
}

// NodeStatus is how a node is.
type NodeStatus struct {
	Name     string         `json:"name"`
	Addrs    []netip.Addr   `json:"addresses"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	Sandbox  sandbox.Node   `json:"sandbox"`
	// Files is where the machine sees the node's own files.
	Files string `json:"files"`
	Flows int    `json:"flows"`
	// Agent is the process of the node's agent. It is started again when it ends.
	Agent sandbox.Process `json:"agent"`
	// Problem says what is wrong with its agent.
	Problem string `json:"problem,omitempty"`
}

// OutsideStatus is the host outside.
type OutsideStatus struct {
	Addrs   []netip.Addr `json:"addresses"`
	Sandbox sandbox.Node `json:"sandbox"`
}

// PodStatus is how a pod is.
type PodStatus struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Node      string            `json:"node"`
	IPs       []netip.Addr      `json:"ips"`
	Labels    map[string]string `json:"labels"`
	Ports     []podns.Port      `json:"ports"`
	// Missing are ports of a protocol that this machine's kernel does not have.
	Missing []podns.Port `json:"missingPorts,omitempty"`
	// NetNS is the file of its network namespace.
	NetNS string `json:"netns"`
}

// ServiceStatus is a Service with what was derived for it.
type ServiceStatus struct {
	Namespace string             `json:"namespace"`
	Name      string             `json:"name"`
	Type      corev1.ServiceType `json:"type"`
	IPs       []string           `json:"ips"`
	// External are LoadBalancer and external addresses.
	External []netip.Addr `json:"external,omitempty"`
	// Ports are like kubectl's: port:node port/protocol.
	Ports     []string `json:"ports"`
	Endpoints int      `json:"endpoints"`
}

// ReadStatus asks the daemon of a lab.
func ReadStatus(ctx context.Context, name string) (Status, error) {
	var s Status
	if err := ask(ctx, name, http.MethodGet, "/v1/status", &s); err != nil {
		return Status{}, err
	}
	return s, nil
}

// ask calls a lab's daemon.
func ask(ctx context.Context, name, method, path string, v any) error {
	group, err := groupOf(name)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("the lab %q answers root only", name)
	}
	err = getJSON(ctx, client(directory(name)), method, "http://lab"+path, v)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err,
		syscall.ECONNRESET), errors.Is(err, io.EOF): // perhaps just now
		if left, leftErr := group.Leftovers(); leftErr == nil && len(left) > 0 {
			return fmt.Errorf("the lab %q has no daemon: it crashed, or is just coming up or going down; `weft-lab down` "+
				"removes what is left", name)
		}
		return fmt.Errorf("%w %q%s", ErrNotFound, name, others())
	case err != nil:
		return fmt.Errorf("lab %q: %w", name, err)
	}
	return nil
}

// others names the labs that there are, for a person who forgot --name.
func others() string {
	entries, err := os.ReadDir(Root)
	if err != nil || len(entries) == 0 {
		return "; `weft-lab up -f FILE` brings one up"
	}
	var names []string
	for _, e := range entries {
		names = append(names, filepath.Base(e.Name()))
	}
	return fmt.Sprintf("; there are %q (--name)", names)
}

func (l *Lab) status(ctx context.Context) Status {
	s := Status{Name: l.opt.Name, Up: l.progress.done(), Since: l.started, Manifests: l.opt.Manifests,
		Kustomizations: l.opt.Kustomizations, Settings: l.opt.Settings, Tunnel: l.opt.Tunnel, Datapath: l.opt.Datapath,
		Family: l.opt.Family}
	if !s.Up {
		return s
	}
	for _, n := range l.nodes {
		s.Nodes = append(s.Nodes, n.status(ctx))
	}
	for _, p := range l.sortedPods() {
		s.Pods = append(s.Pods, l.podStatus(p))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Problem, s.Ignored = l.problem, l.set.Ignored
	for _, w := range l.set.Warnings {
		s.Warnings = append(s.Warnings, w.Error())
	}
	if len(l.underlay) > 0 {
		s.Router = l.underlay[0].Node
	}
	s.Outside = OutsideStatus{Addrs: addrsOf(l.opt.Family.member(outside)), Sandbox: l.outside}
	pods := l.sortedPodsLocked()
	for _, service := range l.services() {
		s.Services = append(s.Services, l.serviceStatus(service, pods))
	}
	for _, e := range l.api.Events() {
		s.Events = append(s.Events, fmt.Sprintf("%s %s/%s: %s: %s", e.Type, e.InvolvedObject.Kind, e.InvolvedObject.Name,
			e.Reason, e.Message))
	}
	return s
}

func (n *node) status(ctx context.Context) NodeStatus {
	s := NodeStatus{Name: n.name, Addrs: addrsOf(n.underlay), PodCIDRs: n.podCIDRs, Sandbox: n.sandbox, Files: n.path("")}
	r, err := n.report(ctx)
	switch {
	case err != nil:
		s.Problem = err.Error()
	case !r.Ready:
		s.Problem = "not ready: " + r.NotReady
	case len(r.Problems) > 0:
		s.Problem = r.Problems[0]
	}
	s.Flows = r.Flows.Flows
	n.mu.Lock()
	defer n.mu.Unlock()
	s.Agent = n.agent.running.Process
	return s
}

func (l *Lab) podStatus(p *pod) PodStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return PodStatus{Namespace: p.object.Namespace, Name: p.object.Name, Node: p.node.name, IPs: p.ips,
		Labels: p.object.Labels,
		Ports:  portsOf(p.object), Missing: p.missing, NetNS: p.ns.Path()}
}

func (l *Lab) serviceStatus(service *corev1.Service, pods []*pod) ServiceStatus {
	s := ServiceStatus{Namespace: service.Namespace, Name: service.Name, Type: service.Spec.Type,
		IPs: service.Spec.ClusterIPs, External: externalAddrs(service)}
	for _, port := range service.Spec.Ports {
		number := fmt.Sprint(port.Port)
		if port.NodePort != 0 {
			number += fmt.Sprintf(":%d", port.NodePort)
		}
		s.Ports = append(s.Ports, fmt.Sprintf("%s/%s", number, protocolOf(port.Protocol)))
	}
	for _, slice := range l.slicesOf(service, pods) {
		s.Endpoints += len(slice.Endpoints)
	}
	return s
}

// Find returns the pod of a lab with this name, with or without its namespace.
func (s Status) Find(name string) (PodStatus, error) {
	var found []PodStatus
	for _, p := range s.Pods {
		if p.Name == name || p.Namespace+"/"+p.Name == name {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return PodStatus{}, fmt.Errorf("lab %q has no pod %q; `weft-lab status` lists them", s.Name, name)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, p := range found {
		names = append(names, p.Namespace+"/"+p.Name)
	}
	slices.Sort(names)
	return PodStatus{}, fmt.Errorf("lab %q has several pods %q: say which of %v", s.Name, name, names)
}
