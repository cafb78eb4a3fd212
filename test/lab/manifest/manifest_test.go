package manifest_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/test/lab/manifest"
)

// write puts files into a directory of their own.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func pod(name string) string {
	return fmt.Sprintf(
		"apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [{name: c, ports: [{containerPort: 80}]}]}\n",
		name)
}

// Every mistake is told with file, line and reason.
func TestMistakes(t *testing.T) {
	const policyHead = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n" +
		"  podSelector: {}\n"
	const serviceHead = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n"
	const podHead = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n"
	const container = "  containers:\n    - name: c\n      ports: [{containerPort: 80}]\n"
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"not YAML", "apiVersion: v1\nkind: [\n", []string{"f.yaml:2: not YAML: did not find expected node content"}},
		{"not YAML in one document, a mistake in the next", "a: b: c\n---\nkind: Pod\n", []string{
			"f.yaml:1: not YAML: mapping values are not allowed in this context",
			"f.yaml:3: Pod: not a Kubernetes object: it needs apiVersion and kind"}},
		{"a Helm template", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {{ .Release.Name }}-x\n",
			[]string{"f.yaml:3: not YAML: ", "give the lab what `helm template` makes of it"}},
		{"tabs", "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: x\n",
			[]string{"f.yaml:4: not YAML: found character that cannot start any token; YAML is not indented with tabs"}},
		{"a list", "- a\n- b\n", []string{"f.yaml:1: not a Kubernetes object: it needs apiVersion and kind"}},
		{"unknown kind", pod("p") + "---\napiVersion: v1\nkind: Pdo\n",
			[]string{"f.yaml:7: Pdo kind: Kubernetes has no kind Pdo in v1"}},
		{"kind of another version", "apiVersion: apps/v1beta1\nkind: Deployment\nmetadata: {name: d}\n",
			[]string{"the manifests have no pods; a lab does not know Deployment of apps/v1beta1"}},
		{"unknown field", podHead + "  containres: []\n" + container,
			[]string{"f.yaml:5: Pod p spec.containres: unknown field"}},
		{"unknown field, deep",
			podHead + "  containers:\n    - name: c\n      ports:\n        - containerPort: 80\n          protokol: UDP\n",
			[]string{"f.yaml:9: Pod p spec.containers[0].ports[0].protokol: unknown field"}},
		{"field in the wrong case", podHead + "  Containers: []\n" + container,
			[]string{"f.yaml:5: Pod p spec.Containers: unknown field"}},
		{"key twice", podHead + container + "  nodeName: node1\n  nodeName: node2\n",
			[]string{"f.yaml:9: Pod p spec.nodeName: duplicate field"}},
		{"merge key", "x: &x [a]\ny:\n  <<: *x\n", []string{"f.yaml:3: a merge key << takes a mapping, or a list of them"}},
		{"merge key of itself", "x: &x\n  y: {<<: *x}\n",
			[]string{"f.yaml:2: the merge key << stands for something that it is a part of"}},
		{"wrong type", podHead + "  containers:\n    - name: c\n      ports:\n        - containerPort: eighty\n",
			[]string{"f.yaml:8: Pod p spec.containers[0].ports[0].containerPort: a string is not allowed here"}},
		{"a label with a number, and a time", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n" +
			"  creationTimestamp: yesterday\n" +
			"  labels:\n    app: web\n    n: 1\n    t: true\nspec:\n" + container + "  containres: []\n", []string{
			`f.yaml:5: Pod p metadata.creationTimestamp: parsing time "yesterday"`,
			`f.yaml:8: Pod p metadata.labels.n: 1 is a number, and a string is needed; quote it: "1"`,
			`f.yaml:9: Pod p metadata.labels.t: true is a boolean, and a string is needed; quote it: "true"`,
			"f.yaml:14: Pod p spec.containres: unknown field"}},
		{"six mistakes in a policy", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n" +
			"  podSelector: {matchlabels: {a: b}}\n  policyTypes: [ingress]\n  ingress:\n  - from:\n" +
			"    - ipBlock: {cidr: 10.0.0.0/33}\n" +
			"    ports:\n    - port: 99999\n    - port: \"80\"\n    - {port: http, endPort: 90}\n", []string{
			"f.yaml:5: NetworkPolicy p spec.podSelector.matchlabels: unknown field",
			`f.yaml:6: NetworkPolicy p spec.policyTypes[0]: "ingress" is not allowed`,
			"f.yaml:9: NetworkPolicy p spec.ingress[0].from[0].ipBlock.cidr: ",
			"f.yaml:11: NetworkPolicy p spec.ingress[0].ports[0].port: 99999 is not a port",
			`f.yaml:12: NetworkPolicy p spec.ingress[0].ports[1].port: "80" is not a port's name`,
			"f.yaml:13: NetworkPolicy p spec.ingress[0].ports[2].endPort: needs a port that is a number"}},
		{"no name", "apiVersion: v1\nkind: Pod\nmetadata: {}\n", []string{"f.yaml:3: Pod metadata: name is missing"}},
		{"bad name", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: No_Name\n",
			[]string{`f.yaml:4: Pod No_Name metadata.name: "No_Name" is not a name`}},
		{"bad label", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: n\n  labels:\n    a b: c\n",
			[]string{`f.yaml:5: Namespace n metadata.labels: "a b" is not a label`}},
		{"a port of 0", podHead + "  containers:\n    - name: c\n      ports: [{containerPort: 0}]\n",
			[]string{"f.yaml:7: Pod p spec.containers[0].ports[0].containerPort: 0 is not a port"}},
		{"a port above 65535", podHead + "  containers:\n    - name: c\n      ports: [{containerPort: 65536}]\n",
			[]string{"containerPort: 65536 is not a port"}},
		{"a protocol", podHead + "  containers:\n    - name: c\n      ports: [{containerPort: 1, protocol: tcp}]\n",
			[]string{`protocol: "tcp" is not allowed; allowed: TCP, UDP, SCTP`}},
		{"two ports of one name",
			podHead + "  containers:\n    - name: c\n      ports: [{name: a, containerPort: 1}, {name: a, containerPort: 2}]\n",
			[]string{`f.yaml:7: Pod p spec.containers[0].ports[1].name: the pod has two ports called "a"`}},
		{"two pods with one name", pod("p") + "---\n" + pod("q") + "---\n" + pod("p"),
			[]string{"f.yaml:13: Pod p metadata.name: there are two of Pod default/p; the other is at "}},
		{"a workload's pod and a pod",
			pod("d-0") + "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n" +
				"  selector: {matchLabels: {a: b}}\n  template:\n    metadata: {labels: {a: b}}\n" +
				"    spec: {containers: [{name: c, ports: [{containerPort: 1}]}]}\n",
			[]string{"f.yaml:8: Deployment d metadata.name: there are two of Pod default/d-0"}},
		{"two host networks, one port", podHead + "  hostNetwork: true\n  nodeName: node1\n" + container + "---\n" +
			strings.Replace(podHead, "name: p", "name: q", 1) + "  hostNetwork: true\n  nodeName: node1\n" + container,
			[]string{"there are two of port 80/TCP of node node1; the other is at "}},
		{"a node's name", "apiVersion: v1\nkind: Node\nmetadata: {name: outside}\n",
			[]string{`f.yaml:3: Node outside metadata.name: a lab has something else by the name "outside"`}},
		{"a namespaced node", "apiVersion: v1\nkind: Node\nmetadata: {name: n, namespace: x}\n",
			[]string{"f.yaml:3: Node x/n metadata.namespace: a Node is in no namespace"}},
		{"the selector misses the template",
			"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  selector: {matchLabels: {a: c}}\n" +
				"  template:\n    metadata: {labels: {a: b}}\n    spec: {containers: [{name: c, ports: [{containerPort: 1}]}]}\n",
			[]string{"f.yaml:5: Deployment d spec.selector: a=c does not match the labels of the template, a=b"}},
		{"replicas", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  replicas: -1\n",
			[]string{"f.yaml:5: Deployment d spec.replicas: -1 is not allowed; allowed: 0 to 1000"}},
		{"a Service without ports", serviceHead + "  selector: {a: b}\n",
			[]string{"f.yaml:4: Service s spec: ports are missing"}},
		{"a Service's ports without names",
			serviceHead + "  selector: {a: b}\n  ports:\n    - port: 1\n      name: a\n    - port: 2\n", []string{
				"f.yaml:9: Service s spec.ports[1]: name is missing"}},
		{"a Service's port twice", serviceHead + "  selector: {a: b}\n  ports: [{name: a, port: 1}, {name: b, port: 1}]\n",
			[]string{"f.yaml:6: Service s spec.ports[1]: the Service has this port twice"}},
		{"a Service's address", serviceHead + "  clusterIP: ten\n  ports: [{port: 1}]\n",
			[]string{`f.yaml:5: Service s spec.clusterIP: "ten" is not an address`}},
		{"a Service's addresses", serviceHead + "  clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.2]\n  ports: [{port: 1}]\n",
			[]string{"f.yaml:6: Service s spec.clusterIPs: the first has to be clusterIP"}},
		{"two Services, one address", serviceHead + "  clusterIP: 10.96.0.1\n  ports: [{port: 1}]\n---\n" + strings.Replace(
			serviceHead, "name: s", "name: t", 1) + "  clusterIP: 10.96.0.1\n  ports: [{port: 1}]\n",
			[]string{"f.yaml:12: Service t spec.clusterIP: there are two of cluster IP 10.96.0.1; the other is at "}},
		{"a node port", serviceHead + "  type: NodePort\n  ports: [{port: 1, nodePort: 80}]\n",
			[]string{"f.yaml:6: Service s spec.ports[0].nodePort: 80 is not from 30000 to 32767"}},
		{"a traffic policy", serviceHead + "  internalTrafficPolicy: local\n  ports: [{port: 1}]\n",
			[]string{`f.yaml:5: Service s spec.internalTrafficPolicy: "local" is not allowed; allowed: Cluster, Local`}},
		{"affinity of a Service", serviceHead + "  sessionAffinity: Client\n  ports: [{port: 1}]\n",
			[]string{`f.yaml:5: Service s spec.sessionAffinity: "Client" is not allowed; allowed: None, ClientIP`}},
		{"a balancer without one",
			serviceHead + "  ports: [{port: 1}]\nstatus: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n", []string{
				"f.yaml:6: Service s status.loadBalancer: only a Service of type LoadBalancer has one"}},
		{"a slice of no Service",
			"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv4\n" +
				"endpoints: [{addresses: [\"fd00::1\"]}]\nports: [{name: a}]\n", []string{
				"f.yaml:3: EndpointSlice s metadata: the label kubernetes.io/service-name is missing",
				"f.yaml:5: EndpointSlice s endpoints[0].addresses: fd00::1 is not of type IPv4",
				"f.yaml:6: EndpointSlice s ports[0]: port is missing"}},
		{"a policy's type", policyHead + "  policyTypes: [Ingres]\n",
			[]string{`f.yaml:6: NetworkPolicy p spec.policyTypes[0]: "Ingres" is not allowed; allowed: Ingress, Egress`}},
		{"a policy's selector",
			"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n" +
				"  podSelector: {matchExpressions: [{key: a, operator: Like}]}\n",
			[]string{`f.yaml:5: NetworkPolicy p spec.podSelector: "Like" is not a valid label selector operator`}},
		{"an empty peer", policyHead + "  ingress:\n    - from: [{}]\n",
			[]string{"f.yaml:7: NetworkPolicy p spec.ingress[0].from[0]: needs a podSelector, a namespaceSelector or an " +
				"ipBlock"}},
		{"ipBlock beside a selector",
			policyHead + "  egress:\n    - to:\n        - podSelector: {}\n          ipBlock: {cidr: 10.0.0.0/8}\n", []string{
				"f.yaml:9: NetworkPolicy p spec.egress[0].to[0].ipBlock: cannot stand beside a selector"}},
		{"a block that is none", policyHead + "  egress: [{to: [{ipBlock: {cidr: 10.0.0.0}}]}]\n",
			[]string{"f.yaml:6: NetworkPolicy p spec.egress[0].to[0].ipBlock.cidr: ParsePrefix"}},
		{"an exception outside",
			policyHead + "  egress:\n    - to:\n        - ipBlock:\n            cidr: 10.0.0.0/8\n            except:\n" +
				"              - 10.1.0.0/16\n              - 11.0.0.0/16\n",
			[]string{"f.yaml:12: NetworkPolicy p spec.egress[0].to[0].ipBlock.except[1]: 11.0.0.0/16 is not a part of " +
				"10.0.0.0/8"}},
		{"endPort without a number", policyHead + "  ingress: [{ports: [{port: http, endPort: 90}]}]\n",
			[]string{"f.yaml:6: NetworkPolicy p spec.ingress[0].ports[0].endPort: needs a port that is a number"}},
		{"endPort below the port", policyHead + "  ingress: [{ports: [{port: 80, endPort: 79}]}]\n",
			[]string{"endPort: 79 is less than the port 80"}},
		{"no pods at all", "# nothing\n---\n", []string{"the manifests have no pods"}},
		{"all at once, in order",
			"kind: X\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: A}\n---\napiVersion: v1\nkind: Pod\n" +
				"metadata: {name: b, labels: {a b: c}}\nspec:\n  affinities: {}\n",
			[]string{"4 problems", "f.yaml:1: X: not a Kubernetes object", "f.yaml:5: Pod A metadata.name",
				"f.yaml:9: Pod b metadata.labels: ", "f.yaml:11: Pod b spec.affinities: unknown field"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := write(t, map[string]string{"f.yaml": tc.text})
			set, err := manifest.Load([]string{dir}, manifest.Options{ServiceCIDRs: []netip.Prefix{
				netip.MustParsePrefix("10.96.0.0/16")}})
			if err == nil {
				t.Fatalf("no error; want %q", tc.want)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error\n%v\nwant one that has %q", err, want)
				}
			}
			if len(set.Pods)+len(set.Nodes) > 0 {
				t.Errorf("part of bad manifests was returned: %+v", set)
			}
		})
	}
}

