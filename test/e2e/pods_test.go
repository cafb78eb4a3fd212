//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// Ports of the probe's servers: in pods, and in the host's network, where they must be free.
const (
	echoPort, webPort         = 7000, 7080
	hostEchoPort, hostWebPort = 17000, 17080
)

// podsReadyWithin bounds the start of a handful of pods on a busy machine.
const podsReadyWithin = 2 * time.Minute

// pod is a running probe.
type pod struct {
	name  string
	node  string
	addrs []netip.Addr
	host  bool // in its node's network
	echo  uint16
	web   uint16
}

func (p *pod) String() string { return p.name }

// spec describes a probe on a node; changes are applied in their order.
func spec(name, nodeName string, changes ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "probe"}},
		Spec: corev1.PodSpec{
			NodeName:                      nodeName,
			TerminationGracePeriodSeconds: ptr(int64(1)),
			Containers: []corev1.Container{{
				Name: "probe", Image: env.image.Reference, ImagePullPolicy: corev1.PullNever,
				Args: []string{"serve", fmt.Sprintf("--echo=%d", echoPort), fmt.Sprintf("--http=%d", webPort)},
				SecurityContext: &corev1.SecurityContext{
					Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_RAW", "NET_ADMIN"}}},
			}},
		},
	}
	for _, change := range changes {
		change(p)
	}
	return p
}

// hostNetwork puts the probe into its node's network, on ports that are free there.
func hostNetwork(p *corev1.Pod) {
	p.Spec.HostNetwork = true
	p.Spec.Containers[0].Args = []string{"serve", fmt.Sprintf("--echo=%d", hostEchoPort), fmt.Sprintf("--http=%d",
		hostWebPort)}
}

// createPods creates pods at once and waits until all are Ready.
func createPods(t *testing.T, specs ...*corev1.Pod) []*pod {
	t.Helper()
	pods, err := env.createPods(t.Context(), specs...)
	if err != nil {
		t.Fatal(err)
	}
	return pods
}

func (e *environment) createPods(ctx context.Context, specs ...*corev1.Pod) ([]*pod, error) {
	errs := make(chan error, len(specs))
	for _, s := range specs {
		go func() {
			_, err := e.client.CoreV1().Pods(e.namespace).Create(ctx, s, metav1.CreateOptions{})
			errs <- err
		}()
	}
	for range specs {
		if err := <-errs; err != nil {
			return nil, fmt.Errorf("create pod: %w", err)
		}
	}
	var pods []*pod
	err := testenv.Poll(ctx, podsReadyWithin, func(ctx context.Context) error {
		found, err := e.podsByName(ctx)
		if err != nil {
			return err
		}
		pods = nil
		for _, s := range specs {
			p, err := readyPod(found[s.Name])
			if err != nil {
				return fmt.Errorf("pod %s on %s: %w", s.Name, s.Spec.NodeName, err)
			}
			pods = append(pods, p)
		}
		return nil
	})
	if err != nil {
		err = errors.Join(err, e.lastWarnings(context.WithoutCancel(ctx), specs))
	}
	return pods, err
}

// lastWarnings is the last warning about each of some pods.
func (e *environment) lastWarnings(ctx context.Context, specs []*corev1.Pod) error {
	events, err := e.client.CoreV1().Events(e.namespace).List(ctx,
		metav1.ListOptions{FieldSelector: "type=" + corev1.EventTypeWarning})
	if err != nil {
		return err
	}
	last := map[string]corev1.Event{}
	for _, event := range events.Items {
		if name := event.InvolvedObject.Name; !event.LastTimestamp.Before(ptr(last[name].LastTimestamp)) {
			last[name] = event
		}
	}
	var warnings []error
	for _, s := range specs {
		if event, ok := last[s.Name]; ok {
			warnings = append(warnings, fmt.Errorf("%s: %s: %s", s.Name, event.Reason, event.Message))
		}
	}
	return errors.Join(warnings...)
}

func ptr[T any](v T) *T { return &v }

