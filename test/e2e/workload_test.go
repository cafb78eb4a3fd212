//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/weft-cni/weft/test/e2e/internal/probeimage"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

func TestExecAndLogs(t *testing.T) {
	pods, _ := meshPods(t)
	for _, p := range []*pod{pods[0], pods[2], pods[4]} {
		if _, err := execIn(t.Context(), env.namespace, p.name, "probe", nil, probeimage.Path, "true"); err != nil {
			t.Error(err)
		}
		_, err := execIn(t.Context(), env.namespace, p.name, "probe", nil, probeimage.Path, "false")
		var exit utilexec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 1 {
			t.Errorf("exec of a failing command in %s: %v, want exit code 1", p, err)
		}
		log, err := env.client.CoreV1().Pods(env.namespace).GetLogs(p.name, &corev1.PodLogOptions{}).DoRaw(t.Context())
		if err != nil || !strings.Contains(string(log), "serving") {
			t.Errorf("log of %s: %q, %v", p, log, err)
		}
	}
}

func withReadiness(handler corev1.ProbeHandler) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: handler, PeriodSeconds: 1, TimeoutSeconds: 5,
			FailureThreshold: 1}
	}
}

func httpGet(path string) corev1.ProbeHandler {
	return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(webPort)}}
}

func command(args ...string) corev1.ProbeHandler {
	return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: args}}
}

// The kubelet's own probes decide: pods whose HTTP or exec probe succeeds become Ready; those whose probe fails run,
// are reported as failing, and do not.
func TestKubeletProbes(t *testing.T) {
	dumpOnFailure(t)
	good := []*corev1.Pod{
		spec("http-good", env.nodes[0].name, withReadiness(httpGet("/healthz"))),
		spec("exec-good", env.nodes[1].name, withReadiness(command(probeimage.Path, "true"))),
		spec("tcp-good", env.nodes[2].name, withReadiness(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{
			Port: intstr.FromInt32(echoPort)}})),
	}
	bad := []*corev1.Pod{
		spec("http-bad", env.nodes[0].name, withReadiness(httpGet("/no-such-page"))),
		spec("exec-bad", env.nodes[1].name, withReadiness(command(probeimage.Path, "false"))),
		spec("tcp-bad", env.nodes[2].name, withReadiness(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{
			Port: intstr.FromInt32(1)}})),
	}
	t.Cleanup(func() {
		deletePods(t, "http-good", "exec-good", "tcp-good", "http-bad", "exec-bad", "tcp-bad")
	})
	for _, s := range bad {
		if _, err := env.client.CoreV1().Pods(env.namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	createPods(t, good...)
	must(t, time.Minute, func(ctx context.Context) error {
		unhealthy, err := unhealthyPods(ctx)
		if err != nil {
			return err
		}
		for _, s := range bad {
			if !unhealthy[s.Name] {
				return fmt.Errorf("the kubelet has not reported the failing probe of %s", s.Name)
			}
		}
		return nil
	})
	// The kubelet's events may be ahead of the status that it writes.
	must(t, time.Minute, func(ctx context.Context) error {
		found, err := env.podsByName(ctx)
		if err != nil {
			return err
		}
		for _, s := range bad {
			if p := found[s.Name]; isReady(p) || p.Status.Phase != corev1.PodRunning {
				return fmt.Errorf("%s is ready=%v, want a running pod that is not ready: %s", s.Name, isReady(p), podProblem(p))
			}
		}
		return nil
	})
}

// unhealthyPods are the pods for which the kubelet has reported a failing probe.
func unhealthyPods(ctx context.Context) (map[string]bool, error) {
	events, err := env.client.CoreV1().Events(env.namespace).List(ctx,
		metav1.ListOptions{FieldSelector: "reason=Unhealthy"})
	if err != nil {
		return nil, err
	}
	pods := map[string]bool{}
	for _, e := range events.Items {
		pods[e.InvolvedObject.Name] = true
	}
	return pods, nil
}

// hostPort comes from the portmap plugin that the CNI configuration chains behind Weft: from another node, from a pod
// on another node, and from outside.
func TestHostPort(t *testing.T) {
	const tcp, udp = 18080, 18070
	pods, hosts := meshPods(t)
	t.Cleanup(func() { deletePods(t, "hostport") })
	createPods(t, spec("hostport", env.nodes[0].name, func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{
			{ContainerPort: echoPort, HostPort: tcp, Protocol: corev1.ProtocolTCP},
			{ContainerPort: echoPort, HostPort: udp, Protocol: corev1.ProtocolUDP},
		}
	}))
	var targets []wire.Target
	for _, addr := range env.nodes[0].addrs {
		targets = append(targets,
			target("hostPort on "+env.nodes[0].name, wire.TCP, addr, tcp, smallPayload),
			target("hostPort on "+env.nodes[0].name, wire.UDP, addr, udp, smallPayload))
	}
	reach(t, map[dialer][]wire.Target{hosts[1]: targets, pods[2]: targets, outside{}: targets})
}

// The bandwidth plugin, chained as well, finds the pod's interface and breaks nothing. The limit itself cannot be
// measured in a short test: container runtimes ask for a burst of hundreds of megabytes.
func TestBandwidth(t *testing.T) {
	pods, _ := meshPods(t)
	t.Cleanup(func() { deletePods(t, "bandwidth") })
	limited := createPods(t, spec("bandwidth", env.nodes[0].name, func(p *corev1.Pod) {
		p.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "20M"}
	}))[0]
	reach(t, map[dialer][]wire.Target{pods[0]: targetsOf(limited), pods[2]: targetsOf(limited),
		limited: targetsOf(pods[2])})

	port, err := env.nodes[0].portOf(t.Context(), limited)
	if err != nil {
		t.Fatal(err)
	}
	qdiscs, err := env.nodes[0].run(t.Context(), "tc", "qdisc", "show", "dev", port)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(qdiscs, "tbf") || !strings.Contains(qdiscs, "rate 20Mbit") {
		t.Errorf("port %s of the limited pod is not shaped to 20 Mbit/s:\n%s", port, qdiscs)
	}
}
