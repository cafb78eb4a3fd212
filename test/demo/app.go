package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

//go:embed app.yaml
var manifest string

// What app.yaml deploys.
const (
	namespace = "demo"
	webPods   = 3
	webPort   = "8080"
	client    = "client"
)

// The limits of waiting, on a busy machine.
const (
	readyTimeout = 2 * time.Minute
	pollInterval = 250 * time.Millisecond
)

// app is the running application: the client, the web pods, and one of those on another node than the client.
type app struct {
	client corev1.Pod
	web    []corev1.Pod
	remote corev1.Pod
}

// deploy applies the manifest and waits until every pod is ready.
func (t *tour) deploy(ctx context.Context) (app, error) {
	begun := time.Now()
	t.out.command("kubectl apply -f test/demo/app.yaml")
	if _, err := t.kube.run(ctx, manifest, "apply", "-f", "-"); err != nil {
		return app{}, err
	}
	var a app
	err := testenv.Poll(ctx, readyTimeout, func(ctx context.Context) error {
		var pods corev1.PodList
		if err := t.kube.get(ctx, &pods, "-n", namespace, "get", "pods", "-o", "json"); err != nil {
			return err
		}
		var err error
		if a, err = find(pods.Items); err != nil {
			t.out.waiting(err.Error())
		}
		return err
	})
	if err != nil {
		return app{}, fmt.Errorf("the application does not start: %w\n%s", err, t.diagnose(context.WithoutCancel(ctx)))
	}
	t.out.done(fmt.Sprintf("%d web pods and a client are ready (%.1fs)", len(a.web), time.Since(begun).Seconds()))
	return a, nil
}

// find sorts the pods of the application, or says what is missing.
func find(pods []corev1.Pod) (app, error) {
	var a app
	ready := 0
	waits := ""
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		if isReady(p) {
			ready++
		} else if why := waitsFor(p); why != "" {
			waits = fmt.Sprintf(", %s: %s", p.Name, why)
		}
		if p.Name == client {
			a.client = p
		} else {
			a.web = append(a.web, p)
		}
	}
	if ready < webPods+1 || len(a.web) != webPods || a.client.Name == "" {
		return app{}, fmt.Errorf("%d of %d pods ready%s", ready, webPods+1, waits)
	}
	for _, p := range a.web {
		if p.Spec.NodeName != a.client.Spec.NodeName {
			a.remote = p
			return a, nil
		}
	}
	return app{}, errors.New("every web pod is on the client's node; the demo needs a cluster of two nodes or more")
}

func isReady(p corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// waitsFor says why a pod is not ready, as far as Kubernetes knows.
func waitsFor(p corev1.Pod) string {
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Waiting != nil {
			return c.State.Waiting.Reason
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue {
			return c.Message
		}
	}
	return string(p.Status.Phase)
}

// diagnose gathers what a person would look at first.
func (t *tour) diagnose(ctx context.Context) string {
	var b strings.Builder
	for _, args := range [][]string{
		{"get", "nodes", "-o", "wide"},
		{"-n", namespace, "get", "pods", "-o", "wide"},
		{"-n", namespace, "get", "events", "--field-selector=type=Warning"},
		{"-n", agentNamespace, "get", "pods", "-o", "wide"},
	} {
		out, err := t.kube.run(ctx, "", args...)
		if err != nil {
			out = err.Error()
		}
		fmt.Fprintf(&b, "%s\n%s\n", typed(args), out)
	}
	return b.String()
}
