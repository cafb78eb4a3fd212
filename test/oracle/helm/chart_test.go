package helm

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite deploy/weft.yaml")

const (
	deploy   = "../../../deploy"
	manifest = deploy + "/weft.yaml"
	header   = `# Weft, an Open vSwitch network for Kubernetes 1.30 and newer. Install it with
#
#   kubectl apply -f deploy/weft.yaml
#
# docs/install.md says what a node needs, docs/configuration.md what can be set.
# Made from deploy/helm/weft by: go test -C test/oracle/helm -run TestManifest -update
`
)

// order is that of the manifest: what others refer to comes first.
var order = []string{"namespace.yaml", "config.yaml", "rbac.yaml", "admission.yaml", "daemonset.yaml"}

func loadChart(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.LoadDir(deploy + "/helm/weft")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// render gives the templates' results by file name, as helm install would send them.
func render(t *testing.T, values string) (map[string]string, error) {
	t.Helper()
	c := loadChart(t)
	given, err := chartutil.ReadValues([]byte(values))
	if err != nil {
		t.Fatal(err)
	}
	options := chartutil.ReleaseOptions{Name: "weft", Namespace: "weft-system", IsInstall: true}
	all, err := chartutil.ToRenderValues(c, given, options, nil) // which validates them by the schema
	if err != nil {
		return nil, err
	}
	texts, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	byName := map[string]string{}
	for name, text := range texts {
		if text = strings.TrimSpace(text); text != "" && strings.HasSuffix(name, ".yaml") {
			byName[path.Base(name)] = text + "\n"
		}
	}
	return byName, nil
}

func mustRender(t *testing.T, values string) map[string]string {
	t.Helper()
	texts, err := render(t, values)
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

// objects decodes YAML documents, by kind, namespace and name.
func objects(t *testing.T, texts ...string) map[string]map[string]any {
	t.Helper()
	found := map[string]map[string]any{}
	for _, text := range texts {
		for doc := range strings.SplitSeq(text, "\n---\n") {
			var object map[string]any
			if err := yaml.UnmarshalStrict([]byte(doc+"\n"), &object); err != nil {
				t.Fatalf("%v in\n%s", err, doc)
			}
			meta, ok := object["metadata"].(map[string]any)
			if !ok {
				t.Fatalf("no metadata in\n%s", doc)
			}
			key := fmt.Sprintf("%v %v %v/%v", object["apiVersion"], object["kind"], meta["namespace"], meta["name"])
			if found[key] != nil {
				t.Errorf("%s occurs twice", key)
			}
			found[key] = object
		}
	}
	return found
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestManifest: deploy/weft.yaml is what the chart renders with its defaults and the namespace.
func TestManifest(t *testing.T) {
	texts := mustRender(t, "namespace: {create: true}")
	if d := cmp.Diff(slices.Sorted(slices.Values(order)), slices.Sorted(maps.Keys(texts))); d != "" {
		t.Errorf("templates (-order of this test +rendered):\n%s", d)
	}
	want := header
	for i, name := range order {
		if i > 0 {
			want += "---\n"
		}
		want += texts[name]
	}
	if *update {
		if err := os.WriteFile(manifest, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(read(t, manifest), want); d != "" {
		t.Errorf("%s is out of date (-file +chart); change the chart, then: go test -C test/oracle/helm -run TestManifest "+
			"-update\n%s", manifest, d)
	}
}

// TestSameObjects: the plain manifest, the kustomize base, and the chart with the namespace have the same objects; the
// chart by itself has all but the namespace.
func TestSameObjects(t *testing.T) {
	plain := objects(t, read(t, manifest))
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), deploy)
	if err != nil {
		t.Fatal(err)
	}
	built, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, slices.Collect(maps.Values(mustRender(t, "namespace: {create: true}")))...)
	alone := objects(t, slices.Collect(maps.Values(mustRender(t, "")))...)
	const namespace = "v1 Namespace <nil>/weft-system"
	if alone[namespace] != nil {
		t.Error("the chart by itself has the namespace, which helm creates")
	}
	alone[namespace] = plain[namespace]
	for what, got := range map[string]map[string]map[string]any{
		"kustomize": objects(t, string(built)), "helm with the namespace": all, "helm": alone,
	} {
		if len(plain) != 8 && !strings.Contains(read(t, manifest), "CustomResourceDefinition") {
			t.Errorf("%d objects in the manifest", len(plain))
		}
		for _, key := range slices.Sorted(maps.Keys(plain)) {
			if d := cmp.Diff(plain[key], got[key]); d != "" {
				t.Errorf("%s: %s (-weft.yaml +%s):\n%s", what, key, what, d)
			}
			delete(got, key)
		}
		for key := range got {
			t.Errorf("%s has %s, which the manifest lacks", what, key)
		}
	}
}

// TestKustomizeOverlay: an overlay exchanges both images and adds settings.
func TestKustomizeOverlay(t *testing.T) {
	fs := filesys.MakeFsInMemory()
	for name, text := range map[string]string{
		"/base/weft.yaml": read(t, manifest), "/base/kustomization.yaml": read(t, deploy+"/kustomization.yaml"),
		"/over/kustomization.yaml": "resources: [../base]\nimages: [{name: weft.io/weft, newName: registry.example/weft, " +
			"newTag: v9}]\n" +
			"patches: [{patch: '{apiVersion: v1, kind: ConfigMap, metadata: {name: weft-config, namespace: weft-system}, " +
			"data: {config.yaml: \"mtu: 1400\"}}'}]\n",
	} {
		if err := fs.WriteFile(name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, "/over")
	if err != nil {
		t.Fatal(err)
	}
	built, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	text := string(built)
	if strings.Count(text, "image: registry.example/weft:v9\n") != 2 || strings.Contains(text, "weft.io/weft") ||
		!strings.Contains(text, "config.yaml: 'mtu: 1400'") {
		t.Errorf("the overlay gives\n%s", text)
	}
}

// TestValues: what each value changes.
func TestValues(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	for name, tc := range map[string]struct {
		values, file  string
		want, wantNot []string
	}{
		"a digest counts before a tag": {"image: {repository: r.example/w, tag: v9, digest: '" + digest + "'}",
			"daemonset.yaml", []string{"image: r.example/w@" + digest}, []string{"v9", "weft.io"}},
		"a tag": {"image: {tag: v9}", "daemonset.yaml", []string{"image: weft.io/weft:v9"}, nil},
		"settings": {"config: {tunnelType: vxlan, mtu: 1400}", "config.yaml",
			[]string{"\n    mtu: 1400\n", "\n    tunnelType: vxlan\n"}, nil},
		"directories of k3s": {"cni: {binDir: /var/lib/rancher/k3s/data/cni, confDir: " +
			"/var/lib/rancher/k3s/agent/etc/cni/net.d}", "daemonset.yaml", []string{"path: /var/lib/rancher/k3s/data/cni\n",
			"path: /var/lib/rancher/k3s/agent/etc/cni/net.d\n"},
			[]string{"path: /opt/cni/bin\n", "path: /etc/cni/net.d\n"}},
		"Open vSwitch below /var/run": {"config: {ovsRunDir: /var/run/ovs}", "daemonset.yaml",
			[]string{"value: /host/run/ovs\n"}, []string{"name: ovs\n"}},
		"Open vSwitch elsewhere": {"config: {ovsRunDir: /var/snap/ovs/run}", "daemonset.yaml",
			[]string{"value: /var/snap/ovs/run\n", "mountPath: /var/snap/ovs/run\n", "path: /var/snap/ovs/run\n"}, nil},
		"tolerations and nodes": {"tolerations: [{key: a, operator: Exists}]\nnodeSelector: {net: weft}", "daemonset.yaml",
			[]string{"- key: a\n", "net: weft\n", "kubernetes.io/os: linux\n"},
			[]string{"tolerations:\n        - operator: Exists"}},
		"the operator scrapes metrics that are served": {"monitoring: {podMonitor: true}", "config.yaml",
			[]string{"\n    metricsAddr: '[::]:9471'\n"}, nil},
		"the operator scrapes the port of the setting": {
			"monitoring: {podMonitor: true, interval: 10s}\nconfig: {metricsAddr: '0.0.0.0:9999'}", "podmonitor.yaml",
			[]string{"replacement: $1:9999\n", "interval: 10s\n"}, []string{"9471"}},
		"alerts": {"monitoring: {prometheusRule: true}", "prometheusrule.yaml",
			[]string{"alert: WeftAgentDown\n", "{{ $labels.node }}"}, nil},
		"pull secrets": {"imagePullSecrets: [{name: s}]", "daemonset.yaml",
			[]string{"imagePullSecrets:\n        - name: s\n"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			texts := mustRender(t, tc.values)
			objects(t, slices.Collect(maps.Values(texts))...)
			for _, want := range tc.want {
				if !strings.Contains(texts[tc.file], want) {
					t.Errorf("%s lacks %q:\n%s", tc.file, want, texts[tc.file])
				}
			}
			for _, not := range tc.wantNot {
				if strings.Contains(texts[tc.file], not) {
					t.Errorf("%s has %q:\n%s", tc.file, not, texts[tc.file])
				}
			}
		})
	}
}

// TestMonitoringFiles: deploy/monitoring has what the chart renders.
func TestMonitoringFiles(t *testing.T) {
	if read(t, deploy+"/monitoring/alerts.yaml") != read(t, deploy+"/helm/weft/files/alerts.yaml") {
		t.Error("the chart's files/alerts.yaml is not deploy/monitoring/alerts.yaml; copy it")
	}
	texts := mustRender(t, "monitoring: {podMonitor: true, prometheusRule: true}")
	for _, name := range []string{"podmonitor.yaml", "prometheusrule.yaml"} {
		if d := cmp.Diff(objects(t, read(t, deploy+"/monitoring/"+name)), objects(t, texts[name])); d != "" {
			t.Errorf("deploy/monitoring/%s (-file +chart):\n%s", name, d)
		}
	}
}

// TestSchema: values that the chart does not know, or that the agent would reject, are named before anything is
// installed.
func TestSchema(t *testing.T) {
	for values, want := range map[string]string{
		"imge: {tag: v1}":                      "imge",
		"image: {tga: v1}":                     "tga",
		"image: {digest: latest}":              "digest",
		"config: {tunneltype: vxlan}":          "tunneltype",
		"config: {tunnelType: stt}":            "tunnelType",
		"config: {mtu: large}":                 "mtu",
		"config: {egressMasquerade: 'yes'}":    "egressMasquerade",
		"config: {serviceCIDRs: 10.96.0.0/12}": "serviceCIDRs",
		"cni: {binDir: opt/cni/bin}":           "binDir",
		"monitoring: {interval: often}":        "interval",
	} {
		if _, err := render(t, values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error that names %s", values, err, want)
		}
	}
}
