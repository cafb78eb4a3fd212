package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/test/lab/manifest"
	"github.com/weft-cni/weft/test/lab/podns"
)

var equatable = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})

// standing is a lab whose pods stand, as far as objects know: each has the next address of its node.
func standing(t *testing.T, family Family, text string) *Lab {
	t.Helper()
	file := filepath.Join(t.TempDir(), "f.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	set, err := manifest.Load([]string{file}, manifest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{opt: Options{Family: family}, set: set, pods: map[string]*pod{}}
	l.planNodes(set)
	for i, object := range set.Pods {
		p := &pod{key: keyOf(object), object: object, node: l.nodeNamed(object.Spec.NodeName)}
		for _, cidr := range p.node.podCIDRs {
			b := cidr.Addr().AsSlice()
			b[len(b)-1] = byte(10 + i)
			ip, _ := netip.AddrFromSlice(b)
			p.ips = append(p.ips, ip)
		}
		l.pods[p.key] = p
	}
	return l
}

const webAndDB = `
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: c, ports: [{name: http, containerPort: 8080}, {containerPort: 9}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, ports: [{name: http, containerPort: 8081}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: x, labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, ports: [{name: http, containerPort: 8081}, {containerPort: 5, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 9}]}
---
apiVersion: v1
kind: Service
metadata: {name: none}
spec: {selector: {app: absent}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: web}}
`

// Slices are derived as the endpoint slice controller does: by namespace and labels, per family, and one for each way
// in which named ports resolve.
func TestEndpointSlices(t *testing.T) {
	l := standing(t, Dual, strings.Replace(webAndDB, "metadata: {name: web}\nspec: {",
		"metadata: {name: web}\nspec: {ipFamilyPolicy: PreferDualStack, ", 1))
	got := map[string][]string{}
	for _, s := range l.services() {
		for _, slice := range endpointSlices(s, l.sortedPods()) {
			for _, e := range slice.Endpoints {
				for _, p := range slice.Ports {
					key := fmt.Sprintf("%s %s:%s", s.Name, slice.AddressType, *p.Name)
					got[key] = append(got[key], fmt.Sprintf("%s@%s %s:%d/%s", e.TargetRef.Name, *e.NodeName, e.Addresses[0], *p.Port,
						*p.Protocol))
				}
			}
			if !*slice.Endpoints[0].Conditions.Ready || slice.Labels["kubernetes.io/service-name"] != s.Name {
				t.Errorf("slice %+v", slice)
			}
		}
	}
	want := map[string][]string{
		"web IPv4:a": {"one@node1 10.244.0.10:8080/TCP", "two@node2 10.244.1.11:8081/TCP"},
		"web IPv4:b": {"one@node1 10.244.0.10:9/TCP", "two@node2 10.244.1.11:9/TCP"},
		"web IPv6:a": {"one@node1 fd10:244::a:8080/TCP", "two@node2 fd10:244:0:1::b:8081/TCP"},
		"web IPv6:b": {"one@node1 fd10:244::a:9/TCP", "two@node2 fd10:244:0:1::b:9/TCP"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
}

func TestEndpointSlicesAreBounded(t *testing.T) {
	var text strings.Builder
	for i := range 2*maxEndpoints + 1 {
		fmt.Fprintf(&text,
			"apiVersion: v1\nkind: Pod\nmetadata: {name: p%d, labels: {a: b}}\n"+
				"spec: {containers: [{name: c, ports: [{containerPort: 1}]}]}\n---\n", i)
	}
	text.WriteString("apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {a: b}, ports: [{port: 1}]}\n")
	l := standing(t, IPv4, text.String())
	names, total := map[string]bool{}, 0
	for _, slice := range endpointSlices(l.services()[0], l.sortedPods()) {
		names[slice.Name] = true
		total += len(slice.Endpoints)
		if len(slice.Endpoints) > maxEndpoints {
			t.Errorf("slice %s has %d endpoints", slice.Name, len(slice.Endpoints))
		}
	}
	if len(names) != 3 || total != 2*maxEndpoints+1 {
		t.Errorf("%d slices with %d endpoints, want 3 with %d", len(names), total, 2*maxEndpoints+1)
	}
}

func TestServiceAddresses(t *testing.T) {
	for _, tc := range []struct {
		family Family
		spec   string
		want   []corev1.IPFamily
	}{
		{IPv4, "", []corev1.IPFamily{corev1.IPv4Protocol}},
		{IPv6, "", []corev1.IPFamily{corev1.IPv6Protocol}},
		{Dual, "", []corev1.IPFamily{corev1.IPv4Protocol}},
		{Dual, "ipFamilies: [IPv6], ", []corev1.IPFamily{corev1.IPv6Protocol}},
		{Dual, "ipFamilyPolicy: PreferDualStack, ", []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}},
		{Dual, "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6], ", []corev1.IPFamily{corev1.IPv6Protocol,
			corev1.IPv4Protocol}},
		{Dual, "ipFamilies: [IPv6, IPv4], ", []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}},
		{IPv4, "ipFamilyPolicy: PreferDualStack, ", []corev1.IPFamily{corev1.IPv4Protocol}},
	} {
		l := standing(t, tc.family, strings.Replace(webAndDB, "metadata: {name: web}\nspec: {",
			"metadata: {name: web}\nspec: {"+tc.spec, 1))
		for _, s := range l.services() {
			if s.Name != "web" {
				continue
			}
			if diff := cmp.Diff(tc.want, s.Spec.IPFamilies); diff != "" || len(s.Spec.ClusterIPs) != len(tc.want) {
				t.Errorf("%s, %q: addresses %v, families (-want +got):\n%s", tc.family, tc.spec, s.Spec.ClusterIPs, diff)
			}
			for i, text := range s.Spec.ClusterIPs {
				ip := netip.MustParseAddr(text)
				if ip.Is4() != (s.Spec.IPFamilies[i] == corev1.IPv4Protocol) || !services4.Contains(ip) && !services6.Contains(ip) {
					t.Errorf("%s, %q: address %s as %s", tc.family, tc.spec, ip, s.Spec.IPFamilies[i])
				}
			}
		}
	}
	taken := map[netip.Addr]bool{}
	for i := range 3000 {
		serviceIPs([]corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, fmt.Sprint("ns/", i), taken)
	}
	if len(taken) != 6000 {
		t.Errorf("3000 Services have %d addresses, want 6000 different ones", len(taken))
	}
}

const everythingPolicy = webAndDB + `
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all}
spec:
  podSelector: {matchLabels: {app: web}, matchExpressions: [{key: x, operator: NotIn, values: [y]}]}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - podSelector: {}
          namespaceSelector: {matchLabels: {n: m}}
        - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
      ports:
        - {port: http}
        - {protocol: UDP, port: 5, endPort: 7}
        - {protocol: SCTP}
  egress:
    - {}
`

// Everything that a NetworkPolicy can say reaches the reference.
func TestPoliciesAreConverted(t *testing.T) {
	l := standing(t, IPv4, everythingPolicy)
	c, err := l.cluster(l.sortedPods())
	if err != nil {
		t.Fatal(err)
	}
	want := policy.Policy{
		Namespace: "default", Name: "all",
		PodSelector: policy.Selector{MatchLabels: map[string]string{"app": "web"}, MatchExpressions: []policy.Requirement{
			{Key: "x", Operator: policy.NotIn, Values: []string{"y"}}}},
		Types: []policy.Direction{policy.Ingress, policy.Egress},
		Ingress: []policy.Rule{{
			Peers: []policy.Peer{
				{PodSelector: &policy.Selector{}, NamespaceSelector: &policy.Selector{MatchLabels: map[string]string{"n": "m"}}},
				{IPBlock: &policy.IPBlock{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{
					netip.MustParsePrefix("10.1.0.0/16")}}},
			},
			Ports: []policy.Port{{Name: "http"}, {Protocol: policy.UDP, Number: 5, EndPort: 7}, {Protocol: policy.SCTP}},
		}},
		Egress: []policy.Rule{{}},
	}
	if diff := cmp.Diff([]policy.Policy{want}, c.Policies, equatable); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	pod := policy.Pod{Namespace: "x", Name: "other", Node: "node2", Labels: map[string]string{"app": "web"},
		Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.12")},
		Ports: []policy.ContainerPort{{Name: "http", Protocol: policy.TCP, Number: 8081}}}
	if diff := cmp.Diff(pod, c.Pods[2], equatable); diff != "" {
		t.Errorf("pod (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]netip.Addr{netip.MustParseAddr("172.31.0.11"), netip.MustParseAddr("10.244.0.1")},
		c.Nodes["node1"], equatable); diff != "" {
		t.Errorf("addresses of node1 (-want +got):\n%s", diff)
	}
	if c.Namespaces["x"]["kubernetes.io/metadata.name"] != "x" {
		t.Errorf("namespaces %v", c.Namespaces)
	}
}

// What is expected about a port, and whether packets kept it.
func TestExpectations(t *testing.T) {
	l := standing(t, IPv4, webAndDB+`
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p}
spec: {podSelector: {}, ingress: [{ports: [{port: 8080}]}]}
`)
	v, err := l.view()
	if err != nil {
		t.Fatal(err)
	}
	from := l.pods["x/other"]
	got := map[string]Expectation{}
	for _, target := range v.targets {
		got[target.String()], _ = v.expected(from, target)
	}
	want := map[string]Expectation{
		"pod default/one 8080/TCP": Allow, "pod default/one 9/TCP": Deny, "pod default/two 8081/TCP": Deny,
		"pod x/other 8081/TCP": Allow, "pod x/other 5/UDP": Allow,
		// One endpoint listens on 8080, the other on 8081; the third has none.
		"service default/web 80/TCP": Either, "service default/web 9/TCP": Deny, "service default/none 80/TCP": Reject,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("expected results (-want +got):\n%s", diff)
	}
	for _, target := range v.targets {
		expected, _ := v.expected(from, target)
		for _, tc := range []struct {
			outcome podns.Outcome
			reached string
			want    bool
		}{
			{podns.Silent, "", expected != Allow && expected != Reject}, {podns.Refused, "", expected != Allow}, {podns.Answered,
				"another/pod", false},
			{podns.Answered, "default/two", false},
			{podns.Answered, "default/one", strings.HasSuffix(target.String(), "default/one 8080/TCP") ||
				target.String() == "service default/web 80/TCP"},
		} {
			if got := v.kept(from, target, Probe{Expected: expected, Outcome: tc.outcome, Reached: tc.reached}); got != tc.want {
				t.Errorf("%s, expected %s, %s by %q: kept %t, want %t", target, expected, tc.outcome, tc.reached, got, tc.want)
			}
		}
	}
}

func TestNameTables(t *testing.T) {
	const trace = "Flow: tcp\n\nbridge(\"weft\")\n--------------\n 0. in_port=16, priority 100\n    goto_table:5\n" +
		"90. priority 100\n    output:1\n\nbridge(\"br-phy\")\n----\n 0. priority 0\n    NORMAL\n"
	const want = "Flow: tcp\n\nbridge(\"weft\")\n--------------\n 0 Classifier: in_port=16, priority 100\n" +
		"    goto_table:ARPND\n90 Output: priority 100\n    output:1\n\nbridge(\"br-phy\")\n----\n 0. priority 0\n" +
		"    NORMAL\n"
	if diff := cmp.Diff(want, nameTables(trace)); diff != "" {
		t.Errorf("trace (-want +got):\n%s", diff)
	}
}

func TestPlan(t *testing.T) {
	seen := map[netip.Addr]bool{}
	for i := range manifest.MaxNodes {
		for _, prefix := range append(Dual.node(0, i), Dual.podCIDRs(i)...) {
			if seen[prefix.Addr()] || !prefix.IsValid() {
				t.Errorf("node %d has %s, which is not its own", i, prefix)
			}
			seen[prefix.Addr()] = true
		}
	}
	if got := IPv6.api().String(); got != "[fd57:6566:7461::1]:6443" {
		t.Errorf("the API of an IPv6 lab is at %s", got)
	}
	for _, name := range []string{"", "Lab", "0lab", "waytoolongname", "a-b"} {
		if _, err := groupOf(name); err == nil {
			t.Errorf("the name %q is taken", name)
		}
	}
}
