package agent

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/state"
)

// planObjects are a node's objects as an API server has them.
var planObjects = []string{
	`{kind: NetworkPolicy, metadata: {name: broken, namespace: ops}, spec: {podSelector: {},
    policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}}`,
	`{kind: NetworkPolicy, metadata: {name: broken, namespace: shop}, spec: {podSelector: {},
    policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}}`,
	`{kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]},
                status: {addresses: [{type: InternalIP, address: 172.30.0.1}]}}`,
	`{kind: Node, metadata: {name: n2}, spec: {podCIDRs: [10.244.2.0/24]},
                status: {addresses: [{type: InternalIP, address: 172.30.0.2}]}}`,
	`{kind: Namespace, metadata: {name: shop, labels: {kubernetes.io/metadata.name: shop}}}`,
	"{kind: Namespace, metadata: {name: ops, labels: {kubernetes.io/metadata.name: ops}}}",
	`{kind: Pod, metadata: {name: a, namespace: shop, uid: a, labels: {app: web}}, spec: {nodeName: n1},
                status: {phase: Running, podIPs: [{ip: 10.244.1.2}]}}`,
	`{kind: Pod, metadata: {name: b, namespace: ops, uid: b, labels: {app: job}}, spec: {nodeName: n2},
                status: {phase: Running, podIPs: [{ip: 10.244.2.2}]}}`,
	`{kind: NetworkPolicy, metadata: {name: old, namespace: shop}, spec: {podSelector: {},
                policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {team: x}}}]},
    {ports: [{port: 81}], from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}}]}]}}`,
	`{kind: Service, metadata: {name: web, namespace: shop}, spec: {type: NodePort,
                clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{port: 80, protocol: TCP, nodePort: 30080}]}}`,
	`{kind: Service, metadata: {name: other, namespace: shop,
                labels: {service.kubernetes.io/service-proxy-name: x}}, spec: {clusterIP: 10.96.0.8,
                clusterIPs: [10.96.0.8], ports: [{port: 80, protocol: TCP}]}}`,
	`{kind: EndpointSlice, metadata: {name: web-1, namespace: shop,
                labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{name: '', port: 8080,
                protocol: TCP}], endpoints: [{addresses: [10.244.2.2]}]}`,
	"{kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/16]}}",
}

func planObject(t *testing.T, text string) runtime.Object {
	t.Helper()
	object := map[string]runtime.Object{"Node": &corev1.Node{}, "Namespace": &corev1.Namespace{}, "Pod": &corev1.Pod{},
		"NetworkPolicy": &networkingv1.NetworkPolicy{}, "Service": &corev1.Service{},
		"EndpointSlice": &discoveryv1.EndpointSlice{}, "ServiceCIDR": &networkingv1.ServiceCIDR{}}[planKind(text)]
	if err := yaml.UnmarshalStrict([]byte(text), object); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return object
}

func planKind(text string) string {
	kind, _, _ := strings.Cut(strings.TrimPrefix(text, "{kind: "), ",")
	return kind
}

