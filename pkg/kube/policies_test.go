package kube_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/kube/cnp"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/state"
)

func ptr[T any](v T) *T { return &v }

func networkPolicy(spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Spec: spec}
}

func TestNetworkPolicy(t *testing.T) {
	selector := metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"},
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpNotIn,
			Values: []string{"x"}}}}
	same := policy.Selector{MatchLabels: map[string]string{"app": "web"}, MatchExpressions: []policy.Requirement{
		{Key: "tier", Operator: policy.NotIn, Values: []string{"x"}}}}
	object := networkPolicy(networkingv1.NetworkPolicySpec{
		PodSelector: selector,
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		Ingress: []networkingv1.NetworkPolicyIngressRule{{}, {
			From: []networkingv1.NetworkPolicyPeer{{PodSelector: &selector, NamespaceSelector: &metav1.LabelSelector{}}},
			Ports: []networkingv1.NetworkPolicyPort{{Protocol: ptr(corev1.ProtocolUDP), Port: ptr(intstr.FromString("dns"))},
				{Port: ptr(intstr.FromInt32(80)), EndPort: ptr(int32(90))}, {}},
		}},
		Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{
			{IPBlock: &networkingv1.IPBlock{CIDR: "010.001.0.7/16", Except: []string{"10.1.2.0/24", "::ffff:10.1.3.0/120"}}}, {
				IPBlock: &networkingv1.IPBlock{CIDR: "fd00::/8"}}}}},
	})
	object.Annotations = map[string]string{kube.LogAnnotation: "true"}
	want := policy.Policy{
		Namespace: "ns", Name: "p", PodSelector: same, Types: []policy.Direction{policy.Ingress, policy.Egress}, Log: true,
		Ingress: []policy.Rule{{}, {
			Peers: []policy.Peer{{PodSelector: &same, NamespaceSelector: &policy.Selector{}}},
			Ports: []policy.Port{{Protocol: policy.UDP, Name: "dns"}, {Number: 80, EndPort: 90}, {}},
		}},
		Egress: []policy.Rule{
			{Peers: []policy.Peer{{IPBlock: &policy.IPBlock{CIDR: cidrs("10.1.0.0/16")[0], Except: cidrs("10.1.2.0/24",
				"10.1.3.0/24")}}, {IPBlock: &policy.IPBlock{CIDR: cidrs("fd00::/8")[0]}}}}},
	}
	got := kube.NetworkPolicy(object)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := got.Check(); err != nil {
		t.Error(err)
	}
}

// TestNetworkPolicyThatIsBad: what the API server should have refused is never half a policy.
func TestNetworkPolicyThatIsBad(t *testing.T) {
	block := func(cidr string, except ...string) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}
	}
	from := func(peers ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicySpec {
		return networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: peers}}}
	}
	on := func(ports ...networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicySpec {
		return networkingv1.NetworkPolicySpec{Egress: []networkingv1.NetworkPolicyEgressRule{{Ports: ports}}}
	}
	operator := metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Like"}}}
	empty := metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "app", Operator: metav1.LabelSelectorOpNotIn}}}
	for _, tc := range []struct {
		spec networkingv1.NetworkPolicySpec
		want string
	}{
		{from(block("10.0.0.0")), "ipBlock"},
		{from(block("10.0.0.256/8")), "ipBlock"},
		{from(block("::ffff:0.0.0.0/90")), "wider than all of IPv4"},
		{from(block("0.0.0.0/0", "10.0.0.0/33")), "except"},
		{from(networkingv1.NetworkPolicyPeer{}), "neither"},
		{from(networkingv1.NetworkPolicyPeer{PodSelector: &operator}), "unknown operator"},
		{from(networkingv1.NetworkPolicyPeer{NamespaceSelector: &empty}), "needs values"},
		{networkingv1.NetworkPolicySpec{PodSelector: operator}, "podSelector"},
		{networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Sideways"}}, "policyTypes"},
		{on(networkingv1.NetworkPolicyPort{Protocol: ptr(corev1.Protocol("ICMP"))}), "protocol"},
		{on(networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromInt32(0))}), "invalid port 0"},
		{on(networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromInt32(65536 + 80))}), "invalid port 65616"},
		{on(networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromString(""))}), "empty"},
		{on(networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromInt32(80)), EndPort: ptr(int32(79))}), "endPort"},
		{on(networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromString("x")), EndPort: ptr(int32(79))}),
			"both a name and a number"},
		{on(networkingv1.NetworkPolicyPort{EndPort: ptr(int32(79))}), "endPort"},
		{on(networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromInt32(80)), EndPort: ptr(int32(65536 + 90))}), "endPort"},
	} {
		if err := kube.NetworkPolicy(networkPolicy(tc.spec)).Check(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.spec, err, tc.want)
		}
	}
}

