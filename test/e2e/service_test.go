//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// Every pod and every node reaches a Service's cluster IPs, whether the endpoint is on its own node or on another, in
// every family; the endpoint sees the pod's own address. A pod reaches itself through its Service, too.
func TestClusterIP(t *testing.T) {
	pods, hosts := meshPods(t)
	t.Cleanup(func() { deletePods(t, "endpoint-0", "endpoint-1") })
	endpoints := createPods(t, spec("endpoint-0", env.nodes[0].name, behind("cluster-0")),
		spec("endpoint-1", env.nodes[1].name, behind("cluster-1")))
	wanted := map[*pod][]wire.Target{}
	for i := range endpoints {
		targets := clusterTargets(t, createService(t, fmt.Sprintf("cluster-%d", i)))
		for _, from := range slices.Concat(pods, hosts, endpoints) {
			wanted[from] = append(wanted[from], targets...)
		}
	}
	programmed(t, wanted, reached)
	for from, results := range reach(t, once(wanted)) {
		for _, r := range results {
			if from.host || slices.Contains(endpoints, from) && strings.HasSuffix(from.name, r.Target.Name[len("cluster"):]) {
				continue // what such a client's address is, is its node's affair
			}
			if own := familyOf(r.Target.Addr).of(from.addrs); r.Observed.Addr() != own {
				t.Errorf("%s → %s (%s) by %s: arrives from %s, want the pod's own %s", from, r.Target.Name, r.Target.Addr,
					r.Target.Proto, r.Observed, own)
			}
		}
	}
}

// A node port leads to the endpoint from outside, from nodes and from pods, at the node that has the endpoint and at
// another. With the policy Cluster a node that sends the client on to another node speaks for it.
func TestNodePort(t *testing.T) {
	pods, hosts := meshPods(t)
	t.Cleanup(func() { deletePods(t, "nodeport") })
	createPods(t, spec("nodeport", env.nodes[0].name, behind("nodeport")))
	s := createService(t, "nodeport", nodePorts(corev1.ServiceExternalTrafficPolicyCluster))
	at0, at1 := nodeTargets(s, env.nodes[0]), nodeTargets(s, env.nodes[1])
	both := slices.Concat(at0, at1)
	wanted := map[dialer][]wire.Target{
		outside{}: both,
		hosts[0]:  both, hosts[1]: both, hosts[2]: both,
		pods[0]: both, pods[2]: both, pods[4]: both,
	}
	programmed(t, wanted, reached)
	for _, r := range reach(t, once(wanted))[outside{}] {
		if n := env.nodes[1]; slices.Contains(n.addrs, r.Target.Addr) && !n.owns(r.Observed.Addr()) {
			t.Errorf("outside → %s by %s: arrives from %s, want an address of %s, which sent it on", r.Target.Name,
				r.Target.Proto, r.Observed, n.name)
		}
	}
}

// With externalTrafficPolicy Local an endpoint sees the client's own address, and a node without an endpoint answers
// nothing from outside, so that a load balancer takes the traffic elsewhere. The cluster's own clients are not
// concerned.
func TestExternalTrafficPolicyLocal(t *testing.T) {
	pods, hosts := meshPods(t)
	t.Cleanup(func() { deletePods(t, "local") })
	createPods(t, spec("local", env.nodes[0].name, behind("local")))
	s := createService(t, "local", nodePorts(corev1.ServiceExternalTrafficPolicyLocal))
	at0, at1 := nodeTargets(s, env.nodes[0]), nodeTargets(s, env.nodes[1])
	wanted := map[dialer][]wire.Target{
		outside{}: at0,
		hosts[0]:  at0, hosts[1]: clusterTargets(t, s), pods[4]: clusterTargets(t, s),
	}
	programmed(t, wanted, reached)
	for _, r := range reach(t, once(wanted))[outside{}] {
		if !slices.Contains(env.record.Outside.Addrs, r.Observed.Addr()) {
			t.Errorf("outside → %s by %s: arrives from %s, want the client's own of %v", r.Target.Name, r.Target.Proto,
				r.Observed, env.record.Outside.Addrs)
		}
	}
	for i := range at1 {
		at1[i].Attempts, at1[i].Timeout = 1, time.Second
	}
	reply, err := outside{}.dial(t.Context(), wire.DialRequest{Targets: at1})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reply.Results {
		if r.OK() || strings.Contains(r.Error, "refused") {
			t.Errorf("outside → %s by %s: %q; want no answer at all, the node has no endpoint", r.Target.Name, r.Target.Proto,
				r.Error)
		}
	}
}

// A Service without endpoints rejects at once: a reset for TCP, an ICMP error for UDP; to pods, to nodes and to the
// outside.
func TestServiceWithoutEndpoints(t *testing.T) {
	pods, hosts := meshPods(t)
	s := createService(t, "empty", nodePorts(corev1.ServiceExternalTrafficPolicyCluster))
	inside, beyond := clusterTargets(t, s), nodeTargets(s, env.nodes[1])
	wanted := map[dialer][]wire.Target{pods[0]: inside, pods[2]: inside, hosts[0]: inside, hosts[1]: inside,
		outside{}: beyond}
	programmed(t, wanted, func(r wire.Result) error {
		if r.OK() || !strings.Contains(r.Error, "refused") {
			return fmt.Errorf("%q; want that it is refused", r.Error)
		}
		return nil
	})
}

