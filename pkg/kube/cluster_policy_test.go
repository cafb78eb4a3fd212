package kube_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/kube/cnp"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/state"
)

// TestClusterNetworkPolicyFailsClosed: what is not understood of a rule accepts nothing, and denies everything if it is
// to deny or to pass. Other rules are as they are.
func TestClusterNetworkPolicyFailsClosed(t *testing.T) {
	const peer = `{namespaces: {}}`
	for _, c := range []struct{ rule, want string }{
		{`{action: Accept, PEERS: [` + peer + `]}`, ""},
		{`{action: Allow, PEERS: [` + peer + `]}`, `unknown action "Allow"`},
		{`{action: Accept, PEERS: []}`, "no peers"},
		{`{action: Accept, PEERS: [{}]}`, "not exactly one field"},
		{`{action: Deny, PEERS: [` + peer + `, {services: {}}]}`, "not exactly one field"},
		{`{action: Pass, PEERS: [{namespaces: {}, networks: [10.0.0.0/8]}]}`, "not exactly one field"},
		{`{action: Accept, PEERS: [{domainNames: [com]}]}`, "domainNames: invalid domain name"},
		{`{action: Accept, PEERS: [{domainNames: ["a.*.example.com"]}]}`, "domainNames: invalid domain name"},
		{`{action: Deny, PEERS: [{domainNames: [example.com]}]}`, "domainNames"},
		{`{action: Pass, PEERS: [{domainNames: [example.com]}]}`, "domainNames"},
		{`{action: Deny, PEERS: [{networks: [10.0.0.0]}]}`, "networks"},
		{`{action: Deny, PEERS: [{namespaces: {matchExpressions: [{key: a, operator: Is}]}}]}`, "unknown operator"},
		{`{action: Deny, PEERS: [` + peer + `], protocols: [{}]}`, "not exactly one field"},
		{`{action: Deny, PEERS: [` + peer + `], protocols: [{tcp: {destinationPort: {}}}]}`, "destinationPort"},
		{`{action: Deny, PEERS: [` + peer + `], protocols: [{tcp: {destinationPort: {number: 70000}}}]}`, "invalid port"},
		{`{action: Deny, PEERS: [` + peer + `], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 9}}}}]}`,
			"the range begins at 9"},
		{`{action: Deny, PEERS: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]}`, "only pods"},
	} {
		for side, peers := range map[string]string{"ingress": "from", "egress": "to"} {
			rules := strings.ReplaceAll(c.rule, "PEERS", peers)
			text := fmt.Sprintf("{metadata: {name: p}, spec: {tier: Admin, subject: {namespaces: {}}, %s: [%s]}}", side, rules)
			var object cnp.ClusterNetworkPolicy
			if err := yaml.Unmarshal([]byte(text), &object); err != nil {
				t.Fatal(err)
			}
			p := kube.ClusterNetworkPolicy(&object)
			err := p.Check()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", text, err, c.want)
			}
			verdict := policy.Eval(policy.Cluster{Namespaces: map[string]map[string]string{"ns": {}},
				Policies: []policy.Policy{p}, Pods: []policy.Pod{{Namespace: "ns", Name: "a", Addrs: addrs("10.0.0.1")},
					{Namespace: "ns", Name: "b", Addrs: addrs("10.0.0.2")}}},
				policy.Packet{Src: addrs("10.0.0.1")[0], Dst: addrs("10.0.0.2")[0], Protocol: policy.UDP, Port: 5})
			if accepts := strings.Contains(text, "Accept"); verdict.Allowed != accepts {
				t.Errorf("%s: %+v", text, verdict)
			}
		}
	}
}