func TestFilesAndOptions(t *testing.T) {
	dir := write(t, map[string]string{"a.yaml": pod("a"), "sub/b.yml": pod("b"),
		"c.json":       `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"},"spec":{"containers":[{"name":"c","ports":[{"containerPort":1}]}]}}`,
		".hidden.yaml": "nonsense: [", ".git/x.yaml": "nonsense: [", "README.md": "nonsense: ["})
	set := load(t, manifest.Options{}, dir)
	if diff := cmp.Diff([]string{"default/a", "default/c", "default/b"}, names(set)); diff != "" {
		t.Errorf("pods (-want +got):\n%s", diff)
	}
	other := write(t, map[string]string{"a.yaml": pod("a")})
	if _, err := manifest.Load([]string{dir, other}, manifest.Options{}); err == nil ||
		!strings.Contains(err.Error(), "there are two of Pod default/a") {
		t.Errorf("one pod in two directories: %v", err)
	}
	for _, paths := range [][]string{{filepath.Join(dir, "missing")}, {dir, t.TempDir()}} {
		if _, err := manifest.Load(paths, manifest.Options{}); err == nil {
			t.Errorf("Load(%v) succeeded", paths)
		}
	}
	nodes := write(t, map[string]string{"n.yaml": "apiVersion: v1\nkind: Node\nmetadata: {name: one}\n---\n" + pod("p")})
	var problems manifest.Problems
	if _, err := manifest.Load([]string{nodes}, manifest.Options{Nodes: 3}); !errors.As(err, &problems) ||
		!strings.Contains(err.Error(), "3 asked for, but the manifests describe 1") {
		t.Errorf("--nodes beside Nodes: %v", err)
	}
	if _, err := manifest.Load([]string{dir}, manifest.Options{Nodes: manifest.MaxNodes + 1}); !errors.As(err, &problems) {
		t.Errorf("too many nodes: %v", err)
	}
}