// planNode is the watcher and the snapshot of node n1 with these objects.
func planNode(t *testing.T, settings []state.Change, texts ...string) (*kube.Watcher, *model.Snapshot) {
	t.Helper()
	objects := make([]runtime.Object, len(texts))
	for i, text := range texts {
		objects[i] = planObject(t, text)
	}
	var mu sync.Mutex
	store := state.New("n1")
	emit := func(c state.Change) {
		mu.Lock()
		defer mu.Unlock()
		store.Apply(c)
	}
	w, err := kube.NewWatcher(fakekube.New(objects...), "n1", emit, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	go w.Run(t.Context())
	if err := w.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range settings {
		emit(c)
	}
	emit(state.SetKernelDatapath{Kernel: true})
	emit(state.SetLocalAddrs{Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.1"), netip.MustParseAddr("192.0.2.1")}})
	emit(state.SetAttachment{Attachment: model.Attachment{ContainerID: "a", IfName: "eth0", OFPort: 20,
		IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}, MAC: model.MAC{2, 5: 2},
		Pod: model.PodRef{Namespace: "shop", Name: "a", UID: "a"}}})
	mu.Lock()
	defer mu.Unlock()
	view, _ := store.Take()
	return w, view
}

func planText(list []report.Flow) string {
	var b strings.Builder
	for _, f := range list {
		fmt.Fprintf(&b, "%s %d %s -> %s %s %v %s\n", f.Table, f.Priority, f.Match, f.Actions, f.Owner, f.Groups, f.Reason)
	}
	return b.String()
}

// TestPlan: what would change if manifests were applied or deleted is what changes when the API server has done it. A
// plan for nothing has no change, and all its flows are those of the node.
func TestPlan(t *testing.T) {
	settings := flowSettings(config.Default())
	w, view := planNode(t, settings, planObjects...)
	for _, tc := range []struct {
		name     string
		manifest string
		remove   bool
		// now are the objects that the API server has then in the place of those that begin alike.
		now      string
		owners   []string
		warnings []string
	}{
		{name: "nothing"},
		{name: "a policy without its types",
			manifest: `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: new, namespace: shop},
                spec: {podSelector: {matchLabels: {app: web}}, egress: [{to: [{podSelector: {},
                namespaceSelector: {}}]}]}}`,
			now: `{kind: NetworkPolicy, metadata: {name: new, namespace: shop},
                spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress],
                egress: [{to: [{podSelector: {}, namespaceSelector: {}}]}]}}`,
			owners: []string{"policy/shop/new", "policy/shop/old"}},
		{name: "a policy that goes", remove: true,
			manifest: `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: old, namespace: shop}}`,
			now:      "-{kind: NetworkPolicy, metadata: {name: old,", owners: []string{"policy/shop/old"}},
		{name: "a label that a rule selects",
			manifest: "{apiVersion: v1, kind: Namespace, metadata: {name: ops, labels: {team: x}}}",
			now:      `{kind: Namespace, metadata: {name: ops, labels: {team: x, kubernetes.io/metadata.name: ops}}}`,
			owners:   []string{"policy/shop/old"}},
		{name: "a Service as users write it",
			manifest: `{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {type: NodePort,
                sessionAffinity: ClientIP, ports: [{port: 80}]}}`,
			now: `{kind: Service, metadata: {name: web, namespace: shop}, spec: {type: NodePort,
                sessionAffinity: ClientIP, clusterIPs: [10.96.0.9], ports: [{port: 80, protocol: TCP,
                nodePort: 30080}]}}`,
			owners: []string{"service/shop/web"}},
		{name: "endpoints, which change groups",
			manifest: `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-1, namespace: shop,
                labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{port: 8081}],
                endpoints: [{addresses: [10.244.2.2]}, {addresses: [10.244.1.2]}]}`,
			now: `{kind: EndpointSlice, metadata: {name: web-1, namespace: shop,
                labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{name: '', port: 8081,
                protocol: TCP}], endpoints: [{addresses: [10.244.2.2]}, {addresses: [10.244.1.2]}]}`,
			owners: []string{"service/shop/web"}},
		{name: "a pod's labels",
			manifest: `{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: none}},
                spec: {containers: []}}`,
			now: `{kind: Pod, metadata: {name: a, namespace: shop, uid: a, labels: {app: none}},
                spec: {nodeName: n1}, status: {phase: Running, podIPs: [{ip: 10.244.1.2}]}}`},
		{name: "a node that goes", remove: true, manifest: "{apiVersion: v1, kind: Node, metadata: {name: n2}}",
			now: "-{kind: Node, metadata: {name: n2}", owners: []string{"node/n2", "policy/shop/old"}},
		{name: "kinds without flows", manifest: "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}}",
			warnings: []string{"Deployment web makes no flows by itself"}},
	} {
		var objects []json.RawMessage
		if tc.manifest != "" {
			text, err := yaml.YAMLToJSON([]byte(tc.manifest))
			if err != nil {
				t.Fatal(err)
			}
			objects = append(objects, text)
		}
		proposed, warnings, err := w.Proposed(objects, tc.remove)
		if err != nil || !slices.Equal(warnings, tc.warnings) {
			t.Errorf("%s: warnings %q, want %q; %v", tc.name, warnings, tc.warnings, err)
		}
		p, flowsOf := newPlan(view, settings, w.Replay, proposed)

		then := slices.Clone(planObjects)
		if tc.now != "" {
			gone := strings.HasPrefix(tc.now, "-")
			head, _, _ := strings.Cut(strings.TrimPrefix(tc.now, "-"), "}")
			head, _, _ = strings.Cut(head, ", labels")
			head, _, _ = strings.Cut(head, ", uid")
			then = slices.DeleteFunc(then, func(text string) bool { return strings.HasPrefix(text, head) })
			if !gone {
				then = append(then, tc.now)
			}
		}
		_, after := planNode(t, settings, then...)
		desired, err := flows.Compile(after)
		if err != nil {
			t.Fatal(err)
		}
		want := report.Compiled(desired, after, "")
		if diff := cmp.Diff(planText(want), planText(flowsOf(""))); diff != "" {
			t.Errorf("%s: -after the change +planned\n%s", tc.name, diff)
		}
		var owners []string
		for _, c := range p.Changes {
			owners = append(owners, c.Owner)
		}
		if !slices.Equal(owners, tc.owners) || len(p.Problems) > 0 {
			t.Errorf("%s: changes of %q, want %q; problems %q", tc.name, owners, tc.owners, p.Problems)
		}
	}
}

// TestPlanOfHeldPodCIDRs: pod CIDRs of the Node object that wait until those in use are free are not planned with.
func TestPlanOfHeldPodCIDRs(t *testing.T) {
	settings := flowSettings(config.Default())
	_, view := planNode(t, settings, planObjects...)
	changed := slices.Clone(planObjects)
	for i, text := range changed {
		changed[i] = strings.ReplaceAll(text, "podCIDRs: [10.244.1.0/24]", "podCIDRs: [10.244.9.0/24]")
	}
	w, _ := planNode(t, settings, changed...)
	_, flowsOf := newPlan(view, settings, w.Replay, nil)
	desired, err := flows.Compile(view)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(planText(report.Compiled(desired, view, "")), planText(flowsOf(""))); diff != "" {
		t.Errorf("-in use +planned\n%s", diff)
	}
}

// TestPlanProblems: what cannot be programmed is a problem, and an invalid object is an error.
func TestPlanProblems(t *testing.T) {
	settings := flowSettings(config.Default())
	w, view := planNode(t, settings, planObjects...)
	invalid := `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"bad","namespace":"shop"},
		"spec":{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/33"}}]}]}}`
	proposed, _, err := w.Proposed([]json.RawMessage{[]byte(invalid)}, false)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := newPlan(view, settings, w.Replay, proposed)
	if len(p.Problems) != 1 || !strings.Contains(p.Problems[0], "10.0.0.0/33") {
		t.Errorf("problems %q", p.Problems)
	}
	for text, want := range map[string]string{
		`{}`: "it needs apiVersion, kind and metadata.name",
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"x"},"spec":{"prots":[]}}`: `unknown field "spec.prots"`,
		`{"apiVersion":"policy.networking.k8s.io/v1alpha2","kind":"ClusterNetworkPolicy",
		"metadata":{"name":"x"},"spac":1}`: `unknown field "spac"`,
	} {
		_, _, err := w.Proposed([]json.RawMessage{[]byte(text)}, false)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestPlanOfNodeAnnotations: a manifest may annotate a node that has no annotations yet.
func TestPlanOfNodeAnnotations(t *testing.T) {
	settings := flowSettings(config.Default())
	w, view := planNode(t, settings, planObjects...)
	annotated := `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n2","annotations":{"example.org/rack":"7"}}}`
	proposed, warnings, err := w.Proposed([]json.RawMessage{[]byte(annotated)}, false)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("warnings %q, error %v", warnings, err)
	}
	if p, _ := newPlan(view, settings, w.Replay, proposed); len(p.Changes)+len(p.Problems) > 0 {
		t.Errorf("a foreign annotation changes %v, problems %q", p.Changes, p.Problems)
	}
}
