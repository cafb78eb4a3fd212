//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// denialPatience is how long the test waits for an answer that must not come.
const denialPatience = 700 * time.Millisecond

// applyPolicy makes a NetworkPolicy this. The test's end deletes it.
func applyPolicy(t *testing.T, name string, s networkingv1.NetworkPolicySpec) {
	t.Helper()
	policies := env.client.NetworkingV1().NetworkPolicies(env.namespace)
	object := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: s}
	old, err := policies.Get(t.Context(), name, metav1.GetOptions{})
	if err == nil {
		old.Spec = s
		_, err = policies.Update(t.Context(), old, metav1.UpdateOptions{})
	} else if ignoreNotFound(err) == nil {
		_, err = policies.Create(t.Context(), object, metav1.CreateOptions{})
		t.Cleanup(func() { deletePolicy(t, name) })
	}
	if err != nil {
		t.Fatalf("apply NetworkPolicy %s: %v", name, err)
	}
}

func deletePolicy(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(30*time.Second))
	defer cancel()
	if err := ignoreNotFound(env.client.NetworkingV1().NetworkPolicies(env.namespace).Delete(ctx, name,
		metav1.DeleteOptions{})); err != nil {
		t.Errorf("delete NetworkPolicy %s: %v", name, err)
	}
}

// labelNamespace sets a label of the tests' namespace, or removes it when the value is nil.
func labelNamespace(t *testing.T, key string, value any) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{key: value}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(30*time.Second))
	defer cancel()
	if _, err := env.client.CoreV1().Namespaces().Patch(ctx, env.namespace, types.MergePatchType, patch,
		metav1.PatchOptions{}); err != nil {
		t.Fatalf("label namespace %s: %v", env.namespace, err)
	}
}

// selected marks a pod for a policy's selector.
func selected(value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels["policy"] = value }
}

func selecting(value string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"policy": value}}
}

// denied checks that there was neither an answer nor a refusal.
func denied(r wire.Result) error {
	if r.OK() {
		return errors.New("reached, although a policy forbids it")
	}
	if strings.Contains(r.Error, "refused") {
		return fmt.Errorf("%s; want no answer at all", r.Error)
	}
	return nil
}

// refusing are targets that are not waited for long.
func refusing(targets []wire.Target) []wire.Target {
	var short []wire.Target
	for _, to := range targets {
		to.Attempts, to.Timeout = 1, testenv.Patience(denialPatience)
		short = append(short, to)
	}
	return short
}

// becomes waits until all of what is dialled goes as expected, and says how long that took.
func becomes(t *testing.T, what string, wanted map[*pod][]wire.Target, check func(wire.Result) error) {
	t.Helper()
	start := time.Now()
	must(t, programmedWithin, func(ctx context.Context) error {
		answers := make(chan error, len(wanted))
		for from, targets := range wanted {
			go func() {
				reply, err := from.dial(ctx, wire.DialRequest{Targets: refusing(targets)})
				for _, r := range reply.Results {
					if wrong := check(r); wrong != nil {
						err = errors.Join(err, fmt.Errorf("%s → %s (%s) by %s: %w", from, r.Target.Name, r.Target.Addr, r.Target.Proto,
							wrong))
					}
				}
				answers <- err
			}()
		}
		var errs []error
		for range wanted {
			errs = append(errs, <-answers)
		}
		return errors.Join(errs...)
	})
	t.Logf("%s: true after %.1f s", what, time.Since(start).Seconds())
}