func load(t *testing.T, opt manifest.Options, paths ...string) manifest.Set {
	t.Helper()
	set, err := manifest.Load(paths, opt)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func names(s manifest.Set) (names []string) {
	for _, p := range s.Pods {
		names = append(names, p.Namespace+"/"+p.Name)
	}
	return names
}

const workloads = `
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {disk: ssd}}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {disk: ssd}}
---
apiVersion: v1
kind: Node
metadata: {name: n3}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: ignored}
data: {a: b}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template: &template
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: c
          image: nginx
          resources: {limits: {cpu: "1"}}
          readinessProbe: {httpGet: {path: /, port: http}}
          ports: [{name: http, containerPort: 80}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  replicas: 2
  ordinals: {start: 5}
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      nodeSelector: {disk: ssd}
      containers: [{name: c, ports: [{containerPort: 5432}]}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: log}
spec:
  selector: {matchLabels: {app: log}}
  template:
    metadata: {labels: {app: log}}
    spec:
      nodeSelector: {kubernetes.io/hostname: n3}
      containers: [{name: c, ports: [{containerPort: 1}, {containerPort: 1, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: pinned}
spec:
  nodeName: n2
  containers: [{name: c, ports: [{containerPort: 1}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{port: 8080, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: same, namespace: shop}
spec:
  selector: {app: web}
  ports: [{port: 80}]
`

func TestExpansion(t *testing.T) {
	set := load(t, manifest.Options{}, write(t, map[string]string{"all.yaml": workloads}))
	want := []string{"shop/web-0", "shop/web-1", "shop/web-2", "shop/web-3", "shop/db-5", "shop/db-6", "default/log-n3",
		"default/pinned"}
	if diff := cmp.Diff(want, names(set)); diff != "" {
		t.Errorf("pods (-want +got):\n%s", diff)
	}
	nodes := map[string]string{}
	for _, p := range set.Pods {
		nodes[p.Name] = p.Spec.NodeName
	}
	if nodes["web-0"] == nodes["web-1"] || nodes["web-1"] == nodes["web-2"] || nodes["web-0"] != nodes["web-3"] {
		t.Errorf("the Deployment is not spread over three nodes in turn: %v", nodes)
	}
	if nodes["db-5"] == nodes["db-6"] || nodes["db-5"] == "n3" || nodes["db-6"] == "n3" || nodes["log-n3"] != "n3" ||
		nodes["pinned"] != "n2" {
		t.Errorf("selectors and names of nodes are not heeded: %v", nodes)
	}
	if got := set.Pods[4].Labels; got["statefulset.kubernetes.io/pod-name"] != "db-5" || got["app"] != "db" {
		t.Errorf("labels of a StatefulSet's pod: %v", got)
	}
	if diff := cmp.Diff([]string{"ConfigMap"}, set.Ignored); diff != "" {
		t.Errorf("ignored (-want +got):\n%s", diff)
	}
	var namespaces []string
	for _, n := range set.Namespaces {
		namespaces = append(namespaces, n.Name+"="+n.Labels["kubernetes.io/metadata.name"])
	}
	if diff := cmp.Diff([]string{"default=default", "shop=shop"}, namespaces); diff != "" {
		t.Errorf("namespaces (-want +got):\n%s", diff)
	}
	if p := set.Services[1].Spec.Ports[0]; p.TargetPort.IntValue() != 80 || p.Protocol != "TCP" {
		t.Errorf("defaults of a Service's port: %+v", p)
	}
}

// An edit of one workload leaves the pods of the others where they are.
func TestPlacementIsStable(t *testing.T) {
	places := func(text string) map[string]string {
		at := map[string]string{}
		for _, p := range load(t, manifest.Options{Nodes: 3}, write(t, map[string]string{"f.yaml": text})).Pods {
			at[p.Name] = p.Spec.NodeName
		}
		return at
	}
	var all []string
	for i := range 10 {
		all = append(all, pod(fmt.Sprintf("p%d", i)))
	}
	before := places(strings.Join(all, "---\n"))
	after := places(strings.Join(slices.Insert(slices.Clone(all), 3, pod("new")), "---\n"))
	delete(after, "new")
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("pods moved (-before +after):\n%s", diff)
	}
	used := map[string]bool{}
	for _, node := range before {
		used[node] = true
	}
	if len(used) != 3 {
		t.Errorf("ten pods are on %d of three nodes", len(used))
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(workloads)
	f.Add(serviceObjects)
	for _, text := range []string{
		"a: &a [*a]\n", "--- {}\n---\nkind: List\nitems: [{kind: List, items: []}]\n",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a, name: b}\n", "\xff",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {replicas: 1000000000, template: {}}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: -1}]}\n",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = manifest.Load([]string{write(t, map[string]string{"f.yaml": text})}, manifest.Options{})
	})
}

