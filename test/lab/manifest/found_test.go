package manifest_test

import (
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

// labCIDRs are the ranges of cluster IPs of an IPv4 lab.
var labCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}

// TestAsFound: exports of a cluster and rendered charts come up as they are. What a lab does not do is a warning, with
// the object's name.
func TestAsFound(t *testing.T) {
	for _, tc := range []struct {
		file                    string
		pods, services, ignored []string
		warnings                []string
	}{
		{"exported.yaml", []string{"web/web-0", "web/web-1", "web/report-8d7xk"}, []string{"web/web", "default/kubernetes"},
			[]string{"ReplicaSet"}, []string{
				"exported.yaml:24: Deployment web/web spec.someFieldOfANewerKubernetes: unknown field",
				`exported.yaml:73: Pod web/report-8d7xk spec.nodeName: there is no node "worker-2.example"; there are [node1 node2], any of which may be taken`,
				"exported.yaml:80: Service web/web spec.clusterIPs: 172.20.14.7 is in none of the lab's ranges [10.96.0.0/16]; " +
					"the lab assigns another"}},
		{"database.yaml", []string{"db/db-master-0", "db/db-replicas-0", "db/db-replicas-1", "db/db-replicas-2"},
			[]string{"db/db-headless", "db/db-master"}, []string{"PodDisruptionBudget", "ServiceAccount"}, []string{
				"database.yaml:52: StatefulSet db/db-master spec.template.spec.affinity: not supported: a lab has no scheduler; " +
					"nodeName and nodeSelector have an effect",
				"database.yaml:82: StatefulSet db/db-replicas spec.template.spec.topologySpreadConstraints: not supported: a lab " +
					"has no scheduler; nodeName and nodeSelector have an effect"}},
		{"ingress.yaml", []string{"ingress/controller-0", "monitoring/exporter-node1", "monitoring/exporter-node2"},
			[]string{"ingress/controller", "ingress/controller-admission", "monitoring/exporter"},
			[]string{"IngressClass", "ValidatingWebhookConfiguration"}, []string{
				"ingress.yaml:22: Deployment ingress/controller spec.template.spec.containers[0].ports[0].hostPort: not " +
					"supported: it is the portmap plugin's, which a lab does not run",
				"ingress.yaml:55: Job ingress/admission-create kind: a lab does not know Job of batch/v1; it is left out, with 1 " +
					"more of this kind",
				"ingress.yaml:84: ServiceMonitor monitoring/exporter kind: a lab does not know ServiceMonitor of " +
					"monitoring.coreos.com/v1; it is left out",
				"ingress.yaml:91: Service monitoring/outside spec.type: not supported: an ExternalName is a matter of DNS, which " +
					"a lab does not have"}},
	} {
		t.Run(tc.file, func(t *testing.T) {
			set := load(t, manifest.Options{ServiceCIDRs: labCIDRs}, filepath.Join("testdata", tc.file))
			var services, warnings []string
			for _, s := range set.Services {
				services = append(services, s.Namespace+"/"+s.Name)
				if slices.Contains(append(s.Spec.ClusterIPs, s.Spec.ClusterIP), "172.20.14.7") {
					t.Errorf("Service %s keeps a cluster IP that the lab does not have", s.Name)
				}
			}
			for _, w := range set.Warnings {
				warnings = append(warnings, strings.TrimPrefix(w.Error(), "testdata/"))
			}
			got := [][]string{names(set), services, set.Ignored, warnings}
			if diff := cmp.Diff([][]string{tc.pods, tc.services, tc.ignored, tc.warnings}, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			for _, p := range set.Pods {
				if p.Status.Phase != "" || p.Status.PodIP != "" || p.UID != "" {
					t.Errorf("pod %s has what its cluster set: %+v", p.Name, p.Status)
				}
			}
			if len(set.Slices) > 0 {
				t.Errorf("a cluster's EndpointSlices of a Service with a selector were taken: %v", set.Slices)
			}
		})
	}
}

// TestNodesAsFound: an exported Node keeps name and labels. With Nodes in the manifests, a pod that fits none is a
// mistake.
func TestNodesAsFound(t *testing.T) {
	const node = "apiVersion: v1\nkind: Node\nmetadata: {name: worker-1.example, uid: u, labels: {disk: ssd, " +
		"kubernetes.io/os: other}}\n" +
		"spec: {podCIDR: 10.0.1.0/24, podCIDRs: [10.0.1.0/24], taints: [{key: a, effect: NoSchedule}]}\n" +
		"status: {addresses: [{type: InternalIP, address: 192.0.2.11}], conditions: [{type: Ready, status: \"True\"}]}\n---\n"
	dir := write(t, map[string]string{"f.yaml": node + pod("p")})
	set := load(t, manifest.Options{}, dir)
	n := set.Nodes[0]
	if n.Name != "worker-1.example" || n.Labels["disk"] != "ssd" || n.Labels["kubernetes.io/os"] != "other" ||
		n.Labels["kubernetes.io/arch"] == "" || n.Spec.PodCIDR != "" || n.Spec.PodCIDRs != nil || n.Status.Addresses != nil {
		t.Errorf("node %+v", n)
	}
	if len(set.Warnings) != 2 {
		t.Errorf("warnings %v, want those of podCIDR and taints", set.Warnings)
	}
	on := func(name, where string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {%s, containers: [{name: c}]}\n---\n",
			name, where)
	}
	q, r := on("q", "nodeName: node9"), on("r", "nodeSelector: {disk: none}")
	_, err := manifest.Load([]string{write(t, map[string]string{"f.yaml": node + q + r})}, manifest.Options{})
	for _, want := range []string{`f.yaml:10: Pod q spec.nodeName: there is no node "node9"; there are [worker-1.example]`,
		"f.yaml:15: Pod r spec.nodeSelector: no node has these labels; there are the nodes [worker-1.example]"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	// The lab's own nodes stand in for a cluster's: pods of one node stay together.
	set = load(t, manifest.Options{Nodes: 5}, write(t, map[string]string{"f.yaml": q + r + on("s", "nodeName: node9")}))
	if len(set.Warnings) != 3 || set.Pods[0].Spec.NodeName != set.Pods[2].Spec.NodeName {
		t.Errorf("pods on %s and %s, warnings %v", set.Pods[0].Spec.NodeName, set.Pods[2].Spec.NodeName, set.Warnings)
	}
}

// TestInput: the path - stands for the standard input, whose name problems have.
func TestInput(t *testing.T) {
	set := load(t, manifest.Options{Input: []byte(pod("p"))}, manifest.Stdin)
	if diff := cmp.Diff([]string{"default/p"}, names(set)); diff != "" {
		t.Errorf("pods (-want +got):\n%s", diff)
	}
	_, err := manifest.Load([]string{"-"}, manifest.Options{Input: []byte("kind: [")})
	if err == nil || !strings.Contains(err.Error(), "standard input:1: not YAML") {
		t.Errorf("error %v", err)
	}
}

// TestKustomization: a kustomization is built, and the files that it was made from are told, so that they can be
// followed.
func TestKustomization(t *testing.T) {
	dir := write(t, map[string]string{
		"base/kustomization.yaml": "resources: [pod.yaml]\n", "base/pod.yaml": pod("p"),
		"dev/kustomization.yaml": "namespace: dev\nnamePrefix: dev-\nresources: [../base]\n",
	})
	read := map[string]bool{}
	opt := manifest.Options{Kustomizations: []string{filepath.Join(dir, "dev")},
		OnRead: func(file string) { read[file] = true }}
	set := load(t, opt)
	if diff := cmp.Diff([]string{"dev/dev-p"}, names(set)); diff != "" {
		t.Errorf("pods (-want +got):\n%s", diff)
	}
	for _, file := range []string{"dev/kustomization.yaml", "base/kustomization.yaml", "base/pod.yaml"} {
		if !read[filepath.Join(dir, file)] {
			t.Errorf("%s is not among the files that were read: %v", file, read)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "base/pod.yaml"), []byte(strings.Replace(pod("p"), "80", "0", 1)),
		0o644); err != nil {
		t.Fatal(err)
	}
	_, err := manifest.Load(nil, opt)
	if err == nil || !strings.Contains(err.Error(), "Pod dev/dev-p spec.containers[0].ports[0].containerPort: 0 is not "+
		"a port") {
		t.Errorf("a mistake in what was built: %v", err)
	}
	opt.Kustomizations = []string{t.TempDir()}
	if _, err := manifest.Load(nil, opt); err == nil || !strings.Contains(err.Error(), "build the kustomization") {
		t.Errorf("a directory without one: %v", err)
	}
	_, err = manifest.Load([]string{filepath.Join(dir, "dev")}, manifest.Options{})
	if err == nil || !strings.Contains(err.Error(), "kustomization.yaml:1: a kustomization is built: give its directory "+
		"to -k") {
		t.Errorf("a kustomization among manifests: %v", err)
	}
}

// A pod without ports can only send: nothing is wrong with it. Of a pod's status, what the lab cannot know counts.
func TestPodsAsFound(t *testing.T) {
	set := load(t, manifest.Options{}, write(t, map[string]string{"f.yaml": "apiVersion: v1\nkind: Pod\n" +
		"metadata: {name: a}\n" +
		"spec: {containers: [{name: c}]}\nstatus: {phase: Failed, podIP: 10.0.0.1, conditions: [{type: PodScheduled, " +
		"status: \"True\"}, {type: Ready, status: \"False\"}]}\n"}))
	status := set.Pods[0].Status
	if len(set.Warnings) != 0 || status.Phase != "Failed" || status.PodIP != "" || len(status.Conditions) != 1 ||
		!slices.Equal(names(set), []string{"default/a"}) {
		t.Errorf("%+v, warnings %v", status, set.Warnings)
	}
}