// TestClusterNetworkPolicyAsAWhole: what is wrong with a policy itself closes all of its rules, for all pods that it
// may mean.
func TestClusterNetworkPolicyAsAWhole(t *testing.T) {
	for spec, want := range map[string]string{
		`tier: Developer, subject: {namespaces: {}}`: `unknown tier "Developer"`,
		`tier: Admin`: "subject",
		`tier: Baseline, subject: {namespaces: {}}, priority: 1001`: "1001 is not from 0 to 1000",
		`tier: Admin, subject: {serviceAccounts: {}}`:               "subject",
	} {
		var object cnp.ClusterNetworkPolicy
		text := "{metadata: {name: p}, spec: {" + spec + ", ingress: [{action: Accept, from: [{namespaces: {}}]}, " +
			"{action: Pass, from: [{namespaces: {matchLabels: {a: b}}}]}]}}"
		if err := yaml.Unmarshal([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
		p := kube.ClusterNetworkPolicy(&object)
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", spec, err, want)
		}
		pod := func(name, addr string) policy.Pod { return policy.Pod{Namespace: "ns", Name: name, Addrs: addrs(addr)} }
		verdict := policy.Eval(policy.Cluster{Namespaces: map[string]map[string]string{"ns": {}},
			Policies: []policy.Policy{p}, Pods: []policy.Pod{pod("a", "10.0.0.1"), pod("b", "10.0.0.2")}},
			policy.Packet{Src: addrs("10.0.0.1")[0], Dst: addrs("10.0.0.2")[0], Protocol: policy.UDP, Port: 5})
		if verdict.Allowed {
			t.Errorf("%s: %+v", spec, verdict)
		}
	}
}

// TestKindComesAndGoes: without the CustomResourceDefinition there are no ClusterNetworkPolicies, and the status
// says so. When the API server has the kind, its policies are emitted; when it does not any more, they are gone.
func TestKindComesAndGoes(t *testing.T) {
	t.Parallel()
	store := apiserver.NewStore()
	var served, other, hidden atomic.Bool
	path := "/apis/" + cnp.GroupVersion.Group
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.URL.Path == path && hidden.Load():
			_ = json.NewEncoder(w).Encode(metav1.APIGroup{Versions: []metav1.GroupVersionForDiscovery{{Version: "v1alpha2"}}})
		case req.URL.Path == path+"/v1alpha2" && hidden.Load():
			_ = json.NewEncoder(w).Encode(metav1.APIResourceList{APIResources: []metav1.APIResource{{Name: cnp.Resource}}})
		case strings.HasPrefix(req.URL.Path, path) && hidden.Load():
			http.NotFound(w, req)
		case req.URL.Path == path && other.Load():
			_ = json.NewEncoder(w).Encode(metav1.APIGroup{Versions: []metav1.GroupVersionForDiscovery{{Version: "v1alpha1"}}})
		case strings.HasPrefix(req.URL.Path, path) && !served.Load():
			http.NotFound(w, req)
		default:
			store.Handler().ServeHTTP(w, req)
		}
	}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	have := map[model.PolicyID]policy.Policy{}
	w := watch(t, client, func(c state.Change) {
		mu.Lock()
		defer mu.Unlock()
		switch c := c.(type) {
		case state.SetPolicy:
			have[c.Policy.ID()] = c.Policy
		case state.DeletePolicy:
			delete(have, c.ID)
		}
	}, func(w *kube.Watcher) { w.SetKindPause(10 * time.Millisecond) })
	count := func(n int) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return len(have) == n }
	}
	synced(t, w)
	testenv.Until(t, "the absence is said", func() bool {
		return strings.Contains(w.ClusterPoliciesAbsent(), "has no policy.networking.k8s.io/v1alpha2 (install")
	})
	if err := w.Lag(); err != nil {
		t.Error(err)
	}
	other.Store(true)
	testenv.Until(t, "another version is said", func() bool {
		return strings.HasSuffix(w.ClusterPoliciesAbsent(), "but v1alpha1")
	})
	p := &cnp.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	p.Spec.Tier = "Baseline"
	if err := store.Apply(apiserver.ClusterNetworkPolicies, []apiserver.Object{p}); err != nil {
		t.Fatal(err)
	}
	served.Store(true)
	testenv.Until(t, "the policy is emitted", count(1))
	mu.Lock()
	if w.ClusterPoliciesAbsent() != "" || have[model.ClusterNetworkPolicy("p")].Tier != model.BaselineTier {
		t.Errorf("absent: %q, policies %v", w.ClusterPoliciesAbsent(), have)
	}
	mu.Unlock()
	q := &cnp.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "q"}}
	if err := store.Apply(apiserver.ClusterNetworkPolicies, []apiserver.Object{p, q}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "another comes by the watch", count(2))
	hidden.Store(true)
	server.CloseClientConnections()
	failing := func(want string) func() bool {
		return func() bool {
			return slices.ContainsFunc(w.Feeds(), func(f kube.FeedStatus) bool {
				return f.Resource == cnp.Resource && (want == "" && f.Err == nil || f.Err != nil && want != "" &&
					strings.Contains(f.Err.Error(), want))
			})
		}
	}
	testenv.Until(t, "a 404 of a kind that the server lists is a fault", failing("answers a list of them with 404"))
	if !count(2)() {
		t.Error("an answer of 404 ended the policies")
	}
	hidden.Store(false)
	testenv.Until(t, "the fault is over", failing(""))
	served.Store(false)
	server.CloseClientConnections()
	testenv.Until(t, "the policies are gone with the kind", count(0))
}
