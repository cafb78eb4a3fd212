package policy_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/matcher"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/network"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
	"sigs.k8s.io/kube-network-policies/pkg/podinfo"

	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	weft "github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/trace/tracetest"
)

// state is cyclonus' cluster while one of its cases runs: what connectivity.TestCaseState is, without a cluster.
type state struct {
	resources *probe.Resources
	policies  []*networkingv1.NetworkPolicy
	pods      int // that ever were, to number addresses
	is4       bool
}

var nodes = []model.Node{
	{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.11")}, PodCIDRs: []netip.Prefix{
		netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd44:1::/64")}},
	{Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.12")}, PodCIDRs: []netip.Prefix{
		netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd44:2::/64")}},
}

// address numbers pods so that neighbours are on different nodes, and those of one node in one small range.
func (s *state) address() string {
	s.pods++
	node := 1 + s.pods%2
	if s.is4 {
		return fmt.Sprintf("10.244.%d.%d", node, 1+s.pods)
	}
	return fmt.Sprintf("fd44:%d::%d", node, 1+s.pods)
}

func nodeOf(ip string) string {
	for _, n := range nodes {
		for _, cidr := range n.PodCIDRs {
			if cidr.Contains(netip.MustParseAddr(ip)) {
				return n.Name
			}
		}
	}
	return ""
}

func newState(is4 bool) *state {
	s := &state{resources: &probe.Resources{Namespaces: map[string]map[string]string{}}, is4: is4}
	for _, ns := range []string{"x", "y", "z"} {
		s.resources.Namespaces[ns] = labelsOf(ns, map[string]string{"ns": ns})
		for _, name := range []string{"a", "b", "c"} {
			p := probe.NewDefaultPod(ns, name, []int{80, 81}, []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP,
				corev1.ProtocolSCTP}, false, "registry")
			p.IP = s.address()
			s.resources.Pods = append(s.resources.Pods, p)
		}
	}
	return s
}

// labelsOf adds the label that the API server gives every namespace.
func labelsOf(ns string, labels map[string]string) map[string]string {
	out := map[string]string{"kubernetes.io/metadata.name": ns}
	for k, v := range labels {
		out[k] = v
	}
	return out
}

func (s *state) do(a *generator.Action) error {
	var err error
	named := func(ns, name string) int {
		return slices.IndexFunc(s.policies, func(p *networkingv1.NetworkPolicy) bool {
			return p.Namespace == ns && p.Name == name
		})
	}
	switch {
	case a.CreatePolicy != nil:
		s.policies = append(slices.Clone(s.policies), a.CreatePolicy.Policy)
	case a.UpdatePolicy != nil:
		s.policies = slices.Clone(s.policies)
		s.policies[named(a.UpdatePolicy.Policy.Namespace, a.UpdatePolicy.Policy.Name)] = a.UpdatePolicy.Policy
	case a.DeletePolicy != nil:
		i := named(a.DeletePolicy.Namespace, a.DeletePolicy.Name)
		s.policies = slices.Delete(slices.Clone(s.policies), i, i+1)
	case a.CreateNamespace != nil:
		s.resources, err = s.resources.CreateNamespace(a.CreateNamespace.Namespace, labelsOf(a.CreateNamespace.Namespace,
			a.CreateNamespace.Labels))
	case a.SetNamespaceLabels != nil:
		s.resources, err = s.resources.UpdateNamespaceLabels(a.SetNamespaceLabels.Namespace,
			labelsOf(a.SetNamespaceLabels.Namespace, a.SetNamespaceLabels.Labels))
	case a.DeleteNamespace != nil:
		s.resources, err = s.resources.DeleteNamespace(a.DeleteNamespace.Namespace)
	case a.CreatePod != nil:
		if s.resources, err = s.resources.CreatePod(a.CreatePod.Namespace, a.CreatePod.Pod, a.CreatePod.Labels); err == nil {
			s.resources.Pods[len(s.resources.Pods)-1].IP = s.address()
		}
	case a.SetPodLabels != nil:
		s.resources, err = s.resources.SetPodLabels(a.SetPodLabels.Namespace, a.SetPodLabels.Pod, a.SetPodLabels.Labels)
	case a.DeletePod != nil:
		s.resources, err = s.resources.DeletePod(a.DeletePod.Namespace, a.DeletePod.Pod)
	default:
		err = fmt.Errorf("an action that this test does not know: %+v", a)
	}
	return err
}

// cells are the packets that the case asks for, and those to every port that is served.
func (s *state) cells(config *generator.ProbeConfig) []*probe.Job {
	builder := &probe.JobBuilder{TimeoutSeconds: 1}
	jobs := builder.GetJobsForProbeConfig(s.resources, config)
	list := slices.Concat(jobs.Valid, jobs.BadPortProtocol) // a port without a server is a port, too
	if config.AllAvailable {
		return list
	}
	return append(list, builder.GetJobsAllAvailableServers(s.resources, config.Mode).Valid...)
}

func (s *state) kubePods() []*corev1.Pod {
	pods := make([]*corev1.Pod, len(s.resources.Pods))
	for i, p := range s.resources.Pods {
		one := p.KubePod()
		one.Spec.NodeName = nodeOf(p.IP)
		one.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: p.IP, PodIPs: []corev1.PodIP{{IP: p.IP}}}
		pods[i] = one
	}
	return pods
}

// weft is the cluster as Weft's agents read it.
func (s *state) weft() tracetest.Cluster {
	c := tracetest.Cluster{Nodes: nodes, Namespaces: s.resources.Namespaces}
	for _, p := range s.kubePods() {
		c.Pods = append(c.Pods, kube.Pod(p))
	}
	for _, p := range s.policies {
		c.Policies = append(c.Policies, kube.NetworkPolicy(p))
	}
	return c
}

