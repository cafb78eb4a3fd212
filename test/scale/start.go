package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/pkg/report/api"
)

// localPod is a pod of this node, as the scheduler leaves it.
func localPod(namespace, name string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec:       corev1.PodSpec{NodeName: nodeName, Containers: []corev1.Container{container()}},
		Status:     corev1.PodStatus{Phase: corev1.PodPending},
	}
}

func container() corev1.Container {
	return corev1.Container{Name: "main", Image: "registry.example/app:v1.2.3", Ports: []corev1.ContainerPort{
		{Name: "http", ContainerPort: endpointPort, Protocol: corev1.ProtocolTCP}}}
}

// coldStart starts the agent on an empty switch.
func (n *node) coldStart(ctx context.Context, r *report, aim time.Duration, aimed float64) error {
	vswitchd, err := n.vswitchd()
	if err != nil {
		return err
	}
	before, err := processors(vswitchd, os.Getpid())
	if err != nil {
		return err
	}
	took, err := n.start(ctx)
	if err != nil {
		return err
	}
	after, err := processors(vswitchd, os.Getpid(), n.runs.cmd.Process.Pid)
	if err != nil {
		return err
	}
	r.time("cold start: from the agent's start until all is in the switch and the agent ready", took, aim)
	r.time("processor time of the agent until then", after[2], 0)
	r.time("processor time of ovs-vswitchd until then", after[0]-before[0], 0)
	r.time("processor time of the API server until then", after[1]-before[1], 0)
	select { // it gives back what its start needed
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * time.Second):
	}
	m, err := n.runs.memory()
	if err != nil {
		return err
	}
	r.number("agent's memory 2 s later (VmRSS)", m.now, "MB", aimed)
	r.number("of that, pages of the program's file (RssFile)", m.file, "MB", 0)
	r.number("agent's memory at most until then (VmHWM)", m.most, "MB", 0)
	// It makes the agent read the whole switch, so it is not for polling.
	s, err := api.Client{Socket: filepath.Join(n.dir, "agent.sock")}.Status(ctx)
	if err != nil {
		return err
	}
	if s.Flows.Programmed != s.Flows.Desired || len(s.Flows.Quarantined) > 0 || len(s.Flows.Conflicts) > 0 {
		return fmt.Errorf("not everything is in the switch: revision %d of %d, %d owners are quarantined, %d keys conflict",
			s.Flows.Programmed, s.Flows.Desired, len(s.Flows.Quarantined), len(s.Flows.Conflicts))
	}
	r.number("flows", float64(s.Flows.Flows), "", 0)
	r.number("groups", float64(s.Flows.Groups), "", 0)
	r.number("bundles", float64(s.Flows.Bundles), "", 0)
	return nil
}

// restart restarts the agent while everything is in the switch: it must not change anything there. The memory is that
// of a while of running before it.
func (n *node) restart(ctx context.Context, r *report, aimed float64) error {
	m, err := n.runs.memory()
	if err != nil {
		return err
	}
	r.number("agent's memory after the changes (VmRSS)", m.now, "MB", aimed)
	r.number("agent's memory at most (VmHWM)", m.most, "MB", 0)
	c, err := n.watch(ctx)
	if err != nil {
		return err
	}
	defer c.stop()
	c.count(ctx, settled)
	if err := n.halt(); err != nil {
		return err
	}
	c.reset()
	took, err := n.start(ctx)
	if err != nil {
		return err
	}
	used, err := processor(n.runs.cmd.Process.Pid)
	if err != nil {
		return err
	}
	flows, groups := c.count(ctx, time.Second)
	r.time("restart with everything in place, until the agent is ready", took, 0)
	r.time("processor time of the agent until then", used, 0)
	r.number("flows and groups that the restart changed in the switch", float64(flows+groups), "", 0)
	if flows+groups > 0 {
		return fmt.Errorf("a restart changed %d flows and %d groups, want none", flows, groups)
	}
	return nil
}

// vswitchd is the process id of ovs-vswitchd.
func (n *node) vswitchd() (int, error) {
	pids := n.ovs.PIDs()
	if len(pids) != 2 {
		return 0, fmt.Errorf("count the processes of Open vSwitch: %d, want 2", len(pids))
	}
	return pids[1], nil
}

// programmed waits until the switch has as many Services as there are, before few more are measured.
func (n *node) programmed(ctx context.Context, services int) error {
	for begun := time.Now(); ; {
		s, err := api.Client{Socket: filepath.Join(n.dir, "agent.sock")}.Status(ctx)
		switch {
		case err == nil && s.Flows.Groups >= services && s.Flows.Programmed == s.Flows.Desired:
			return nil
		case time.Since(begun) > deadline:
			return errors.Join(err, fmt.Errorf("the switch has %d groups of %d Services after %s", s.Flows.Groups, services,
				deadline))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