func TestExamplesAreRight(t *testing.T) {
	const examples = "../../../examples/"
	if set := load(t, manifest.Options{}, examples+"shop"); len(set.Pods) != 5 || len(set.Services) != 3 ||
		len(set.Policies) != 0 {
		t.Errorf("the shop has %d pods, %d Services, %d policies", len(set.Pods), len(set.Services), len(set.Policies))
	}
	if set := load(t, manifest.Options{}, examples+"shop", examples+"shop-policies"); len(set.Policies) != 4 {
		t.Errorf("the shop with policies has %d of them", len(set.Policies))
	}
	if set := load(t, manifest.Options{}, examples+"shop", examples+"cluster-policies"); len(set.ClusterPolicies) != 3 {
		t.Errorf("the shop with policies of the cluster has %d of them", len(set.ClusterPolicies))
	}
	if set := load(t, manifest.Options{}, examples+"shop", examples+"staged-policies"); len(set.ClusterPolicies) != 1 ||
		len(set.Policies) != 1 {
		t.Errorf("the shop with staged policies has %d and %d of them", len(set.ClusterPolicies), len(set.Policies))
	}
}

const serviceObjects = `
apiVersion: v1
kind: Pod
metadata: {name: leaving, deletionTimestamp: "2026-01-02T03:04:05Z"}
spec: {hostNetwork: true, nodeName: node1, containers: [{name: c, ports: [{containerPort: 80}]}]}
status: {phase: Succeeded, conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {type: LoadBalancer, clusterIP: 10.96.0.7, externalIPs: [192.0.2.7], externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1, ipMode: VIP}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], conditions: {ready: false}}]
ports: [{port: 8080}]
`

// What a manifest says of a pod's state, of a Service's addresses and of endpoints is kept.
func TestServiceObjects(t *testing.T) {
	set := load(t, manifest.Options{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}},
		write(t, map[string]string{"f.yaml": serviceObjects}))
	pod, service, slice := set.Pods[0], set.Services[0], set.Slices[0]
	if !pod.Spec.HostNetwork || pod.DeletionTimestamp == nil || pod.Status.Conditions[0].Status != "False" ||
		pod.Status.Phase != "Succeeded" {
		t.Errorf("pod %+v", pod)
	}
	if !slices.Equal(service.Spec.ClusterIPs, []string{"10.96.0.7"}) || service.Spec.Ports[0].NodePort != 30080 ||
		service.Status.LoadBalancer.Ingress[0].IP != "192.0.2.1" {
		t.Errorf("service %+v", service)
	}
	if *slice.Ports[0].Name != "" || *slice.Ports[0].Protocol != "TCP" || *slice.Endpoints[0].Conditions.Ready {
		t.Errorf("slice %+v", slice)
	}
}