// judges are the four who say whether a packet passes. kube-network-policies is asked twice: about policies as they
// were written, and as a cluster gives them to it.
type judges struct {
	cyclonus        *matcher.Policy
	written, stored *networkpolicy.PolicyEngine
	view            weft.Cluster
	network         *tracetest.Network
}

func (s *state) judges(t *testing.T) judges {
	t.Helper()
	c := s.weft()
	n, err := tracetest.New(c)
	if err != nil {
		t.Fatal(err)
	}
	j := judges{cyclonus: matcher.BuildNetworkPolicies(true, s.policies), view: c.ForEval(), network: n}
	var asStored []*networkingv1.NetworkPolicy
	for _, p := range s.policies {
		asStored = append(asStored, stored(t, p))
	}
	j.written, j.stored = s.engine(t, s.policies), s.engine(t, asStored)
	return j
}

func (s *state) engine(t *testing.T, list []*networkingv1.NetworkPolicy) *networkpolicy.PolicyEngine {
	t.Helper()
	engine, err := engineOf(s.kubePods(), s.resources.Namespaces, list)
	if err != nil {
		t.Fatal(err)
	}
	return engine
}

// engineOf is kube-network-policies with its informers' stores filled. Around are the evaluators of the tiers before
// and after NetworkPolicies, or none.
func engineOf(podList []*corev1.Pod, namespaceList map[string]map[string]string, list []*networkingv1.NetworkPolicy,
	around ...api.PolicyEvaluator) (*networkpolicy.PolicyEngine, error) {
	factory := informers.NewSharedInformerFactory(&kubernetes.Clientset{}, 0) // never started, so no server is asked
	pods, namespaces := factory.Core().V1().Pods(), factory.Core().V1().Namespaces()
	var errs []error
	for _, p := range podList {
		errs = append(errs, pods.Informer().GetIndexer().Add(p))
	}
	for name, labels := range namespaceList {
		errs = append(errs, namespaces.Informer().GetIndexer().Add(probe.KubeNamespace(name, labels)))
	}
	of := func(direction networkingv1.PolicyType) api.PolicyEvaluator {
		policies := informers.NewSharedInformerFactory(&kubernetes.Clientset{}, 0).Networking().V1().NetworkPolicies()
		for _, p := range list {
			if p = defaulted(p); slices.Contains(p.Spec.PolicyTypes, direction) {
				errs = append(errs, policies.Informer().GetIndexer().Add(p))
			}
		}
		return networkpolicy.NewStandardNetworkPolicy("n1", namespaces, pods, policies)
	}
	evaluators := []api.PolicyEvaluator{byDirection{of(networkingv1.PolicyTypeIngress), of(networkingv1.PolicyTypeEgress)}}
	if len(around) > 0 {
		evaluators = []api.PolicyEvaluator{around[0], evaluators[0], around[1]}
	}
	return networkpolicy.NewPolicyEngine(podinfo.NewInformerProvider(pods, namespaces, nil, nil), evaluators),
		errors.Join(errs...)
}

// byDirection evaluates a direction with the policies that isolate pods in it. kube-network-policies' evaluator takes
// all that select the pod, and so accepts, before the Baseline tier is asked, what none of them is about.
type byDirection struct {
	api.PolicyEvaluator // for ingress
	egress              api.PolicyEvaluator
}

func (b byDirection) EvaluateEgress(ctx context.Context, p *network.Packet, src, dst *api.PodInfo) (api.Verdict,
	error) {
	return b.egress.EvaluateEgress(ctx, p, src, dst)
}

// stored is a policy as it comes back from etcd: in protocol buffers an empty list is a missing one.
func stored(t *testing.T, p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	t.Helper()
	data, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var out networkingv1.NetworkPolicy
	if err := out.Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	return &out
}

// defaulted is a policy as the API server stores it, which kube-network-policies relies on: every port has a protocol,
// and every policy its types. The others get the policies as they were written.
func defaulted(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	p = p.DeepCopy()
	tcp := corev1.ProtocolTCP
	fill := func(ports []networkingv1.NetworkPolicyPort) {
		for i := range ports {
			if ports[i].Protocol == nil {
				ports[i].Protocol = &tcp
			}
		}
	}
	for _, r := range p.Spec.Ingress {
		fill(r.Ports)
	}
	for _, r := range p.Spec.Egress {
		fill(r.Ports)
	}
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	return p
}

// packet is a cell as a packet.
func packet(j *probe.Job) tracetest.Packet {
	return tracetest.Packet{Src: netip.MustParseAddr(j.FromIP), Dst: netip.MustParseAddr(j.ToIP),
		Protocol: model.Protocol(j.Protocol).Number(),
		SrcPort:  40000, DstPort: uint16(j.ResolvedPort)}
}

func ask(t *testing.T, engine *networkpolicy.PolicyEngine, cell *probe.Job) bool {
	t.Helper()
	p := packet(cell)
	family := corev1.IPv6Protocol
	if p.Src.Is4() {
		family = corev1.IPv4Protocol
	}
	allowed, err := engine.EvaluatePacket(t.Context(), &network.Packet{Family: family, SrcIP: p.Src.AsSlice(),
		DstIP: p.Dst.AsSlice(),
		Proto: cell.Protocol, SrcPort: int(p.SrcPort), DstPort: int(p.DstPort)})
	if err != nil {
		t.Fatal(err)
	}
	return allowed
}