func TestPod(t *testing.T) {
	port := func(name string, number int32, protocol corev1.Protocol) corev1.ContainerPort {
		return corev1.ContainerPort{Name: name, ContainerPort: number, Protocol: protocol}
	}
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "of the mirror", Labels: map[string]string{
			"app": "web"}, DeletionTimestamp: ptr(metav1.Unix(9, 0)),
			CreationTimestamp: metav1.Unix(7, 0), Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "of the file"}},
		Spec: corev1.PodSpec{
			NodeName: "n1", HostNetwork: true,
			InitContainers: []corev1.Container{{Ports: []corev1.ContainerPort{port("init", 1, "")}},
				{RestartPolicy: ptr(corev1.ContainerRestartPolicyAlways), Ports: []corev1.ContainerPort{port("sidecar", 2, "")}}},
			Containers: []corev1.Container{{Ports: []corev1.ContainerPort{port("", 3, ""), port("dns", 53, corev1.ProtocolUDP),
				port("wide", 65536, "")}}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodFailed, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"},
			{IP: "fd00::1"}, {IP: "fe80::1%x"}}},
	}
	want := policy.Pod{Namespace: "ns", Name: "p", UID: "of the file", Node: "n1", Labels: map[string]string{"app": "web"},
		Addrs: addrs("10.0.0.1", "fd00::1"),
		Ports: []policy.ContainerPort{{Name: "sidecar", Protocol: policy.TCP, Number: 2},
			{Name: "dns", Protocol: policy.UDP, Number: 53}},
		HostNetwork: true, Done: true, Terminating: true, Created: 7}
	if diff := cmp.Diff(want, kube.Pod(object), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestPodHostPorts: those of containers and sidecars, as far as they can be; a pod on the host's network has none.
func TestPodHostPorts(t *testing.T) {
	at := func(ip string, hostPort, containerPort int32, protocol corev1.Protocol) corev1.ContainerPort {
		return corev1.ContainerPort{HostIP: ip, HostPort: hostPort, ContainerPort: containerPort, Protocol: protocol}
	}
	object := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Ports: []corev1.ContainerPort{at("", 1, 1, "")}},
			{RestartPolicy: ptr(corev1.ContainerRestartPolicyAlways), Ports: []corev1.ContainerPort{
				at("", 9000, 90, corev1.ProtocolSCTP)}}},
		Containers: []corev1.Container{{Ports: []corev1.ContainerPort{at("", 8080, 80, ""), at("192.0.2.1", 8053, 53,
			corev1.ProtocolUDP),
			at("", 0, 81, ""), at("nonsense", 8082, 82, ""), at("", 8083, 83, "ICMP")}}},
	}}
	want := []model.HostPort{
		{Protocol: model.SCTP, Port: 9000, ContainerPort: 90}, {Protocol: model.TCP, Port: 8080, ContainerPort: 80},
		{Addr: netip.MustParseAddr("192.0.2.1"), Protocol: model.UDP, Port: 8053, ContainerPort: 53},
	}
	if got := kube.HostPorts(object); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	object.Spec.HostNetwork = true
	if got := kube.HostPorts(object); got != nil {
		t.Errorf("on the host's network: %+v", got)
	}
}

// TestStagedAnnotation: true makes a policy of either kind staged; what is neither true nor false is named, and the
// policy is enforced.
func TestStagedAnnotation(t *testing.T) {
	for value, want := range map[string]struct {
		staged  bool
		warning string
	}{
		"true": {staged: true}, "false": {},
		"yes": {warning: `annotation weft.dev/staged: invalid value "yes"; allowed: true, false; the policy is enforced`},
		"":    {warning: `annotation weft.dev/staged: invalid value ""; allowed: true, false; the policy is enforced`},
	} {
		meta := metav1.ObjectMeta{Name: "p", Annotations: map[string]string{kube.StagedAnnotation: value}}
		for _, got := range []policy.Policy{
			kube.NetworkPolicy(&networkingv1.NetworkPolicy{ObjectMeta: meta}),
			kube.ClusterNetworkPolicy(&cnp.ClusterNetworkPolicy{ObjectMeta: meta}),
		} {
			if got.Staged != want.staged || got.Warning != want.warning {
				t.Errorf("%q: staged %t, warning %q", value, got.Staged, got.Warning)
			}
		}
	}
}

