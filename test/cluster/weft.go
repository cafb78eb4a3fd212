package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/manifest"
	"github.com/weft-cni/weft/test/cluster/state"
)

const (
	// deployTimeout bounds how long Weft may take to make all nodes ready.
	deployTimeout = 4 * time.Minute
	// maxRestarts is how often a container may end before that counts as its answer.
	maxRestarts = 3
)

// deployWeft installs Weft the way a user does: settings in the ConfigMap, then `kubectl apply`.
func deployWeft(ctx context.Context, p *progress, c state.Cluster, o upOptions) error {
	rendered := paths(c.Dir).join("weft.yaml")
	err := p.step("kubectl apply -f "+rendered, func(func(string)) error {
		text, err := os.ReadFile(o.install)
		if err != nil {
			return fmt.Errorf("read Weft's manifest: %w", err)
		}
		settings := map[string]string{"tunnelType": o.tunnel, "datapath": string(o.datapath), "apiServer": c.APIServer}
		maps.Copy(settings, o.settings)
		text, err = manifest.Configure(text, settings)
		if err != nil {
			return err
		}
		if err := os.WriteFile(rendered, text, 0o644); err != nil {
			return fmt.Errorf("write Weft's manifest: %w", err)
		}
		_, err = kubectl(ctx, c, "apply", "-f", rendered)
		return err
	})
	if err != nil {
		return err
	}
	return p.step("Weft on all nodes", func(detail func(string)) error {
		err := testenv.Poll(ctx, deployTimeout, func(ctx context.Context) error {
			text, err := weftProgress(ctx, c)
			if err == nil || errors.Is(err, errNotReady) {
				detail(text)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("wait for Weft: %w\n%s", err, diagnose(context.WithoutCancel(ctx), c, manifest.Namespace))
		}
		return nil
	})
}

var errNotReady = errors.New("not ready yet")

// weftProgress says how far the rollout is; the error wraps errNotReady until it is complete.
func weftProgress(ctx context.Context, c state.Cluster) (string, error) {
	out, err := kubectl(ctx, c, "--namespace="+manifest.Namespace, "get", "daemonsets", "--output=json")
	if err != nil {
		return "", err
	}
	var sets struct {
		Items []struct {
			Status struct{ DesiredNumberScheduled, NumberReady int }
		}
	}
	if err := json.Unmarshal([]byte(out), &sets); err != nil {
		return "", fmt.Errorf("read the DaemonSets of %s: %w", manifest.Namespace, err)
	}
	desired, ready := 0, 0
	for _, item := range sets.Items {
		desired += item.Status.DesiredNumberScheduled
		ready += item.Status.NumberReady
	}
	nodes, err := readyNodes(ctx, c)
	if err != nil {
		return "", err
	}
	up := 0
	for _, isReady := range nodes {
		if isReady {
			up++
		}
	}
	text := fmt.Sprintf("%s ready, %s ready", terminal.CountOf(ready, desired, "agent"),
		terminal.CountOf(up, len(c.Nodes), "node"))
	if desired < len(c.Nodes) || ready < desired || up < len(c.Nodes) {
		return text, errors.Join(fmt.Errorf("%s: %w", text, errNotReady), crashing(ctx, c))
	}
	return text, nil
}

// crashing returns testenv.ErrHopeless, and which pod it is, when a container of Weft's keeps ending or has no image.
func crashing(ctx context.Context, c state.Cluster) error {
	out, err := kubectl(ctx, c, "--namespace="+manifest.Namespace, "get", "pods", "--output=json")
	if err != nil {
		return err
	}
	return findCrash([]byte(out))
}

func findCrash(podList []byte) error {
	type containerStatus struct {
		Name         string
		Image        string
		RestartCount int
		State        struct{ Waiting struct{ Reason string } }
	}
	var pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct{ InitContainerStatuses, ContainerStatuses []containerStatus }
		}
	}
	if err := json.Unmarshal(podList, &pods); err != nil {
		return fmt.Errorf("read the pods of %s: %w", manifest.Namespace, err)
	}
	for _, pod := range pods.Items {
		for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
			switch reason := status.State.Waiting.Reason; {
			case reason == "CrashLoopBackOff" && status.RestartCount >= maxRestarts:
				return fmt.Errorf("container %s of pod %s has ended %d times: %w", status.Name, pod.Metadata.Name,
					status.RestartCount, testenv.ErrHopeless)
			case reason == "ImagePullBackOff":
				return fmt.Errorf("pod %s needs image %s, which its node does not have, and there is no registry (give the tar "+
					"that has it with --image): %w",
					pod.Metadata.Name, status.Image, testenv.ErrHopeless)
			}
		}
	}
	return nil
}

// readyNodes returns which registered nodes are Ready.
func readyNodes(ctx context.Context, c state.Cluster) (map[string]bool, error) {
	out, err := kubectl(ctx, c, "get", "nodes", "--output=json")
	if err != nil {
		return nil, err
	}
	var nodes struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &nodes); err != nil {
		return nil, fmt.Errorf("read the nodes: %w", err)
	}
	ready := map[string]bool{}
	for _, n := range nodes.Items {
		ready[n.Metadata.Name] = false
		for _, condition := range n.Status.Conditions {
			if condition.Type == "Ready" {
				ready[n.Metadata.Name] = condition.Status == "True"
			}
		}
	}
	return ready, nil
}

// diagnose gathers what a person would look at first in a namespace.
func diagnose(ctx context.Context, c state.Cluster, namespace string) string {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var b strings.Builder
	show := func(title string, args ...string) {
		out, err := kubectl(ctx, c, args...)
		if err != nil {
			out += err.Error()
		}
		fmt.Fprintf(&b, "%s (kubectl %s):\n    %s\n", title, strings.Join(args, " "),
			strings.ReplaceAll(strings.TrimSpace(out), "\n", "\n    "))
	}
	namespace = "--namespace=" + namespace
	show("Nodes", "get", "nodes", "--output=wide")
	show("Pods", namespace, "get", "pods", "--output=wide")
	show("Warnings", namespace, "get", "events", "--field-selector=type=Warning", "--sort-by=.lastTimestamp")
	pods, err := kubectl(ctx, c, namespace, "get", "pods", "--output=name")
	if err != nil {
		return b.String()
	}
	for pod := range strings.FieldsSeq(pods) {
		show("Log", namespace, "logs", "--all-containers", "--prefix", "--ignore-errors", "--tail=30", pod)
	}
	return b.String()
}