// Policies as a user applies them: of each direction, changed, and by labels of the namespace. The kubelet's probes of
// an isolated pod go on, other nodes do not get in, and a Service does not lead around.
func TestNetworkPolicy(t *testing.T) {
	_, hosts := meshPods(t)
	t.Cleanup(func() { deletePods(t, "policy-server", "policy-near", "policy-far") })
	pods := createPods(t,
		spec("policy-server", env.nodes[0].name, behind("policy"), selected("server"), withReadiness(httpGet("/healthz"))),
		spec("policy-near", env.nodes[0].name, selected("client")), spec("policy-far", env.nodes[1].name, selected("client")))
	server, near, far := pods[0], pods[1], pods[2]
	through := clusterTargets(t, createService(t, "policy"))
	direct := targetsOf(server)
	clients := map[*pod][]wire.Target{near: append(direct, through...), far: append(direct, through...)}
	becomes(t, "without a policy", clients, reached)

	wall := networkingv1.NetworkPolicySpec{PodSelector: selecting("server"), PolicyTypes: []networkingv1.PolicyType{
		networkingv1.PolicyTypeIngress}}
	applyPolicy(t, "wall", wall)
	isolated := time.Now()
	becomes(t, "no client gets in", map[*pod][]wire.Target{near: clients[near], far: clients[far], hosts[1]: direct},
		denied)
	becomes(t, "but the server's own node", map[*pod][]wire.Target{hosts[0]: direct}, reached)

	wall.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "red"}}, PodSelector: ptr(
			selecting("client"))}},
		Ports: []networkingv1.NetworkPolicyPort{{Port: ptr(intstr.FromInt32(echoPort))},
			{Protocol: ptr(corev1.ProtocolUDP)}}}}
	applyPolicy(t, "wall", wall)
	becomes(t, "a namespace that is not labelled", clients, denied)
	labelNamespace(t, "team", "red")
	t.Cleanup(func() { labelNamespace(t, "team", nil) })
	ports := map[*pod][]wire.Target{near: withoutICMP(clients[near]), far: withoutICMP(clients[far])}
	becomes(t, "the namespace is labelled", ports, reached)
	labelNamespace(t, "team", nil)
	becomes(t, "the label is removed", ports, denied)

	// A measurement window, for which there is no condition: the pod is to stay ready. The kubelet has probed it once a
	// second all the while. Of a probe that is dropped it says so after the five seconds that withReadiness gives it, and
	// reports that a moment later.
	time.Sleep(max(0, time.Until(isolated.Add(testenv.Patience(8*time.Second)))))
	p, err := env.client.CoreV1().Pods(env.namespace).Get(t.Context(), server.name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && (c.Status != corev1.ConditionTrue || c.LastTransitionTime.After(isolated)) {
			t.Errorf("the isolated pod is ready: %s, since %s; want that it has been since before it was isolated, %s", c.Status,
				c.LastTransitionTime, isolated)
		}
	}
	deletePolicy(t, "wall")
	becomes(t, "the policy is deleted", clients, reached)

	applyPolicy(t, "cage", networkingv1.NetworkPolicySpec{PodSelector: selecting("client"),
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}})
	becomes(t, "clients reach no server", clients, denied)
	becomes(t, "but may be asked", map[*pod][]wire.Target{server: append(targetsOf(near), targetsOf(far)...)}, reached)
}

func withoutICMP(targets []wire.Target) []wire.Target {
	var rest []wire.Target
	for _, to := range targets {
		if to.Proto != wire.ICMP {
			rest = append(rest, to)
		}
	}
	return rest
}

// A pod that may reach only the cluster's DNS reaches that, through its Service, and no other.
func TestNetworkPolicyForDNS(t *testing.T) {
	pods, _ := meshPods(t)
	waitForDNS(t)
	t.Cleanup(func() { deletePods(t, "policy-dns") })
	from := createPods(t, spec("policy-dns", env.nodes[2].name, selected("dns")))[0]
	api, err := env.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	names := map[string][]netip.Addr{"kubernetes.default.svc.cluster.local": clusterIPs(t, api)}
	resolves(t, from, names, wire.Query{})

	cage := networkingv1.NetworkPolicySpec{PodSelector: selecting("dns"), PolicyTypes: []networkingv1.PolicyType{
		networkingv1.PolicyTypeEgress}}
	applyPolicy(t, "cage", cage)
	server := netip.AddrPortFrom(env.record.Plan.DNS()[0], dnsPort)
	must(t, programmedWithin, func(ctx context.Context) error {
		var reply wire.ResolveReply
		query := wire.Query{Name: "kubernetes.default.svc.cluster.local", IPv4: env.families[0] == v4, Server: server,
			Net: "udp", Timeout: testenv.Patience(denialPatience)}
		if err := from.probe(ctx, wire.ResolveRequest{Queries: []wire.Query{query}}, &reply, "resolve"); err != nil {
			return err
		}
		if a := reply.Answers[0]; a.Error == "" {
			return fmt.Errorf("%s is answered by the DNS: %v", from, a.Addrs)
		}
		return nil
	})
	port := ptr(intstr.FromInt32(dnsPort))
	cage.Egress = []networkingv1.NetworkPolicyEgressRule{{
		To: []networkingv1.NetworkPolicyPeer{{
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: "kube-system"}},
			PodSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"k8s-app": "kube-dns"}}}},
		Ports: []networkingv1.NetworkPolicyPort{{Port: port, Protocol: ptr(corev1.ProtocolUDP)},
			{Port: port, Protocol: ptr(corev1.ProtocolTCP)}}}}
	applyPolicy(t, "cage", cage)
	resolves(t, from, names, wire.Query{})
	resolves(t, from, names, wire.Query{Server: server, Net: "tcp"})
	becomes(t, "only the DNS", map[*pod][]wire.Target{from: targetsOf(pods[0])}, denied)
}