// rolling is a Deployment behind a Service of its own name whose pods tell the Service's clients in time that they go:
// they serve on for a while after they are asked to end, which is what Kubernetes demands where no connection may fail.
func rolling(name string, replicas int32) *appsv1.Deployment {
	template := spec("", "", behind(name), withReadiness(httpGet("/healthz")), func(p *corev1.Pod) {
		p.Spec.NodeName = ""
		p.Spec.TerminationGracePeriodSeconds = ptr(int64(30))
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{
			Seconds: 5}}}
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"service": name}}}}
	})
	none, one := intstr.FromInt32(0), intstr.FromInt32(1)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: template.Labels},
			Strategy: appsv1.DeploymentStrategy{RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &none,
				MaxSurge: &one}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: template.Labels}, Spec: template.Spec},
		},
	}
}

// rolledOut waits until a Deployment's pods are all of the newest kind, available, and the only ones.
func rolledOut(t *testing.T, name string, atMost time.Duration) {
	t.Helper()
	must(t, atMost, func(ctx context.Context) error {
		d, err := env.client.AppsV1().Deployments(env.namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := d.Status
		if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != *d.Spec.Replicas ||
			s.AvailableReplicas != *d.Spec.Replicas || s.Replicas != *d.Spec.Replicas {
			return fmt.Errorf("deployment %s: %d pods, %d of them new, %d available, want %d", name, s.Replicas,
				s.UpdatedReplicas, s.AvailableReplicas, *d.Spec.Replicas)
		}
		list, err := env.client.CoreV1().Pods(env.namespace).List(ctx, metav1.ListOptions{LabelSelector: "service=" + name})
		if err != nil {
			return err
		}
		if len(list.Items) != int(*d.Spec.Replicas) {
			return fmt.Errorf("deployment %s has %d pods with those that end, want %d", name, len(list.Items), *d.Spec.Replicas)
		}
		return nil
	})
}

// All endpoints of a Service are replaced while pods, a node and the outside make new connections all the while: none
// fails, and a connection to a node port neither.
func TestRollingRestart(t *testing.T) {
	pods, hosts := meshPods(t)
	const name = "rolling"
	deployments := env.client.AppsV1().Deployments(env.namespace)
	if _, err := deployments.Create(t.Context(), rolling(name, 3), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := deployments.Delete(context.Background(), name, metav1.DeleteOptions{
			PropagationPolicy: ptr(metav1.DeletePropagationForeground)})
		if err := ignoreNotFound(err); err != nil {
			t.Errorf("delete deployment %s: %v", name, err)
		}
	})
	s := createService(t, name, nodePorts(corev1.ServiceExternalTrafficPolicyCluster))
	rolledOut(t, name, podsReadyWithin)
	inside, beyond := clusterTargets(t, s), nodeTargets(s, env.nodes[1])
	programmed(t, map[dialer][]wire.Target{pods[0]: inside, pods[2]: inside, hosts[1]: inside, outside{}: beyond}, reached)

	traffic := &steadyTraffic{}
	knock := func(from interface {
		start(t *testing.T, args ...string) *session
		String() string
	}, targets []wire.Target) {
		args := []string{"knock", "--interval=" + pingInterval.String()}
		for _, to := range targets {
			if to.Proto == wire.TCP {
				args = append(args, netip.AddrPortFrom(to.Addr, to.Port).String())
			}
		}
		traffic.sessions, traffic.from = append(traffic.sessions, from.start(t, args...)), append(traffic.from, from.String())
	}
	knock(pods[0], inside)
	knock(pods[2], inside)
	knock(hosts[1], inside)
	knock(outside{}, beyond)
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{
		"annotations": map[string]string{"restarted": time.Now().Format(time.RFC3339Nano)}}}}})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := deployments.Patch(t.Context(), name, types.StrategicMergePatchType, patch,
		metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	rolledOut(t, name, 3*time.Minute)
	t.Logf("all pods were replaced after %.1f s", time.Since(start).Seconds())
	traffic.wantNoLoss(t)
}

// The agent's restart is not noticed by clients of a Service.
func TestServicesThroughAgentRestart(t *testing.T) {
	pods, hosts := meshPods(t)
	const name = "restart"
	t.Cleanup(func() { deletePods(t, name+"-0", name+"-1") })
	createPods(t, spec(name+"-0", env.nodes[0].name, behind(name)), spec(name+"-1", env.nodes[1].name, behind(name)))
	s := createService(t, name)
	targets := clusterTargets(t, s)
	programmed(t, map[*pod][]wire.Target{pods[0]: targets, hosts[0]: targets}, reached)
	traffic := &steadyTraffic{}
	for _, from := range []*pod{pods[0], hosts[0]} {
		args := []string{"knock", "--interval=" + pingInterval.String()}
		for _, addr := range clusterIPs(t, s) {
			args = append(args, netip.AddrPortFrom(addr, servicePort).String())
		}
		traffic.add(from, from.start(t, args...))
	}
	n := env.nodes[0]
	uid, err := n.deleteAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	must(t, 2*time.Minute, func(ctx context.Context) error { return n.agentReady(ctx, uid) })
	traffic.wantNoLoss(t)
}
