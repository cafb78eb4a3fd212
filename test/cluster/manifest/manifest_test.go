package manifest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

const sample = `# Weft
apiVersion: v1
kind: Namespace
metadata:
  name: weft-system # comments of other documents stay
--- # settings
apiVersion: v1
kind: ConfigMap
metadata:
  name: weft-config
  namespace: weft-system
data:
  config.yaml: |
    # How packets travel between nodes.
    tunnelType: geneve
    # apiServer: https://…:6443
    logLevel: info
---
kind: Other
`

func config(t *testing.T, manifest []byte) string {
	t.Helper()
	var object struct {
		Data map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal([]byte(strings.Split(string(manifest), "---\n")[1]), &object); err != nil {
		t.Fatal(err)
	}
	return object.Data["config.yaml"]
}

func TestConfigure(t *testing.T) {
	out, err := Configure([]byte(sample), map[string]string{"tunnelType": "vxlan", "datapath": "netdev",
		"apiServer": "https://[fd57::1]:6443"})
	if err != nil {
		t.Fatal(err)
	}
	want := `# How packets travel between nodes.
tunnelType: vxlan
apiServer: https://[fd57::1]:6443
logLevel: info
datapath: netdev
`
	if diff := cmp.Diff(want, config(t, out)); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	namespace, _, _ := strings.Cut(sample, "--- #")
	if !strings.HasPrefix(string(out), namespace) || !strings.HasSuffix(string(out), "---\nkind: Other\n") {
		t.Errorf("other documents changed:\n%s", out)
	}
}

func TestConfigureQuotesValues(t *testing.T) {
	out, err := Configure([]byte(sample), map[string]string{"tunnelType": "yes: no # maybe"})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := yaml.Unmarshal([]byte(config(t, out)), &got); err != nil || got["tunnelType"] != "yes: no # maybe" {
		t.Errorf("settings %v, %v; want the value as it was given", got, err)
	}
}

func TestConfigureRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no ConfigMap":     "kind: Namespace\n",
		"two ConfigMaps":   sample + "---\n" + strings.Split(sample, "# settings\n")[1],
		"no config.yaml":   strings.Replace(sample, "config.yaml", "other", 1),
		"broken document":  "kind: [\n",
		"broken settings":  strings.Replace(sample, "logLevel: info", "logLevel: [", 1),
		"doubled settings": strings.Replace(sample, "logLevel: info", "tunnelType: vxlan", 1),
	} {
		if _, err := Configure([]byte(text), map[string]string{"tunnelType": "vxlan"}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
