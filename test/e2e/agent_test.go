//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// status is what the tests read of `weftctl status -o json`.
type status struct {
	Transport  string `json:"transport"`
	TunnelType string `json:"tunnelType"`
	MTU        int    `json:"mtu"`
	Drops      []struct {
		Reason  string `json:"reason"`
		Packets uint64 `json:"packets"`
	} `json:"drops"`
}

// drops are the dropped packets by reason.
func (s status) drops() map[string]uint64 {
	drops := map[string]uint64{}
	for _, d := range s.Drops {
		drops[d.Reason] += d.Packets
	}
	return drops
}

// agent returns the node's agent pod: the youngest, while an old one ends.
func (n node) agent(ctx context.Context) (corev1.Pod, error) {
	list, err := env.client.CoreV1().Pods(weftNamespace).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" +
		n.name})
	if err != nil {
		return corev1.Pod{}, err
	}
	for _, p := range list.Items {
		owner := metav1.GetControllerOf(&p)
		if owner != nil && owner.Kind == "DaemonSet" && p.DeletionTimestamp == nil {
			return p, nil
		}
	}
	return corev1.Pod{}, fmt.Errorf("node %s has no agent pod in %s", n.name, weftNamespace)
}

// weftctl runs weftctl in the node's agent pod.
func (n node) weftctl(ctx context.Context, args ...string) (string, error) {
	agent, err := n.agent(ctx)
	if err != nil {
		return "", err
	}
	return execIn(ctx, agent.Namespace, agent.Name, agent.Spec.Containers[0].Name, nil, append([]string{"weftctl"},
		args...)...)
}

func (n node) status(ctx context.Context) (status, error) {
	out, err := n.weftctl(ctx, "status", "-o", "json")
	if err != nil {
		return status{}, err
	}
	var s status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return status{}, fmt.Errorf("read weftctl status of %s: %w: %s", n.name, err, out)
	}
	return s, nil
}

// agentReady succeeds when the node has an agent other than the one with this UID, and it is Ready.
func (n node) agentReady(ctx context.Context, notUID string) error {
	agent, err := n.agent(ctx)
	if err != nil {
		return err
	}
	if string(agent.UID) == notUID {
		return fmt.Errorf("node %s still has the old agent %s", n.name, agent.Name)
	}
	if !isReady(agent) {
		return fmt.Errorf("agent %s on %s is not Ready: %s", agent.Name, n.name, podProblem(agent))
	}
	return nil
}

// deleteAgent ends the node's agent as `kubectl delete pod` does, and returns its UID.
func (n node) deleteAgent(ctx context.Context) (uid string, err error) {
	agent, err := n.agent(ctx)
	if err != nil {
		return "", err
	}
	if err := env.client.CoreV1().Pods(agent.Namespace).Delete(ctx, agent.Name, metav1.DeleteOptions{}); err != nil {
		return "", fmt.Errorf("delete agent %s: %w", agent.Name, err)
	}
	return string(agent.UID), nil
}
