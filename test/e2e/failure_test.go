//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// dumped holds the names of the tests that will dump already.
var dumped sync.Map

// dumpOnFailure writes down at the end of a failed test what a person would look for first: pods, events, and of every
// node the agent's log, its view, and what the switch holds and counts. It is long, so it is a file among the test's
// artifacts (go help testflag, -artifacts) and hides no reason of a failure.
func dumpOnFailure(t *testing.T) {
	t.Helper()
	if strings.Contains(t.Name(), "/") {
		return // the test that it is part of dumps
	}
	if _, already := dumped.LoadOrStore(t.Name(), true); already {
		return
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		var b strings.Builder
		section := func(title, text string, err error) {
			fmt.Fprintf(&b, "\n==== %s\n%s", title, text)
			if err != nil {
				fmt.Fprintf(&b, "could not be had: %v\n", err)
			}
		}
		text, err := podTable(ctx)
		section("pods", text, err)
		text, err = recentEvents(ctx)
		section("last events", text, err)
		for _, n := range env.nodes {
			text, err = n.agentLog(ctx)
			section("log of the agent on "+n.name, text, err)
			for _, args := range [][]string{{"status"}, {"flows"}} {
				text, err = n.weftctl(ctx, args...)
				section("weftctl "+args[0]+" on "+n.name, text, err)
			}
			for _, verb := range []string{"dump-flows", "dump-groups", "dump-ports"} {
				text, err = n.run(ctx, "ovs-ofctl", "-O", "OpenFlow15", "--names", verb, bridge)
				section(verb+" on "+n.name, text, err)
			}
			for _, verb := range []string{"coverage/show", "dpctl/dump-flows", "dpctl/dump-conntrack"} {
				text, err = n.run(ctx, "ovs-appctl", verb)
				section(verb+" on "+n.name, text, err)
			}
		}
		file := filepath.Join(t.ArtifactDir(), "cluster.txt")
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Errorf("write down what the cluster looks like: %v", err)
		}
		t.Logf("what the cluster looks like is in %s", file)
	})
}

func podTable(ctx context.Context) (string, error) {
	var b strings.Builder
	for _, namespace := range []string{weftNamespace, env.namespace} {
		list, err := env.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return b.String(), err
		}
		for _, p := range list.Items {
			var ips []string
			for _, ip := range p.Status.PodIPs {
				ips = append(ips, ip.IP)
			}
			fmt.Fprintf(&b, "%s/%s on %s, ready=%v, %s, %s\n", p.Namespace, p.Name, p.Spec.NodeName, isReady(p),
				strings.Join(ips, ","), podProblem(p))
		}
	}
	return b.String(), nil
}

func recentEvents(ctx context.Context) (string, error) {
	const most = 40
	var events []corev1.Event
	for _, namespace := range []string{weftNamespace, env.namespace} {
		list, err := env.client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		for _, e := range list.Items {
			if e.Type != corev1.EventTypeNormal {
				events = append(events, e)
			}
		}
	}
	sort.Slice(events, func(i, j int) bool { return events[i].LastTimestamp.Before(&events[j].LastTimestamp) })
	var b strings.Builder
	for _, e := range events[max(0, len(events)-most):] {
		fmt.Fprintf(&b, "%s %s/%s: %s: %s\n", e.LastTimestamp.Format(time.TimeOnly), e.InvolvedObject.Namespace,
			e.InvolvedObject.Name, e.Reason, e.Message)
	}
	return b.String(), nil
}

func (n node) agentLog(ctx context.Context) (string, error) {
	agent, err := n.agent(ctx)
	if err != nil {
		return "", err
	}
	lines := int64(60)
	log, err := env.client.CoreV1().Pods(agent.Namespace).GetLogs(agent.Name,
		&corev1.PodLogOptions{Container: agent.Spec.Containers[0].Name, TailLines: &lines}).DoRaw(ctx)
	return string(log), err
}