func (e *environment) podsByName(ctx context.Context) (map[string]corev1.Pod, error) {
	list, err := e.client.CoreV1().Pods(e.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	found := map[string]corev1.Pod{}
	for _, p := range list.Items {
		found[p.Name] = p
	}
	return found, nil
}

// readyPod reads a pod that is Ready; the error says why one is not.
func readyPod(p corev1.Pod) (*pod, error) {
	if !isReady(p) {
		return nil, fmt.Errorf("not Ready: %s", podProblem(p))
	}
	parsed := &pod{name: p.Name, node: p.Spec.NodeName, host: p.Spec.HostNetwork, echo: echoPort, web: webPort}
	if parsed.host {
		parsed.echo, parsed.web = hostEchoPort, hostWebPort
	}
	for _, ip := range p.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return nil, err
		}
		parsed.addrs = append(parsed.addrs, addr)
	}
	if len(parsed.addrs) != len(env.families) {
		return nil, fmt.Errorf("it has addresses %v, want one of each of %v", parsed.addrs, env.families)
	}
	return parsed, nil
}

func isReady(p corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func podProblem(p corev1.Pod) string {
	text := fmt.Sprintf("phase %s %s %s", p.Status.Phase, p.Status.Reason, p.Status.Message)
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil {
			text += fmt.Sprintf("; waiting: %s %s", w.Reason, w.Message)
		}
		if e := c.State.Terminated; e != nil {
			text += fmt.Sprintf("; ended: code %d %s %s", e.ExitCode, e.Reason, e.Message)
		}
	}
	return text
}

// deletePods deletes pods and waits until the API has forgotten them. Its own context lets a Cleanup call it.
func deletePods(t *testing.T, names ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(2*time.Minute))
	defer cancel()
	errs := make(chan error, len(names))
	for _, name := range names {
		go func() {
			errs <- ignoreNotFound(env.client.CoreV1().Pods(env.namespace).Delete(ctx, name, metav1.DeleteOptions{}))
		}()
	}
	for range names {
		if err := <-errs; err != nil {
			t.Errorf("delete pod: %v", err)
		}
	}
	if err := testenv.Poll(ctx, 2*time.Minute, func(ctx context.Context) error {
		found, err := env.podsByName(ctx)
		if err != nil {
			return err
		}
		for _, name := range names {
			if p, ok := found[name]; ok {
				return fmt.Errorf("pod %s is still there: %s", name, podProblem(p))
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// sharedPods are the pods that several tests look at, and none changes: two on every node, and one in every node's
// network.
type sharedPods struct {
	once sync.Once
	pods []*pod
	host []*pod
	err  error
}

// meshPods returns the shared pods, node by node: pods[2*i] and pods[2*i+1] are on env.nodes[i], which host[i] is on
// too.
func meshPods(t *testing.T) (pods, host []*pod) {
	t.Helper()
	s := &env.shared
	if s.err == nil {
		dumpOnFailure(t) // the first test without them has dumped what there is to see
	}
	s.once.Do(func() {
		var specs []*corev1.Pod
		for _, n := range env.nodes {
			specs = append(specs, spec("mesh-"+n.name+"-a", n.name), spec("mesh-"+n.name+"-b", n.name))
		}
		for _, n := range env.nodes {
			specs = append(specs, spec("host-"+n.name, n.name, hostNetwork))
		}
		start := time.Now()
		var all []*pod
		if all, s.err = env.createPods(context.Background(), specs...); s.err == nil {
			s.pods, s.host = all[:2*len(env.nodes)], all[2*len(env.nodes):]
			t.Logf("%d pods Ready in %.1f s", len(all), time.Since(start).Seconds())
		}
	})
	if s.err != nil {
		t.Fatalf("the shared pods: %v", s.err)
	}
	return s.pods, s.host
}

// link returns one of the pod's network interfaces.
func (p *pod) link(t *testing.T, name string) wire.Link {
	t.Helper()
	var reply wire.LinksReply
	if err := p.probe(t.Context(), nil, &reply, "links"); err != nil {
		t.Fatal(err)
	}
	for _, l := range reply.Links {
		if l.Name == name {
			return l
		}
	}
	t.Fatalf("pod %s has no interface %s: %+v", p.name, name, reply.Links)
	return wire.Link{}
}