// TestPolicyObjects: what policies need of all objects of the cluster is handed on, and only when it is different.
func TestPolicyObjects(t *testing.T) {
	clusterPod := func(name, node, label string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "u", Labels: map[string]string{
			"app": label}}, Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{"team": "red"},
		Annotations: map[string]string{kube.LogAnnotation: "true", "other": "x"}}}
	client := fakekube.New(clusterPod("mine", "n1", "a"), clusterPod("other", "n2", "a"), ns,
		networkPolicy(networkingv1.NetworkPolicySpec{}))
	changes := make(chan state.Change, 100)
	w := watch(t, client, func(c state.Change) { changes <- c })
	synced(t, w)
	ctx := t.Context()
	wants := func(want ...string) {
		t.Helper()
		var got []string
		for range want {
			select {
			case c := <-changes:
				got = append(got, fmt.Sprintf("%T %v", c, c))
			case <-time.After(time.Minute):
				t.Fatalf("no change within a minute; got %q", got)
			}
		}
		slices.Sort(got)
		for i := range want {
			if !strings.HasPrefix(got[i], want[i]) {
				t.Errorf("change %s, want %s", got[i], want[i])
			}
		}
	}
	wants("state.SetNamespace {{ns map[team:red] true}}", "state.SetPod {{ns mine u n1 map[app:a]",
		"state.SetPod {{ns other u n2 map[app:a]", "state.SetPolicy {{NetworkPolicy ns p")
	if got := w.Pods(); len(got) != 1 ||
		!reflect.DeepEqual(got[0], model.Pod{PodRef: model.PodRef{Namespace: "ns", Name: "mine", UID: "u"},
			Phase: "Running"}) {
		t.Errorf("pods of this node: %+v", got)
	}
	objects := w.PolicyObjects()
	if len(objects.Pods) != 1 || objects.Pods[0].Name != "mine" || objects.Pods[0].Labels["app"] != "a" ||
		objects.Namespaces["ns"]["team"] != "red" || len(objects.Policies) != 1 || objects.Policies[0].Name != "p" {
		t.Errorf("objects of policies: %+v", objects)
	}
	started := clusterPod("other", "n2", "a")
	started.Status.StartTime = ptr(metav1.Unix(5, 0))
	for _, p := range []*corev1.Pod{started, clusterPod("other", "n2", "b")} {
		if _, err := client.CoreV1().Pods("ns").Update(ctx, p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	wants("state.SetPod {{ns other u n2 map[app:b]") // and nothing for the start
	if err := client.CoreV1().Pods("ns").Delete(ctx, "other", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	wants("state.DeletePod {ns other}")
	if err := client.NetworkingV1().NetworkPolicies("ns").Delete(ctx, "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	wants("state.DeletePolicy {ns/p}")
	if err := client.CoreV1().Namespaces().Delete(ctx, "ns", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	wants("state.DeleteNamespace {ns}")
}

// BenchmarkPodsMemory prints what 10,000 pods cost that the informer has delivered and the store has taken in.
func BenchmarkPodsMemory(b *testing.B) {
	const count = 10000
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		before := heap()
		store := state.New("n0")
		kept := make([]any, 0, count)
		for i := range count {
			node := fmt.Sprint("n", i%100)
			object := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("ns", i%100), Name: fmt.Sprintf("app-5d4f8c7b9d-%05d", i),
					UID: "0a1b2c3d-0000-0000-0000-000000000000",
					Labels: map[string]string{"app": fmt.Sprint("app", i%500), "pod-template-hash": "5d4f8c7b9d", "tier": "front",
						"version": "v1"}},
				Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Image: "registry.example/app:v1",
					Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
				Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{
					{IP: fmt.Sprintf("10.%d.%d.%d", i%100, i>>8, i&0xff)}, {IP: fmt.Sprintf("fd00:%x::%x", i%100, i)}}},
			}
			trimmed, err := kube.TrimPod(object)
			if err != nil {
				b.Fatal(err)
			}
			kept = append(kept, trimmed)
			store.Apply(state.SetPod{Pod: kube.TrimmedPod(trimmed)})
		}
		store.Take()
		b.ReportMetric(float64(heap()-before)/1e6, "MB/10k-pods")
		runtime.KeepAlive(kept)
		runtime.KeepAlive(store)
	}
}
